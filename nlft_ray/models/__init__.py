"""Language models: loading, prompts, packing, generation."""

"""The engines that complete prompts: transformers in this process, vLLM in it, or a server."""

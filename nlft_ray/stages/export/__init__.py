"""export: a training's weights → a model folder that transformers loads as it is."""

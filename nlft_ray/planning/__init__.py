"""plan: memory that a model needs, memory that a cluster has, and settings that fit. Nothing is loaded or run."""

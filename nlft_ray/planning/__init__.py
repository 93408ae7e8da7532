"""plan: what a model needs, what a cluster has, and a configuration that fits. Nothing is loaded and nothing runs."""

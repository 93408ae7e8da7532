"""How a stage runs: the course of a table stage, Ray's cluster, placement."""

"""The execution of stages: the course of a table stage, Ray's cluster or this process, placement."""

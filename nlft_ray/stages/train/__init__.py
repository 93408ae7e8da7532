"""train: scored → weights, by a policy, under Ray Train and DeepSpeed."""

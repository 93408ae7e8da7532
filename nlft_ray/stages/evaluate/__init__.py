"""evaluate: a model's accuracy on test questions, with an interval."""

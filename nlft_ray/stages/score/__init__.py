"""score: examples → facts about each response token under the three contexts, by forward passes alone."""

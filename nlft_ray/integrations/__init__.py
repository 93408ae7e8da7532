"""Parts for other people's trainers, which learn by the weights that `nlft-ray weights` wrote."""

"""Node features of data sets, from a checkpoint: what the Chemical Similarity Index is made of."""

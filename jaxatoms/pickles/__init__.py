"""Pickles and PyTorch files, read without PyTorch and without running anything that they name."""

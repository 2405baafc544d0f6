"""Slow, plain second implementations that the models are tested against."""

"""Losses as weighted terms, and the sums from which mean absolute errors follow."""

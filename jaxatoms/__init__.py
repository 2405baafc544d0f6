"""Throughput-first pretraining and fine-tuning of atomic-property models in JAX."""

__version__ = "0.1.0"

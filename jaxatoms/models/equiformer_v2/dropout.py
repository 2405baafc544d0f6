"""Random removals of training: attention weights per edge and head, residual branches per structure."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class DropRates(NamedTuple):
    """Probabilities of removal."""

    alpha: float
    path: float


def drop_attention(key: jax.Array, rate: float, alpha: jax.Array) -> jax.Array:
    """Attention weights [n_edge, heads], each removed with probability `rate`, the rest divided by 1 - rate."""
    return alpha * _keep(key, rate, alpha.shape, alpha.dtype)


def drop_path(key: jax.Array, rate: float, node_graph: jax.Array, n_graph: int, x: jax.Array) -> jax.Array:
    """A residual branch [n_node, ...], removed for whole structures with probability `rate` (stochastic depth)."""
    keep = _keep(key, rate, (n_graph,), x.dtype)[node_graph]
    return x * keep.reshape(-1, *(1,) * (x.ndim - 1))


def _keep(key, rate: float, shape, dtype) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, shape), 1 / (1 - rate), 0).astype(dtype)

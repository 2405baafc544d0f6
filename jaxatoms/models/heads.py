"""Heads: node and edge features -> energies and forces, one pair of heads per task.

Outputs are in the normalised units of the training targets; `data/references.py` turns them into eV and eV/A.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models import initializers
from jaxatoms.models.indexing import sum_rows, take_rows
from jaxatoms.models.layers import Dense, Precision

NUM_LAYERS = 5


class HeadMLP(nnx.Module):
    """Five linear layers n -> n (x4) -> 1, scaled SiLU between, biases on all but the last (or on none)."""

    def __init__(self, n: int, rngs: nnx.Rngs, precision: Precision, *, bias: bool = True):
        args = dict(rngs=rngs, precision=precision, init=initializers.uniform_fan_in)
        hidden = [Dense(n, n, act=True, bias=bias, **args) for _ in range(NUM_LAYERS - 1)]
        self.layers = nnx.List([*hidden, Dense(n, 1, **args)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., n] -> [...]"""
        for layer in self.layers:
            x = layer(x)
        return x[..., 0]


def reduce_atoms(values: jax.Array, batch: GraphBatch, reduction: str) -> jax.Array:
    """[n_graph] "sum" or "mean" over the real atoms of each structure of per-atom values [n_node]."""
    masked = jnp.where(batch.node_mask, values, 0)
    dense = take_rows(masked, batch.node_table.reshape(-1), batch.node_slot)
    total = jnp.sum(dense.reshape(batch.node_table.shape), axis=1)
    if reduction == "sum":
        return total
    count = jnp.sum(batch.node_table < batch.atomic_numbers.shape[0], axis=1)
    return total / jnp.maximum(count, 1)


def direct_forces(scalars: jax.Array, directions: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_node, 3] sums of `scalars` [E] times `directions` [E, 3] over the edges arriving at each atom."""
    per_edge = scalars[:, None] * directions
    return sum_rows(per_edge, batch.main.in_table, batch.main.receivers)

"""Heads: node and edge features -> energies and forces, one pair of heads per task.

Outputs are in the normalised units of the training targets; `data/references.py` turns them into eV and eV/A.
"""

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models import initializers
from jaxatoms.models.indexing import sum_rows, take_rows
from jaxatoms.models.layers import Dense, apply_all
from jaxatoms.models.precision import Precision, widened

NUM_LAYERS = 5
NUM_EXTENT_LAYERS = 6  # of the head for the electronic spatial extent
ATOMIC_MASSES = np.nan_to_num(ase.data.atomic_masses, nan=1.0)  # u; entry 0 is the padding element


class HeadMLP(nnx.Module):
    """Linear layers n -> n -> ... -> n_out with scaled SiLU between them, behind dropout.

    Every layer has a bias but a last one of width 1; with bias=False none has. Source: specification GemNet-OC 7.
    """

    def __init__(
        self, n: int, rngs: nnx.Rngs, precision: Precision, *, bias=True, n_layers=NUM_LAYERS, n_out=1, dropout=0.0
    ):
        args = dict(rngs=rngs, precision=precision, init=initializers.uniform_fan_in)
        hidden = [Dense(n, n, act=True, bias=bias, **args) for _ in range(n_layers - 1)]
        self.layers = nnx.List([*hidden, Dense(n, n_out, bias=bias and n_out > 1, **args)])
        self.dropout = dropout

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., n] -> [...] or, with n_out > 1, [..., n_out]; `key` switches the dropout of x on."""
        if self.dropout and key is not None:
            keep = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0)
        *hidden, last = self.layers
        x = last(widened(apply_all(hidden, x)))
        return x[..., 0] if x.shape[-1] == 1 else x


def reduce_atoms(values: jax.Array, batch: GraphBatch, reduction: str) -> jax.Array:
    """[n_graph, ...] "sum", "mean" or "max" over the real atoms of each structure of per-atom values [n_node, ...]."""
    real = batch.node_table < batch.atomic_numbers.shape[0]
    dense = _per_graph(values, batch)
    real = real.reshape(real.shape + (1,) * (dense.ndim - 2))
    if reduction == "max":
        highest = jnp.max(jnp.where(real, dense, -jnp.inf), axis=1)
        return jnp.where(jnp.any(real, axis=1), highest, 0)
    total = jnp.sum(dense, axis=1)
    return total if reduction == "sum" else total / jnp.maximum(jnp.sum(real, axis=1), 1)


def _per_graph(values: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_node, ...] -> [n_graph, n_per_graph, ...], zero where there is no atom."""
    masked = jnp.where(batch.node_mask.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
    flat = take_rows(masked, batch.node_table.reshape(-1), batch.node_slot)
    return flat.reshape(*batch.node_table.shape, *values.shape[1:])


def squared_distances(batch: GraphBatch) -> jax.Array:
    """[n_node] A^2 of each atom to the centre of mass of its structure; 0 for padding."""
    mass = jnp.asarray(ATOMIC_MASSES, jnp.float32)[batch.atomic_numbers] * batch.node_mask
    weighted = jnp.concatenate([mass[:, None] * batch.positions, mass[:, None]], axis=1)
    total = jnp.sum(_per_graph(weighted, batch), axis=1)
    centre = total[:, :3] / jnp.maximum(total[:, 3:], 1e-6)
    return jnp.where(batch.node_mask, jnp.sum((batch.positions - centre[batch.node_graph]) ** 2, axis=-1), 0)


def direct_forces(scalars: jax.Array, directions: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_node, 3] sums of `scalars` [E] times `directions` [E, 3] over the edges arriving at each atom."""
    per_edge = scalars[:, None] * directions
    return sum_rows(per_edge, batch.main.in_table, batch.main.receivers)

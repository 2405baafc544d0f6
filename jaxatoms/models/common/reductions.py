"""Values per atom -> values per structure, without a scatter."""

import ase.data
import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import take_rows

REDUCTIONS = ("sum", "mean", "max", "extent")  # extent: the sum weighted by the squared distance to the centre of mass
ATOMIC_MASSES = np.nan_to_num(ase.data.atomic_masses, nan=1.0)  # u; entry 0 is the padding element


def check_reduction(reduction: str):
    """Refuse a reduction that there is not.

    Raises:
      ValueError: naming those that there are.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be sum, mean, max or extent, got {reduction!r}")


def reduce_property(values: jax.Array, batch: GraphBatch, reduction: str) -> jax.Array:
    """[n_graph, ...] of per-atom values [n_node, ...] by one of `REDUCTIONS`."""
    if reduction == "extent":
        weights = squared_distances(batch)
        return reduce_atoms(values * weights.reshape(-1, *(1,) * (values.ndim - 1)), batch, "sum")
    return reduce_atoms(values, batch, reduction)


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

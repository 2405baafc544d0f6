"""Homogeneous strain of structures, by which the stress is a derivative of the energy."""

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import take_many


def strained(batch: GraphBatch, positions: jax.Array, strain: jax.Array) -> tuple[GraphBatch, jax.Array]:
    """The batch with its cells, and the positions, multiplied by 1 + the symmetric part of `strain`.

    Only the symmetric part, because a rotation changes no energy; the derivative is symmetric then.

    Args:
      positions: [n_node, 3] A.
      strain: [n_graph, 3, 3] without unit.
    """
    deformation = jnp.eye(3, dtype=strain.dtype) + (strain + strain.swapaxes(1, 2)) / 2
    of_atoms = take_many(deformation, batch.node_graph, batch.node_table)
    # Sums and not products of matrices, which may be computed in reduced precision.
    cell = jnp.sum(batch.cell[..., None] * deformation[:, None], axis=2)
    return batch._replace(cell=cell), jnp.sum(positions[..., None] * of_atoms, axis=1)


def stress_of(virial: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_graph, 3, 3] derivative with respect to strain, divided by the volume; 0 without a volume."""
    volume = batch.volume[:, None, None]
    return jnp.where(volume > 0, virial / jnp.where(volume > 0, volume, 1), 0)

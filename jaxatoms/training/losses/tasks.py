"""Which of a model's heads a structure or an atom is compared with."""

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch


def own_task(values: jax.Array, task: jax.Array) -> jax.Array:
    """values [n, ..., T] -> [n, ...], each row's entry of its own task (by a mask, so that no scatter is needed)."""
    mask = jax.nn.one_hot(task, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values * mask.reshape(mask.shape[0], *(1,) * (values.ndim - 2), -1), axis=-1)


def of_structures(energy: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_graph] of [n_graph, T], or of a model with one head [n_graph]."""
    return energy if energy.ndim == 1 else own_task(energy, batch.task)


def of_atoms(forces: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_node, 3] of [n_node, 3, T], or of a model with one head [n_node, 3]."""
    return forces if forces.ndim == 2 else own_task(forces, batch.task[batch.node_graph])


def atoms_in(batch: GraphBatch) -> jax.Array:
    """[n_graph] atoms of each structure; 1 for padding, since it divides."""
    return jnp.maximum(jnp.sum(batch.node_table < batch.atomic_numbers.shape[0], axis=1), 1)

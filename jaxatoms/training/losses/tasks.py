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


def of_task(batch: GraphBatch, task: int) -> GraphBatch:
    """The batch with the labels of one task alone, as if there were no other.

    For losses and errors of outputs without an axis of tasks, not as input of a model.
    """
    own = batch.task == task
    masks = {
        "task": jnp.zeros_like(batch.task),
        "energy_mask": batch.energy_mask & own,
        "force_mask": batch.force_mask & own[batch.node_graph],
    }
    if batch.stress_mask is not None:
        masks["stress_mask"] = batch.stress_mask & own
    if batch.properties_mask is not None:
        masks["properties_mask"] = batch.properties_mask & own[:, None]
        masks["atom_properties_mask"] = batch.atom_properties_mask & own[batch.node_graph][:, None]
    return batch._replace(**masks)


def atoms_in(batch: GraphBatch) -> jax.Array:
    """[n_graph] atoms of each structure; 1 for padding, since it divides."""
    return jnp.maximum(jnp.sum(batch.node_table < batch.atomic_numbers.shape[0], axis=1), 1)

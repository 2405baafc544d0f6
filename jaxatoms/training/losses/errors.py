"""Sums over a batch from which mean absolute errors and recalls of a whole set follow."""

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.losses.tasks import atoms_in, of_atoms, of_structures


def error_sums(output, batch: GraphBatch, n_task: int = 1, n_class: int = 0) -> dict[str, jax.Array]:
    """Absolute errors and counts per task, in normalised units, of what a model predicts.

    Args:
      output: with `energy` and `forces`; None where a model does not predict them.
      n_class: of a classifier, whose `energy` holds logits [n_graph, n_class].

    Returns:
      Of energies {"energy_error", "energy_count"}, and of energies divided by the atoms {"energy_by_atom_error",
      "energy_by_atom_count"}, each [T]; of forces {"force_error", "force_count"} of free atoms only, and
      "all_force_error", "all_force_count" with the fixed ones, whose counts are components (3 per atom); of the six
      components of stress {"stress_error", "stress_count"}, each []; of a classifier {"class_right", "class_count"},
      each [n_class].
    """
    sums: dict[str, jax.Array] = {}
    if output.energy is not None:
        sums |= _classes(output.energy, batch) if n_class else _energies(output.energy, batch, n_task)
    if output.stress is not None and batch.stress is not None:
        sums |= _stress(output.stress, batch)
    return sums if output.forces is None else sums | _forces(output.forces, batch, n_task)


def _energies(energy, batch: GraphBatch, n_task: int) -> dict[str, jax.Array]:
    by_graph = jax.nn.one_hot(batch.task, n_task) * batch.energy_mask[:, None]
    # Mask before arithmetic: padding of a scalar may be anything.
    error = jnp.where(batch.energy_mask, jnp.abs(of_structures(energy, batch) - batch.energy), 0)
    per_atom = error / atoms_in(batch)
    count = jnp.sum(by_graph, axis=0)
    return {
        "energy_error": jnp.sum(error[:, None] * by_graph, axis=0),
        "energy_count": count,
        "energy_by_atom_error": jnp.sum(per_atom[:, None] * by_graph, axis=0),
        "energy_by_atom_count": count,
    }


def _forces(forces, batch: GraphBatch, n_task: int) -> dict[str, jax.Array]:
    labelled = jax.nn.one_hot(batch.task[batch.node_graph], n_task) * batch.force_mask[:, None]
    by_node = labelled * batch.free[:, None]
    difference = jnp.where(batch.force_mask[:, None], of_atoms(forces, batch) - batch.forces, 0)
    error = jnp.sum(jnp.abs(difference), axis=-1)[:, None]
    return {
        "force_error": jnp.sum(error * by_node, axis=0),
        "force_count": 3 * jnp.sum(by_node, axis=0),
        "all_force_error": jnp.sum(error * labelled, axis=0),
        "all_force_count": 3 * jnp.sum(labelled, axis=0),
    }


def _stress(stress, batch: GraphBatch) -> dict[str, jax.Array]:
    rows, columns = jnp.triu_indices(3)
    error = jnp.where(batch.stress_mask[:, None, None], jnp.abs(stress - batch.stress), 0)
    return {
        "stress_error": jnp.sum(error[:, rows, columns]),
        "stress_count": 6 * jnp.sum(batch.stress_mask),
    }


def _classes(logits, batch: GraphBatch) -> dict[str, jax.Array]:
    truth = batch.energy.astype(jnp.int32)
    right = jnp.argmax(logits, axis=-1) == truth
    label = jax.nn.one_hot(truth, logits.shape[-1]) * batch.energy_mask[:, None]
    return {"class_right": jnp.sum(label * right[:, None], axis=0), "class_count": jnp.sum(label, axis=0)}

"""Pretraining loss and evaluation metrics over padded multi-task batches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch

FORCE_EPS = 1e-6  # added to every component of the difference, as PyTorch's pairwise distance does


class LossScales(NamedTuple):
    """Per-task weights of the two loss terms."""

    energy: jax.Array  # [T]
    forces: jax.Array  # [T]


class LabelCounts(NamedTuple):
    """What the two terms of the loss are means over."""

    energy: jax.Array  # [] structures with an energy
    forces: jax.Array  # [] structures with a force on some atom


def own_task(values: jax.Array, task: jax.Array) -> jax.Array:
    """values [n, ..., T] -> [n, ...], each row's entry of its own task (by a mask, so that no scatter is needed)."""
    mask = jax.nn.one_hot(task, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values * mask.reshape(mask.shape[0], *(1,) * (values.ndim - 2), -1), axis=-1)


def atom_weights(mask: jax.Array, batch: GraphBatch) -> tuple[jax.Array, jax.Array]:
    """Weights [n_node] that turn a sum over masked atoms into means per structure, and [n_graph] which have any.

    Only masks are gathered, so that the gradient of a weighted sum needs no scatter.
    """
    count = jnp.sum(mask.at[batch.node_table].get(mode="fill", fill_value=False), axis=1)
    return jnp.where(mask, 1 / jnp.maximum(count, 1)[batch.node_graph], 0), count > 0


def label_counts(batch: GraphBatch, free_only: bool = False) -> LabelCounts:
    """Labelled structures of a batch; `free_only` as in `pretraining_loss`."""
    _, labelled = atom_weights(_learnt_atoms(batch, free_only), batch)
    return LabelCounts(jnp.sum(batch.energy_mask), jnp.sum(labelled))


def _learnt_atoms(batch: GraphBatch, free_only: bool) -> jax.Array:
    return batch.force_mask & batch.free if free_only else batch.force_mask


@jax.named_scope("loss")
def pretraining_loss(
    energy,
    forces,
    batch: GraphBatch,
    scales: LossScales,
    counts: LabelCounts | None = None,
    free_only: bool = False,
) -> tuple[jax.Array, dict]:
    """Masked energy L1 plus structure-wise force L2, in normalised units.

    L_E = mean over labelled structures of s_E |E - y|; L_F = mean over structures of the mean over their labelled
    atoms (fixed ones included by default) of s_F ||F - F_ref + 1e-6||. Source: released pretraining code of
    arXiv 2502.11085.

    Args:
      energy: [n_graph, T]; forces: [n_node, 3, T] normalised predictions.
      counts: of the whole step, where this is one of several batches that it consists of (on other devices, or one
        after another): their results then add up to the loss of one large batch. Default: of this batch.
      free_only: leave fixed atoms out of L_F, the released code's `train_on_free_atoms_only`.

    Returns:
      (loss, {"energy_loss", "force_loss"}).
    """
    counts = label_counts(batch, free_only) if counts is None else counts
    e_error = jnp.abs(own_task(energy, batch.task) - batch.energy) * scales.energy[batch.task]
    energy_loss = jnp.sum(jnp.where(batch.energy_mask, e_error, 0)) / jnp.maximum(counts.energy, 1)
    difference = own_task(forces, batch.task[batch.node_graph]) - batch.forces + FORCE_EPS
    # Mask before the norm: padding would be fine here, but a missing label must not reach the square root.
    mask = _learnt_atoms(batch, free_only)
    difference = jnp.where(mask[:, None], difference, 1.0)
    norms = jnp.sqrt(jnp.sum(difference**2, axis=-1))
    weights, _ = atom_weights(mask, batch)
    weights = weights * scales.forces[batch.task[batch.node_graph]]
    force_loss = jnp.sum(norms * weights) / jnp.maximum(counts.forces, 1)
    return energy_loss + force_loss, {"energy_loss": energy_loss, "force_loss": force_loss}


def structure_losses(energy, forces, batch: GraphBatch, scales: LossScales) -> tuple[jax.Array, jax.Array]:
    """Both terms of `pretraining_loss` structure by structure, not reduced; NaN where a structure has no such label.

    Args:
      energy: [n_graph, T]; forces: [n_node, 3, T] normalised predictions.

    Returns:
      ([n_graph] energy term, [n_graph] force term).

    Source: docs/reference/csi.md, Difficulty.
    """
    e_error = jnp.abs(own_task(energy, batch.task) - batch.energy) * scales.energy[batch.task]
    norms = jnp.linalg.norm(own_task(forces, batch.task[batch.node_graph]) - batch.forces + FORCE_EPS, axis=-1)
    weights, labelled = atom_weights(batch.force_mask, batch)
    shares = jnp.where(batch.force_mask, norms, 0) * weights
    means = jnp.sum(shares.at[batch.node_table].get(mode="fill", fill_value=0), axis=1) * scales.forces[batch.task]
    return jnp.where(batch.energy_mask, e_error, jnp.nan), jnp.where(labelled, means, jnp.nan)


def error_sums(energy, forces, batch: GraphBatch, n_task: int) -> dict[str, jax.Array]:
    """Sums over a batch from which MAEs follow: absolute errors and counts per task.

    Returns:
      {"energy_error", "energy_count", "force_error", "force_count"}, each [T], in normalised units, of free atoms
      only for forces, and "all_force_error", "all_force_count" with the fixed ones; the force counts are components
      (3 per atom).
    """
    by_graph = jax.nn.one_hot(batch.task, n_task) * batch.energy_mask[:, None]
    e_error = jnp.abs(own_task(energy, batch.task) - batch.energy)
    task = batch.task[batch.node_graph]
    labelled = jax.nn.one_hot(task, n_task) * batch.force_mask[:, None]
    by_node = labelled * batch.free[:, None]
    f_error = jnp.sum(jnp.abs(own_task(forces, task) - batch.forces), axis=-1)[:, None]
    return {
        "energy_error": jnp.sum(e_error[:, None] * by_graph, axis=0),
        "energy_count": jnp.sum(by_graph, axis=0),
        "force_error": jnp.sum(f_error * by_node, axis=0),
        "force_count": 3 * jnp.sum(by_node, axis=0),
        "all_force_error": jnp.sum(f_error * labelled, axis=0),
        "all_force_count": 3 * jnp.sum(labelled, axis=0),
    }

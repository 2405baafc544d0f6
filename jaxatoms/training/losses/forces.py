"""Terms on forces: the length of the difference, averaged over structures (pretraining) or over atoms (fine-tuning)."""

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.losses.tasks import of_atoms
from jaxatoms.training.losses.terms import Term

FORCE_EPS = 1e-6  # added to every component of the difference, as PyTorch's pairwise distance does


def norm_by_structure(scales: jax.Array, free_only: bool = False) -> Term:
    """Mean over structures of the mean over their labelled atoms of s ||F - F_ref + 1e-6||.

    Args:
      scales: [T] weight s of each task.
      free_only: leave fixed atoms out, the released code's `train_on_free_atoms_only`.

    Source: released pretraining code of arXiv 2502.11085.
    """

    def total(output, batch: GraphBatch) -> jax.Array:
        mask = _learnt(batch, free_only)
        norms = _norms(of_atoms(output.forces, batch), batch, mask)
        weights, _ = atom_weights(mask, batch)
        return jnp.sum(norms * (weights * scales[batch.task[batch.node_graph]]))

    def count(batch: GraphBatch) -> jax.Array:
        _, labelled = atom_weights(_learnt(batch, free_only), batch)
        return jnp.sum(labelled)

    return Term("force", total, count)


def norm_by_atom(weight: float) -> Term:
    """Mean over labelled atoms of ||F - F_ref + 1e-6||, times `weight`.

    Source: docs/reference/finetuning.md, Heads and losses.
    """

    def total(output, batch: GraphBatch) -> jax.Array:
        norms = _norms(of_atoms(output.forces, batch), batch, batch.force_mask)
        return jnp.sum(jnp.where(batch.force_mask, norms, 0))

    return Term("force", total, lambda batch: jnp.sum(batch.force_mask), weight)


def _learnt(batch: GraphBatch, free_only: bool) -> jax.Array:
    return batch.force_mask & batch.free if free_only else batch.force_mask


def _norms(forces: jax.Array, batch: GraphBatch, mask: jax.Array) -> jax.Array:
    """[n_node] lengths of the differences; of atoms outside the mask a number without meaning or gradient."""
    # Mask before the norm: padding would be fine here, but a missing label must not reach the square root.
    difference = jnp.where(mask[:, None], forces - batch.forces + FORCE_EPS, 1.0)
    return jnp.sqrt(jnp.sum(difference**2, axis=-1))


def atom_weights(mask: jax.Array, batch: GraphBatch) -> tuple[jax.Array, jax.Array]:
    """Weights [n_node] that turn a sum over masked atoms into means per structure, and [n_graph] which have any.

    Only masks are gathered, so that the gradient of a weighted sum needs no scatter.
    """
    count = jnp.sum(mask.at[batch.node_table].get(mode="fill", fill_value=False), axis=1)
    return jnp.where(mask, 1 / jnp.maximum(count, 1)[batch.node_graph], 0), count > 0

"""The loss of pretraining: energies and forces of several tasks, each with its own weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.losses.energy import absolute_error
from jaxatoms.training.losses.forces import FORCE_EPS, atom_weights, norm_by_structure
from jaxatoms.training.losses.tasks import of_atoms, of_structures
from jaxatoms.training.losses.terms import Terms


class LossScales(NamedTuple):
    """Per-task weights of the two loss terms."""

    energy: jax.Array  # [T]
    forces: jax.Array  # [T]


def pretraining_terms(scales: LossScales, free_only: bool = False) -> Terms:
    """Energy L1 plus structure-wise force L2, in normalised units. Source: released pretraining code of
    arXiv 2502.11085.

    Args:
      free_only: leave fixed atoms out of the force term.
    """
    return absolute_error(scales.energy), norm_by_structure(scales.forces, free_only)


def structure_losses(output, batch: GraphBatch, scales: LossScales) -> tuple[jax.Array, jax.Array]:
    """Both terms of `pretraining_terms` structure by structure, not reduced; NaN where a structure has no such label.

    Args:
      output: normalised predictions.

    Returns:
      ([n_graph] energy term, [n_graph] force term).

    Source: docs/reference/csi.md, Difficulty.
    """
    e_error = jnp.abs(of_structures(output.energy, batch) - batch.energy) * scales.energy[batch.task]
    norms = jnp.linalg.norm(of_atoms(output.forces, batch) - batch.forces + FORCE_EPS, axis=-1)
    weights, labelled = atom_weights(batch.force_mask, batch)
    shares = jnp.where(batch.force_mask, norms, 0) * weights
    means = jnp.sum(shares.at[batch.node_table].get(mode="fill", fill_value=0), axis=1) * scales.forces[batch.task]
    return jnp.where(batch.energy_mask, e_error, jnp.nan), jnp.where(labelled, means, jnp.nan)

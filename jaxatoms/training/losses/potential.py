"""The loss of a potential that learns energies, forces and stress together, each with its weight.

All three are in the unit of the normalised forces, so that they belong to one potential: an energy per atom in
force_std x A, a force in force_std, a stress times the volume per atom in force_std x A.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.losses.forces import norm_by_atom
from jaxatoms.training.losses.tasks import atoms_in, of_structures
from jaxatoms.training.losses.terms import Term, Terms

STRESS_EPS = 1e-6  # below the root, as in the norm of forces: its slope stays finite where prediction and label agree


def energy_by_atom(weight: float) -> Term:
    """Mean over labelled structures of |E - E_ref| per atom, times `weight`."""

    def total(output, batch: GraphBatch) -> jax.Array:
        error = jnp.abs(of_structures(output.energy, batch) - batch.energy) / atoms_in(batch)
        return jnp.sum(jnp.where(batch.energy_mask, error, 0))

    return Term("energy", total, lambda batch: jnp.sum(batch.energy_mask), weight)


def virial_by_atom(weight: float) -> Term:
    """Mean over labelled structures of the Frobenius norm of stress - stress_ref times the volume per atom."""

    def total(output, batch: GraphBatch) -> jax.Array:
        scale = (batch.volume / atoms_in(batch))[:, None, None]
        # Mask before the norm, as for forces.
        difference = jnp.where(batch.stress_mask[:, None, None], (output.stress - batch.stress) * scale, 1.0)
        norm = jnp.sqrt(jnp.sum(difference**2, axis=(1, 2)) + STRESS_EPS**2)
        return jnp.sum(jnp.where(batch.stress_mask, norm, 0))

    return Term("stress", total, lambda batch: jnp.sum(batch.stress_mask), weight)


_TERMS: dict[str, Callable[[float], Term]] = {
    "energy": energy_by_atom,
    "forces": norm_by_atom,
    "stress": virial_by_atom,
}


def potential_terms(weights: Mapping[str, float]) -> Terms:
    """The terms of `energy`, `forces` and `stress` that have a weight."""
    return tuple(_TERMS[name](weight) for name, weight in weights.items())

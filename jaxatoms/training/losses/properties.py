"""Terms of several properties of structures and atoms, each the mean absolute error of its labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.graphs.properties import Place, places
from jaxatoms.training.losses.terms import Term, Terms


def property_terms(names: Sequence[str], reductions: Sequence[str], weights: Sequence[float]) -> Terms:
    """One term for each property, of normalised values; a dipole counts by component.

    Args:
      names, weights: of the terms.
      reductions: how the properties follow from the atoms' values, which says where they stand in a batch.
    """
    rows = zip(names, places(reductions), weights, strict=True)
    return tuple(_absolute_error(name, place, weight) for name, place, weight in rows)


def _absolute_error(name: str, place: Place, weight: float) -> Term:
    array = "atom_properties" if place.per_atom else "properties"

    def known(batch: GraphBatch) -> jax.Array:
        return getattr(batch, f"{array}_mask")[:, place.columns]

    def total(output, batch: GraphBatch) -> jax.Array:
        error = jnp.abs(getattr(output, array)[:, place.columns] - getattr(batch, array)[:, place.columns])
        return jnp.sum(jnp.where(known(batch), error, 0))

    return Term(name, total, lambda batch: jnp.sum(known(batch)), weight)

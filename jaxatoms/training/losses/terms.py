"""A loss: weighted terms, each a sum over labels divided by how many labels the whole step has.

Sums and counts are apart so that a step may consist of several batches (on other devices, or one after another): the
counts of all of them come first, and the batches' shares add up to the loss of one large batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch

Output = NamedTuple  # with `energy` and `forces`, as models return it (models.common.output.ModelOutput)


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
      name: of its value in the log, "energy" -> "energy_loss".
      total: (output, batch) -> [] the sum over what `count` counts, in normalised units; missing labels add exact zeros
        and no gradient.
      count: batch -> [] labels; it must not depend on the model.
      weight: of the term in the loss.
      summed: the loss is the sum over the labels of a step, and not their mean.
    """

    name: str
    total: Callable[[Output, GraphBatch], jax.Array]
    count: Callable[[GraphBatch], jax.Array]
    weight: float = 1.0
    summed: bool = False


Terms = Sequence[Term]


def label_counts(terms: Terms, batch: GraphBatch) -> dict[str, jax.Array]:
    """Labels of every term in a batch, by name."""
    return {term.name: term.count(batch) for term in terms}


@jax.named_scope("loss")
def combined(
    terms: Terms, output: Output, batch: GraphBatch, counts: dict[str, jax.Array] | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch.

    Args:
      counts: of the whole step, where this is one of several batches that it consists of; default: of this batch.

    Returns:
      (loss, {"<name>_loss": weighted mean of each term} where there are several).
    """
    counts = label_counts(terms, batch) if counts is None else counts
    parts = {
        f"{term.name}_loss": weighted(
            term, term.total(output, batch) / (1 if term.summed else jnp.maximum(counts[term.name], 1))
        )
        for term in terms
    }
    first, *rest = parts.values()
    return sum(rest, first), parts if rest else {}


def weighted(term: Term, value: jax.Array) -> jax.Array:
    """The value times the term's weight."""
    return value if term.weight == 1 else term.weight * value


def label_sums(terms: Terms, output: Output, batch: GraphBatch) -> dict[str, jax.Array]:
    """Sums and counts of a batch, from which `mean_loss` makes the loss of a whole set.

    Returns:
      {"<name>_loss": sum, "<name>_labels": count}: batches differ in how many of their structures are labelled.
    """
    sums = {f"{term.name}_loss": weighted(term, term.total(output, batch)) for term in terms}
    return sums | {f"{term.name}_labels": term.count(batch) for term in terms}


def mean_loss(terms: Terms, sums) -> float:
    """The loss of a whole set from the sums of `label_sums`: each term is the mean over its labels; NaN without any."""
    pairs = [(sums[f"{term.name}_loss"], sums[f"{term.name}_labels"]) for term in terms]
    if not any(count for _, count in pairs):
        return float("nan")
    return float(sum(total / max(count, 1) for total, count in pairs))

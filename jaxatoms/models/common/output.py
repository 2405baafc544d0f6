"""What every model returns, and what a head is asked to predict."""

import dataclasses
from typing import NamedTuple

import jax


class ModelOutput(NamedTuple):
    """Normalised predictions, zero on padding; what a model lacks is None.

    T counts the tasks of pretraining; the axis is absent in the models of fine-tuning, which have one head.
    """

    energy: jax.Array | None  # [n_graph, T]; of a head for classes [n_graph, n_class] logits
    forces: jax.Array | None  # [n_node, 3, T]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a fine-tuned model predicts; enough, with the dimensions, to build it."""

    kind: str  # gradient, direct or scalar
    reduction: str = "sum"  # of the atoms' values of a scalar: see `reductions.REDUCTIONS`
    n_class: int = 0  # 0 for regression
    dropout: float = 0.0  # of the features that the head reads, in training

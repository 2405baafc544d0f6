"""What every model returns, and what a head is asked to predict."""

import dataclasses
from typing import Any, NamedTuple

import jax


class ModelOutput(NamedTuple):
    """Normalised predictions, zero on padding; what a model lacks is None.

    T counts the tasks of pretraining; the axis is absent in the models of fine-tuning, which have one head.
    """

    energy: jax.Array | None  # [n_graph, T]; of a head for classes [n_graph, n_class] logits
    forces: jax.Array | None  # [n_node, 3, T]
    stress: jax.Array | None = None  # [n_graph, 3, 3]; of potentials that learn it
    properties: jax.Array | None = None  # [n_graph, P]; of models for several properties (see `graphs.properties`)
    atom_properties: jax.Array | None = None  # [n_node, Q]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a fine-tuned model predicts; enough, with the dimensions, to build it."""

    kind: str  # gradient, direct, scalar or properties
    reduction: str = "sum"  # of the atoms' values of a scalar: see `reductions.REDUCTIONS`
    n_class: int = 0  # 0 for regression
    dropout: float = 0.0  # of the features that the head reads, in training
    energy: bool = False  # direct: a head for energies beside that for forces
    stress: bool = False  # gradient: also the derivative of the energy with respect to strain, per volume
    heads: int = 1  # one per data set; a structure's task says which one it gets
    kept: int = 0  # the last of them, which are pretraining's and have biases
    outputs: tuple[str, ...] = ()  # properties: how each follows from the atoms' values, see `graphs.properties`

    def __post_init__(self):
        object.__setattr__(self, "outputs", tuple(self.outputs))  # JSON has lists

    def to_json(self) -> dict[str, Any]:
        """Its fields; those that earlier versions do not know only where they say something."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != _LATER.get(name)}


_LATER = {"energy": False, "stress": False, "heads": 1, "kept": 0, "outputs": ()}  # not in records of earlier versions

"""What a run would cost: steps and structures exactly, arithmetic and GPU hours as estimates.

FLOP of one structure = edges x FLOP per main edge x passes.
  - FLOP per main edge and forward pass (docs/reference/gemnet_oc.md, Cost, of two structures): S 62 M with direct
    forces and 42 M without; L 410 M and 298 M.
  - passes: a training step is 3 forward passes where nothing is differentiated twice, 6 for gradient forces.
  - edges = atoms x min(atoms - 1, K), K = 30 (rMD17: 100) where the structure is a molecule, atoms x 31 where it is
    periodic (symmetrising adds a little to K); mean atoms from docs/reference/datasets.md, Overview.
GPU hours = FLOP / sustained rate; the rate is an assumption, not a measurement.
"""

import dataclasses
from typing import NamedTuple

RATE = 2.0e13  # FLOP/s sustained: an assumption of about a tenth to a fifth of a recent data-centre GPU's TF32 peak
_FLOP_PER_EDGE = {"gemnet_oc_s": (62e6, 42e6), "gemnet_oc_l": (410e6, 298e6)}  # with, without direct forces


class Size(NamedTuple):
    """Mean structure of a data set."""

    atoms: float
    periodic: bool = False
    neighbors: int = 30

    @property
    def edges(self) -> float:
        """Directed main edges."""
        return self.atoms * (31.0 if self.periodic else min(self.atoms - 1, self.neighbors))


UPSTREAM_SIZES = {
    "ani1x": Size(15), "transition1x": Size(14), "oc20": Size(73, True), "oc22": Size(80, True),
}  # fmt: skip
# Mean structure, how forces are made: direct, gradient or none.
DOWNSTREAM_SIZES = {
    "rmd17:aspirin": (Size(21, neighbors=100), "gradient"),
    "md22:Ac-Ala3-NHMe": (Size(42), "direct"),
    "spice:solvated_amino_acids": (Size(87), "gradient"),
    "qm9:U_0": (Size(18), "none"),
    "qm9:delta_eps": (Size(18), "none"),
    "qmof": (Size(109, True), "none"),
    **{f"matbench:phonons/{fold}": (Size(8, True), "none") for fold in range(5)},  # atoms: a guess, small cells
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step of a chain."""

    steps: int  # optimiser steps
    structures: int  # seen in training
    flop: float  # estimate; nan for networks without a count

    @property
    def gpu_hours(self) -> float:
        """Estimate at RATE."""
        return self.flop / RATE / 3600

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.steps + other.steps, self.structures + other.structures, self.flop + other.flop)

    def text(self) -> str:
        """One line."""
        if self.flop != self.flop:
            return f"{self.steps:,} steps, {self.structures:,} structures; no arithmetic count for this network"
        return (
            f"{self.steps:,} steps, {self.structures:,} structures; estimate {self.flop:.1e} FLOP, "
            f"{self.gpu_hours:.3g} GPU hours at an assumed {RATE / 1e12:g} TFLOP/s"
        )


def training_cost(model: str, sizes: list[tuple[int, Size]], steps: int, forces: str) -> Cost:
    """Cost of a training run.

    Args:
      sizes: (structures seen, mean structure) of each data set.
      forces: "direct", "gradient" or "none".
    """
    structures = sum(count for count, _ in sizes)
    edges = sum(count * size.edges for count, size in sizes)
    with_branch, without = _FLOP_PER_EDGE.get(model, (float("nan"),) * 2)
    per_edge = with_branch if forces == "direct" else without
    return Cost(steps, structures, edges * per_edge * (6 if forces == "gradient" else 3))

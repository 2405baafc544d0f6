"""Where each of several properties stands in the labels and predictions of a batch.

Properties of structures share one array [n_graph, P], those of atoms another [n_node, Q].
"""

from collections.abc import Sequence
from typing import NamedTuple

ATOM, DIPOLE = "atom", "dipole"  # ways to combine atoms' values, beside those of a scalar: not at all; see `dipole`


class Place(NamedTuple):
    """Columns of one property.

    Attributes:
      per_atom: whether it has a row per atom.
      columns: of its array.
    """

    per_atom: bool
    columns: slice


def places(reductions: Sequence[str]) -> tuple[Place, ...]:
    """The place of each property; `reductions` say how it follows from one number per atom.

    Args:
      reductions: "atom" (one column per atom), "dipole" (three columns), or one of
        `models.common.reductions.REDUCTIONS` (one column).

    Example:
      >>> places(["sum", "atom", "dipole"])[2].columns
      slice(1, 4, None)
    """
    found, ends = [], {True: 0, False: 0}
    for reduction in reductions:
        per_atom = reduction == ATOM
        first = ends[per_atom]
        ends[per_atom] = first + (3 if reduction == DIPOLE else 1)
        found.append(Place(per_atom, slice(first, ends[per_atom])))
    return tuple(found)


def widths(reductions: Sequence[str]) -> tuple[int, int]:
    """(P, Q): the columns of properties of structures and of atoms."""
    n_atom = sum(reduction == ATOM for reduction in reductions)
    n_dipole = sum(reduction == DIPOLE for reduction in reductions)
    return len(reductions) - n_atom + 2 * n_dipole, n_atom

"""Where a limit of neighbours falls inside a shell of equal distances, as it does in perfect crystals.

NumPy only. Which neighbours of such a shell are kept is decided by the order of atoms and images, so equal crystals in
different cells get different graphs. That is the published rule; here it is found, so that it can be said.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxatoms.types import Edges

SAME = 2e-6  # A, a few roundings of a float32: neighbours that differ by less are of one shell


def parted_limits(edges: Edges, distance: np.ndarray, n_node: int) -> np.ndarray:
    """[n_node, largest degree + 1] bool: a limit of so many neighbours parts a shell of the atom.

    Args:
      edges: candidates of one structure, by receiver.
      distance: [n_edge] A.
      n_node: atoms.
    """
    degree = np.bincount(edges.receivers, minlength=n_node)
    rank = np.arange(len(distance)) - np.repeat(np.cumsum(degree) - degree, degree)
    ascending = np.full((n_node, degree.max(initial=0) + 1), np.inf)
    ascending[edges.receivers, rank] = distance[np.lexsort((distance, edges.receivers))]
    parted = np.zeros(ascending.shape, bool)
    with np.errstate(invalid="ignore"):  # beyond the last neighbour: infinity less infinity
        parted[:, 1:] = np.diff(ascending, axis=1) < SAME
    return parted


def n_parted(parted: np.ndarray, limits: Sequence[int]) -> int:
    """At how many atoms one of the limits parts a shell."""
    within = [limit for limit in limits if limit < parted.shape[1]]
    return int(parted[:, within].any(axis=1).sum())


def whole_limits(parted: np.ndarray, k: int, limits_of: Callable[[int], Sequence[int]]) -> list[int]:
    """The nearest limits below and above `k` (where there is one) that part no shell.

    Args:
      limits_of: the limits of all graphs that belong to one of the main graph.
    """

    def first(values) -> list[int]:
        return next(([value] for value in values if not n_parted(parted, limits_of(value))), [])

    most = k
    while min(limits_of(most)) < parted.shape[1]:
        most *= 2
    return first(range(k - 1, 0, -1)) + first(range(k + 1, most + 1))

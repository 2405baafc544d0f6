"""Candidate edges that survive many small moves of the atoms: a neighbour list with a skin.

NumPy only. The list holds every pair within cutoff + skin; while no atom has moved by more than half the skin and
the cell is the same, the pairs within the cutoff are all in it, so only their lengths are computed anew.
"""

import numpy as np

from jaxatoms.graphs.neighbors import MIN_SQUARED_DISTANCE, candidate_edges
from jaxatoms.types import Edges


class SkinList:
    """Candidate edges of one structure.

    Args:
      cutoff: A.
      skin: A; 0 searches anew every time.
    """

    def __init__(self, cutoff: float, skin: float = 1.0):
        if skin < 0:
            raise ValueError(f"skin must not be negative, got {skin}")
        self.cutoff, self.skin, self.n_search = cutoff, skin, 0
        self._key: tuple | None = None
        self._positions = np.zeros((0, 3))
        self._edges: Edges | None = None

    def edges(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[Edges, np.ndarray]:
        """What `candidate_edges` gives for this structure: edges by (receiver, sender, shift), lengths in float32."""
        positions = np.asarray(positions, np.float64)
        if self._edges is None or self._stale(positions, cell, pbc):
            self._search(positions, cell, pbc)
        assert self._edges is not None
        edges = self._edges
        vectors = positions[edges.receivers] - positions[edges.senders] + edges.shifts @ np.asarray(cell, np.float64)
        d2 = np.sum(vectors**2, axis=1)
        # The rules of `candidate_edges` at both ends.
        near = (d2 > MIN_SQUARED_DISTANCE) & (d2 <= self.cutoff**2) if np.any(pbc) else d2 < self.cutoff**2
        return Edges(*(field[near] for field in edges)), np.sqrt(d2[near]).astype(np.float32)

    def _stale(self, positions, cell, pbc) -> bool:
        if self._key != _key(cell, pbc) or len(positions) != len(self._positions):
            return True
        moved = np.sum((positions - self._positions) ** 2, axis=1).max(initial=0)
        return bool(moved >= (self.skin / 2) ** 2)

    def _search(self, positions, cell, pbc):
        n = np.array([len(positions)])
        cutoff = np.array([self.cutoff + self.skin])
        self._edges, _ = candidate_edges(positions, n, np.asarray(cell)[None], np.asarray(pbc)[None], cutoff)
        self._key, self._positions = _key(cell, pbc), positions.copy()
        self.n_search += 1


def _key(cell, pbc) -> tuple:
    return np.asarray(cell, np.float64).tobytes(), np.asarray(pbc, bool).tobytes()

"""Which graphs a backbone reads, as a value: corpora, predictions and calculators build graphs through it alone.

NumPy only: data workers import this module without importing JAX.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxatoms.graphs.dropout import StructureKeys, uniform
from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.types import Edges, Graphs, SystemBatch


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """The graphs of a backbone and how they are cut from the candidate edges within the cutoff.

    Attributes:
      name: of this kind of graphs; results that depend on the graphs record it.
      limits: K -> neighbour limits of every graph, where the main graph has the limit K (which comes first).
      cut: (candidate edges sorted by (receiver, sender, shift), their lengths in A, n_node [n_graph], tags or None,
        limits [n_graph, n_limit]) -> `Graphs`; graphs that the backbone does not read have no edges.
    """

    name: str
    limits: Callable[[int], tuple[int, ...]]
    cut: Callable[[Edges, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray], Graphs]

    def build(
        self,
        positions: np.ndarray,
        n_node: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        tags: np.ndarray | None,
        cutoff: np.ndarray,
        limits: np.ndarray,
        rng: np.random.Generator | StructureKeys | None = None,
        edge_dropout: float = 0.0,
    ) -> Graphs:
        """The graphs of a batch; every edge list is sorted by (receiver, sender, shift).

        Dropout removes directed candidates before the cuts, which then refill from farther away.

        Args:
          positions: [sum n_node, 3] A.
          n_node: [n_graph] atoms per structure.
          cell: [n_graph, 3, 3] A, rows are lattice vectors.
          pbc: [n_graph, 3] bool.
          tags: [sum n_node] 0 sub-surface, 1 surface, 2 adsorbate; None means all 2.
          cutoff: [n_graph] A.
          limits: [n_graph, n_limit] neighbour limits, see the attribute `limits`.
          rng: generator or keys of the structures, needed for dropout only.
          edge_dropout: probability with which each directed candidate is removed.

        Raises:
          ValueError: edge dropout without `rng`.
        """
        edges, distance = candidate_edges(positions, n_node, cell, pbc, cutoff)
        if edge_dropout > 0:
            if rng is None:
                raise ValueError("edge_dropout needs rng")
            kept = np.flatnonzero(uniform(rng, edges.receivers, n_node) >= edge_dropout)
            edges, distance = Edges(*(field[kept] for field in edges)), distance[kept]
        return self.cut(edges, distance, n_node, tags, limits)

    def build_batch(self, systems: SystemBatch, cutoff, max_neighbors, rng=None, edge_dropout: float = 0.0) -> Graphs:
        """`build` of concatenated structures.

        Args:
          cutoff: A, one for all structures or [n_graph].
          max_neighbors: K of the main graph, one for all structures or [n_graph].
        """
        s, cutoffs = systems, np.broadcast_to(cutoff, len(systems.n_node))
        limits = self.limits_of(max_neighbors, len(systems.n_node))
        return self.build(s.positions, s.n_node, s.cell, s.pbc, s.tags, cutoffs, limits, rng, edge_dropout)

    def limits_of(self, max_neighbors, n_graph: int) -> np.ndarray:
        """[n_graph, n_limit] limits that follow from K of the main graph, one for all structures or [n_graph]."""
        return np.array([self.limits(int(k)) for k in np.broadcast_to(max_neighbors, n_graph)])

"""The single graph of EquiformerV2: the k nearest neighbours of every atom, in the layout of `Graphs`.

NumPy only: data workers import this module without importing JAX.
"""

import numpy as np

from jaxatoms.graphs.batch import BatchBudget
from jaxatoms.graphs.dropout import StructureKeys, uniform
from jaxatoms.graphs.gemnet_graphs import cut_nearest
from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.types import Edges, Graphs, SystemBatch


def build_nearest_graphs(
    positions: np.ndarray,
    n_node: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    tags: np.ndarray | None,
    cutoff: np.ndarray,
    max_neighbors: np.ndarray,
    rng: np.random.Generator | StructureKeys | None = None,
    edge_dropout: float = 0.0,
) -> Graphs:
    """`Graphs` whose `main` holds, per receiver, the nearest candidates by (distance, sender, image offset).

    Strictly k, not symmetrised. `swap` and the other three graphs are empty. Arguments as `build_graphs`, except
    max_neighbors: [n_graph] or [n_graph, ...], of which the first column counts; `tags` play no part.
    Source: graphs of EquiformerV2 as run by the released code of arXiv 2502.11085 (specification 3.2).
    """
    del tags
    edges, distance = candidate_edges(positions, n_node, cell, pbc, cutoff)
    if edge_dropout > 0:
        if rng is None:
            raise ValueError("edge_dropout needs rng")
        kept = np.flatnonzero(uniform(rng, edges.receivers, n_node) >= edge_dropout)
        edges, distance = Edges(*(field[kept] for field in edges)), distance[kept]
    return cut_nearest_graph(edges, distance, n_node, max_neighbors)


def cut_nearest_graph(edges: Edges, distance: np.ndarray, n_node: np.ndarray, max_neighbors: np.ndarray) -> Graphs:
    """`build_nearest_graphs` from candidate edges that are known already, sorted by (receiver, sender, shift)."""
    limit = np.asarray(max_neighbors).reshape(len(n_node), -1)[:, :1]
    (main,) = cut_nearest(edges, distance, np.repeat(limit, n_node, axis=0))
    none = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32))
    return Graphs(main, np.zeros(0, np.int32), none, none, none)


def nearest_budget(systems: SystemBatch, graphs: Graphs, spare: float = 0.0) -> BatchBudget:
    """The smallest budget of one batch, its counts (not its degrees) enlarged by the fraction `spare`."""

    def degree(nodes: np.ndarray) -> int:
        return max(1, int(np.bincount(nodes, minlength=1).max(initial=0)))

    def grown(count: int) -> int:
        return max(1, int(np.ceil(count * (1 + spare))))

    unused = {f"{kind}_{name}": 1 for kind in "nk" for name in ("a2ee2a", "qint")}
    return BatchBudget(
        n_graph=len(systems.n_node) + 1,
        n_node=grown(int(systems.n_node.sum())) + 1,
        n_main=grown(len(graphs.main.senders)),
        n_a2a=1,
        n_per_graph=max(1, int(systems.n_node.max(initial=1))),
        k_main=degree(graphs.main.receivers),
        k_main_out=degree(graphs.main.senders),
        k_a2ee2a_out=1,
        k_qint_out=1,
        **unused,
    )

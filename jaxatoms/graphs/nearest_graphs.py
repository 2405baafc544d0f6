"""The single graph of EquiformerV2: the k nearest neighbours of every atom, in the layout of `Graphs`.

NumPy only: data workers import this module without importing JAX.
"""

import numpy as np

from jaxatoms.graphs.batch import BatchBudget
from jaxatoms.graphs.gemnet_graphs import cut_nearest
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.types import Edges, Graphs, SystemBatch


def cut_nearest_graph(
    edges: Edges, distance: np.ndarray, n_node: np.ndarray, tags: np.ndarray | None, max_neighbors: np.ndarray
) -> Graphs:
    """`Graphs` whose `main` holds, per receiver, the nearest candidates by (distance, sender, image offset).

    Strictly k, not symmetrised. `swap` and the other three graphs are empty.

    Args:
      edges: candidates, sorted by (receiver, sender, shift).
      distance: [n_edge] A.
      n_node: [n_graph] atoms per structure.
      tags: play no part.
      max_neighbors: [n_graph] or [n_graph, ...], of which the first column counts.

    Source: released code of arXiv 2502.11085 (docs/reference/equiformer_v2.md, Neighbours).
    """
    del tags
    limit = np.asarray(max_neighbors).reshape(len(n_node), -1)[:, :1]
    (main,) = cut_nearest(edges, distance, np.repeat(limit, n_node, axis=0))
    none = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32))
    return Graphs(main, np.zeros(0, np.int32), none, none, none)


def own_limit(k: int) -> tuple[int]:
    """The one limit of the one graph."""
    return (k,)


NEAREST_GRAPH = GraphSpec("nearest", own_limit, cut_nearest_graph)


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

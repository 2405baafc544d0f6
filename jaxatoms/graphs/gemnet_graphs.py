"""The four nested graphs of GemNet-OC, cut from one list of candidate edges for a whole batch.

NumPy only: data workers import this module without importing JAX.
Source: GemNet-OC reference as run by JMP (`goc_graph.py`, `backbone.py`); tie rule our own, see `ranks`.
"""

import numpy as np

from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.types import Edges, Graphs


def neighbor_limits(k: int) -> tuple[int, int, int, int]:
    """Neighbour limits (main, a2ee2a, qint, a2a), in GemNet-OC's fixed proportions of the main limit `k`."""
    return k, int(20 * k / 30), int(8 * k / 30), int(1000 * k / 30)


def cut_graphs(
    edges: Edges, distance: np.ndarray, n_node: np.ndarray, tags: np.ndarray | None, max_neighbors: np.ndarray
) -> Graphs:
    """The four graphs, from candidate edges sorted by (receiver, sender, shift).

    a2a holds the nearest of the candidates per receiver; main, a2ee2a and qint the nearest of a2a. qint keeps
    edges with an end tagged 1 or 2. main keeps, of the two directions of a pair, the decision of the one
    with sender < receiver, and then holds both directions; its degree is not bounded by its limit.

    Args:
      distance: [n_edge] A.
      n_node: [n_graph] atoms per structure.
      tags: [sum n_node] 0 sub-surface, 1 surface, 2 adsorbate; None means all 2.
      max_neighbors: [n_graph, 4] limits of (main, a2ee2a, qint, a2a), see `neighbor_limits`.
    """
    limits = np.asarray(max_neighbors).reshape(-1, 4)
    limits = np.repeat(np.minimum(limits, limits[:, 3:]), n_node, axis=0)  # every graph is a part of a2a
    main_unsym, a2ee2a, qint, a2a = cut_nearest(edges, distance, limits)
    main, swap = symmetrise(main_unsym, int(np.sum(n_node)))
    return Graphs(main, swap, a2ee2a, _filter_tags(qint, tags), a2a)


GEMNET_GRAPHS = GraphSpec("gemnet_oc", neighbor_limits, cut_graphs)


def count_edges(graphs: Graphs, n_node: np.ndarray) -> dict[str, np.ndarray]:
    """Edges per structure of each graph: `{"main": [n_graph], "a2ee2a": ..., "qint": ..., "a2a": ...}`."""
    ends = np.concatenate([[0], np.cumsum(n_node)])
    return {
        name: np.diff(np.searchsorted(getattr(graphs, name).receivers, ends))
        for name in ("main", "a2ee2a", "qint", "a2a")
    }


def cut_nearest(edges: Edges, distance: np.ndarray, limits: np.ndarray) -> list[Edges]:
    """The nearest `limits[receiver, i]` edges of each receiver, for each column i of `limits`."""
    degree = np.bincount(edges.receivers, minlength=len(limits))
    cuts = degree[:, None] > limits
    if not cuts.any():
        return [edges] * limits.shape[1]
    # Ranks beyond the largest limit that removes anything are never asked for.
    depth = np.where(cuts, limits, 0).max(axis=1)
    rank = ranks(edges, distance, degree, depth)
    # All cuts that remove anything are parts of one small list; only that one is found in the long list.
    cutting = np.asarray(cuts.any(axis=0))
    near, near_rank = _nearest(edges, rank, limits[:, cutting].max(axis=1))
    return [
        _nearest(near, near_rank, limits[:, i])[0] if cutting[i] else edges for i in range(limits.shape[1])
    ]


def _nearest(edges: Edges, rank: np.ndarray, limit: np.ndarray) -> tuple[Edges, np.ndarray]:
    """The edges with `rank < limit[receiver]`, and their ranks."""
    same = limit.min() == limit.max()
    kept = np.flatnonzero(rank < (limit[0] if same else limit[edges.receivers]))
    return _take(edges, kept), rank[kept]


def ranks(edges: Edges, distance: np.ndarray, degree: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Position of each edge among its receiver's edges by (distance, sender, image offset -shift).

    Exact for ranks below `depth[receiver]`; the receiver's other edges get at least `depth[receiver]`, so
    that a limit up to the depth drops them and a limit beyond the degree keeps them.

    The reference sorts by distance alone and leaves ties to chance. With ours the lexicographically
    negative image comes first, which is the one that `symmetrise` lets decide for itself and its mirror.

    Args:
      edges: n_edge edges sorted by (receiver, sender, shift).
      distance: [n_edge] float32, A.
      degree: [n_node] edges per receiver.
      depth: [n_node] how many ranks are needed.
    """
    rank = np.repeat(depth.astype(np.int32), degree)
    start = np.cumsum(degree) - degree
    # A non-negative float32 sorts like its bits, so one integer can hold (distance, sender).
    sender_bits = len(degree).bit_length()
    key = distance.view(np.uint32).astype(np.uint64)
    key <<= np.uint64(sender_bits)
    key |= edges.senders.astype(np.uint64)
    # Receivers of similar degree form padded rows: NumPy sorts many short rows faster than one long list.
    width_bits = np.ceil(np.log2(np.maximum(degree, 1))).astype(int)
    for bits in np.unique(width_bits[depth > 0]):
        if 31 + sender_bits + bits > 64:
            raise ValueError(f"too many edges at one atom ({2**bits}) for a batch of {len(degree)} atoms")
        rows = np.flatnonzero((width_bits == bits) & (depth > 0))
        _rank_rows(rank, key, start[rows], degree[rows], depth[rows].max(), bits)
    return rank


def _rank_rows(
    rank: np.ndarray, key: np.ndarray, start: np.ndarray, degree: np.ndarray, depth: int, bits: int
) -> None:
    """Writes the first `depth` ranks of receivers with at most 2**bits edges into `rank`."""
    column = np.arange(degree.max())
    index = start[:, None] + column
    row_key = key.take(index, mode="clip")
    row_key <<= np.uint64(bits)
    # Edges come by ascending shift, that is descending offset: the reversed column breaks the tie.
    row_key |= (2**bits - 1 - column).astype(np.uint64)
    row_key[column >= degree[:, None]] = np.iinfo(np.uint64).max
    row_key.sort(axis=1)
    nearest = row_key[:, :depth]
    last = np.uint64(2**bits - 1)
    edge = start[:, None] + (last - (nearest & last)).astype(np.int64)
    order = np.broadcast_to(np.arange(edge.shape[1], dtype=np.int32), edge.shape)
    real = order < degree[:, None]
    rank[edge[real]] = order[real]


def symmetrise(edges: Edges, n_node: int) -> tuple[Edges, np.ndarray]:
    """Keeps one direction of every pair, adds its counter-edge, and returns the graph and `swap`.

    Kept are edges with sender < receiver, and self-images with a lexicographically positive shift (a
    negative offset of the sender). The counter-edge of (s, t, shift) is (t, s, -shift).
    Source: symmetrisation of the main graph in the GemNet-OC reference (JMP).

    Args:
      edges: sorted by (receiver, sender, shift).
      n_node: atoms in the batch.

    Returns:
      The graph, sorted by (receiver, sender, shift), and swap [n_edge] int32 with
      `senders[swap] == receivers`, `shifts[swap] == -shifts`, `swap[swap] == arange(n_edge)`.
    """
    is_self = edges.senders == edges.receivers
    deciding = (edges.senders < edges.receivers) | (is_self & _is_lexicographically_positive(edges.shifts))
    kept = _take(edges, np.flatnonzero(deciding))
    at_kept, at_counter = _merge_positions(kept, n_node)
    n_kept = len(at_kept)
    swap = np.empty(2 * n_kept, np.int32)
    swap[at_kept], swap[at_counter] = at_counter, at_kept
    source = np.empty(2 * n_kept, np.int32)  # position in [kept, counter-edges] of each edge of the graph
    source[at_kept], source[at_counter] = np.arange(n_kept), np.arange(n_kept, 2 * n_kept)
    senders = np.concatenate([kept.senders, kept.receivers])
    receivers = np.concatenate([kept.receivers, kept.senders])
    shifts = np.concatenate([kept.shifts, -kept.shifts])
    return _take(Edges(senders, receivers, shifts), source), swap


def _merge_positions(kept: Edges, n_node: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each kept edge, and the counter-edge of each kept edge, stands in the symmetrised order.

    The edges of a receiver stand in four runs: kept with a smaller sender, counter-edges that are
    self-images (negative shift), kept self-images, counter-edges with a larger sender. So the counts
    per receiver say how many edges of the other kind come before one.
    """
    senders, receivers = kept.senders, kept.receivers
    index = np.arange(len(senders))
    order = _order_counter_edges(kept, n_node)
    n_kept = np.bincount(receivers, minlength=n_node)
    n_counter = np.bincount(senders, minlength=n_node)
    is_self = senders == receivers
    n_self = np.bincount(receivers[is_self], minlength=n_node)
    self_before = np.where(is_self, n_self[receivers], 0)
    at_kept = index + (np.cumsum(n_counter) - n_counter)[receivers] + self_before
    at_counter = np.cumsum(n_kept)[senders] - self_before
    at_counter[order] += index
    return at_kept, at_counter


def _order_counter_edges(kept: Edges, n_node: int) -> np.ndarray:
    """The order that sorts the counter-edges of `kept` by (receiver, sender, shift)."""
    # Ascending shift of the counter-edge is descending position among the kept edges of one pair.
    node_bits, index_bits = n_node.bit_length(), max(len(kept.senders).bit_length(), 1)
    if 2 * node_bits + index_bits > 63:
        raise ValueError(f"batch too large: {n_node} atoms with {len(kept.senders)} pairs")
    last = 2**index_bits - 1
    key = kept.senders.astype(np.int64)
    key <<= node_bits
    key |= kept.receivers
    key <<= index_bits
    key |= last - np.arange(len(key))
    key.sort()
    return last - (key & last)


def _is_lexicographically_positive(shifts: np.ndarray) -> np.ndarray:
    """[n] bool: the first non-zero component of each row of `shifts` [n, 3] is positive."""
    x, y, z = shifts.T
    return (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))


def _filter_tags(edges: Edges, tags: np.ndarray | None) -> Edges:
    """Keeps edges of which one end is a surface or adsorbate atom."""
    if tags is None:
        return edges
    free = np.asarray(tags) > 0
    if free.all():
        return edges
    return _take(edges, np.flatnonzero(free[edges.senders] | free[edges.receivers]))


def _take(edges: Edges, index: np.ndarray) -> Edges:
    """The edges at `index`, in that order."""
    return Edges(*(field.take(index, axis=0) for field in edges))

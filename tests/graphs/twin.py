"""Brute-force twins of the neighbour code: plain loops over atoms and images, one structure at a time."""

import itertools

import numpy as np

from jaxatoms.types import Edges

Edge = tuple[int, int, tuple[int, int, int]]  # sender, receiver, shift of the receiver


def candidates(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, reach: int = 8
) -> list[tuple[Edge, np.float32]]:
    """All edges with their lengths, sorted by (receiver, sender, shift); shifts up to `reach` per axis."""
    positions, cell = np.asarray(positions, float), np.asarray(cell, float)
    shifts = list(itertools.product(*(range(-reach, reach + 1) if p else (0,) for p in pbc)))
    moves = np.array(shifts) @ np.where(np.asarray(pbc)[:, None], cell, 0.0)
    edges = []
    for receiver, sender in itertools.product(range(len(positions)), repeat=2):
        d2 = ((positions[receiver] - positions[sender] + moves) ** 2).sum(axis=1)
        for k in np.flatnonzero(d2 < cutoff**2 + 1.0):
            inside = 1e-4 < d2[k] <= cutoff**2 if any(pbc) else sender != receiver and d2[k] < cutoff**2
            if inside:
                edges.append(((sender, receiver, shifts[k]), np.float32(np.sqrt(d2[k]))))
    return edges


def nearest(edges: list[tuple[Edge, np.float32]], limit: int) -> list[tuple[Edge, np.float32]]:
    """The `limit` nearest edges of each receiver by (distance, sender, offset), in the order given."""
    kept = set()
    for _, group in itertools.groupby(edges, key=lambda item: item[0][1]):
        by_distance = sorted(group, key=lambda item: (item[1], item[0][0], offset(item[0])))
        kept.update(edge for edge, _ in by_distance[:limit])
    return [item for item in edges if item[0] in kept]


def as_list(edges: Edges) -> list[Edge]:
    """The edges as tuples, in their order."""
    shifts = [tuple(shift) for shift in edges.shifts.tolist()]
    return list(zip(edges.senders.tolist(), edges.receivers.tolist(), shifts, strict=True))


def offset(edge: Edge) -> tuple[int, ...]:
    """The image offset of the sender, which the GemNet-OC code calls `o` (docs/reference/gemnet_oc.md, Edges)."""
    return tuple(-x for x in edge[2])


def symmetrised(edges: list[Edge]) -> list[Edge]:
    """Edges with s < t, or s == t and a negative offset, plus their counter-edges; sorted."""
    kept = [e for e in edges if e[0] < e[1] or (e[0] == e[1] and offset(e) < (0, 0, 0))]
    return in_order(kept + [(t, s, offset((s, t, shift))) for s, t, shift in kept])


def in_order(edges: list[Edge]) -> list[Edge]:
    """Sorted by (receiver, sender, shift)."""
    return sorted(edges, key=lambda e: (e[1], e[0], e[2]))


def graphs(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    tags: np.ndarray,
    cutoff: float,
    limits: tuple[int, int, int, int],
) -> dict[str, list[Edge]]:
    """The four graphs of one structure as edge lists sorted by (receiver, sender, shift)."""
    a2a = nearest(candidates(positions, cell, pbc, cutoff), limits[3])
    main, a2ee2a, qint = ([edge for edge, _ in nearest(a2a, limit)] for limit in limits[:3])
    qint = [e for e in qint if tags[e[0]] in (1, 2) or tags[e[1]] in (1, 2)]
    return {"main": symmetrised(main), "a2ee2a": a2ee2a, "qint": qint, "a2a": [edge for edge, _ in a2a]}

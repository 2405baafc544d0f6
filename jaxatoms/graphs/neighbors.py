"""Candidate edges: every directed pair of atoms (or periodic images) within the cutoff, for a whole batch.

NumPy and vesin only: data workers import this module without importing JAX.
"""

import numpy as np
import vesin

from jaxatoms.types import Edges, UnusableStructure

MIN_SQUARED_DISTANCE = 1e-4  # A^2; periodic pairs closer than this are dropped, as GemNet-OC does
# A periodic structure is searched on a dense (atom, image) grid up to this many grid points; beyond it the
# cell list of vesin, whose cost is linear in the number of atoms, takes over. 2**23 is about 130 MiB.
DENSE_GRID_LIMIT = 2**23
SAME_PLACE = 1e-4  # A; closer atoms of a molecule have no direction in float32
MAX_TRANSLATION = 15  # the model codes an atom image in one int32 (models/gemnet_oc/indices.py)


def candidate_edges(
    positions: np.ndarray, n_node: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: np.ndarray
) -> tuple[Edges, np.ndarray]:
    """All directed edges within the cutoff, sorted by (receiver, sender, shift).

    Molecules: `sender != receiver` and `d^2 < cutoff^2`. Structures with any periodic axis:
    `1e-4 < d^2 <= cutoff^2`, self-images included; atoms may lie outside the cell. `cell` rows of axes
    that are not periodic are ignored.
    Source: candidate edges of the GemNet-OC reference (JMP), but complete where it misses images of atoms
    outside the cell.

    Args:
      positions: [sum n_node, 3] A.
      n_node: [n_graph] atoms per structure.
      cell: [n_graph, 3, 3] A, rows are lattice vectors.
      pbc: [n_graph, 3] bool.
      cutoff: [n_graph] A.

    Returns:
      The edges, and their lengths [n_edge] in A: float64 arithmetic rounded once to float32.

    Raises:
      UnusableStructure: a cell without volume, one so flat that neighbours lie more than 15 cells away, or atoms of a
        molecule in one place.
    """
    positions = np.asarray(positions, np.float64)
    n_node = np.asarray(n_node, np.int64)
    pbc = np.asarray(pbc, bool).reshape(len(n_node), 3)
    cutoff = np.broadcast_to(np.asarray(cutoff, np.float64), n_node.shape)
    periodic = pbc.any(axis=1)
    if not periodic.any():
        return _molecule_edges(positions, n_node, cutoff)
    first = (np.cumsum(n_node) - n_node).astype(np.int32)
    cell = np.where(pbc[:, :, None], np.asarray(cell, np.float64), 0.0)
    inverse = _inverse_cells(cell, pbc)
    # Molecules are searched together; the periodic structures take part in it with a cutoff of zero.
    pieces = [] if periodic.all() else [_molecule_edges(positions, n_node, np.where(periodic, 0.0, cutoff))]
    for g in np.flatnonzero(periodic):
        points = positions[first[g] : first[g] + n_node[g]]
        edges, distance = _periodic_edges(points, cell[g], inverse[g], pbc[g], cutoff[g], g)
        pieces.append((Edges(edges.senders + first[g], edges.receivers + first[g], edges.shifts), distance))
    edges, distance = _concatenate(pieces)
    return (edges, distance) if periodic.all() else _sort_by_receiver(edges, distance)


def may_reach_far(cell: np.ndarray, pbc: np.ndarray, cutoff: np.ndarray) -> np.ndarray:
    """[n_graph] bool: structures whose neighbours may lie more cells away than the model can count.

    From the heights of the cells alone: what is False is sure, what is True `candidate_edges` decides.
    """
    far = np.zeros(len(cell), bool)
    own = np.flatnonzero(np.asarray(pbc).any(axis=1))
    if own.size:
        inverse = np.linalg.pinv(np.where(pbc[own][:, :, None], np.asarray(cell[own], np.float64), 0.0))
        per_cutoff = np.linalg.norm(inverse, axis=1).max(axis=1)  # 1 / the smallest height
        far[own] = cutoff[own] * per_cutoff >= MAX_TRANSLATION
    return far


def home_cells(positions: np.ndarray, n_node: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """[sum n_node, 3] int32 the periodic cell that each atom lies in: `positions - home @ cell` are inside.

    Zero along axes that are not periodic. Arguments as `candidate_edges`.
    """
    if not pbc.any():
        return np.zeros((len(positions), 3), np.int32)
    node = np.repeat(np.arange(len(n_node)), n_node)
    inverse = np.linalg.pinv(np.where(pbc[:, :, None], np.asarray(cell, np.float64), 0.0))
    return _home(np.einsum("ni,nij->nj", np.asarray(positions, np.float64), inverse[node]), pbc[node])


def _home(fractional: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    return np.where(pbc, np.floor(fractional), 0).astype(np.int32)


def _molecule_edges(
    positions: np.ndarray, n_node: np.ndarray, cutoff: np.ndarray
) -> tuple[Edges, np.ndarray]:
    """All pairs of every structure at once: row t of the pair list holds all atoms of t's structure."""
    searched = np.where(cutoff > 0, n_node, 0)
    row_length = np.repeat(searched, n_node)
    row_start = np.cumsum(row_length) - row_length
    first_node = np.repeat(np.cumsum(n_node) - n_node, n_node)
    senders = np.repeat(first_node - row_start, row_length)
    senders += np.arange(len(senders))
    d2 = np.zeros(len(senders))
    for x in np.ascontiguousarray(positions.T):  # per axis: contiguous gathers are cheaper than rows
        dx = x.take(senders)
        dx -= np.repeat(x, row_length)
        dx *= dx
        d2 += dx
    # However close, a pair of distinct atoms is an edge (the reference excludes by index only).
    keep = d2 < np.repeat(np.repeat(np.square(cutoff), n_node), row_length)
    atoms = np.flatnonzero(row_length)
    keep[row_start[atoms] + atoms - first_node[atoms]] = False
    kept = np.flatnonzero(keep)
    receivers = np.repeat(np.arange(len(row_length), dtype=np.int32), row_length)[kept]
    edges = Edges(senders[kept].astype(np.int32), receivers, np.zeros((len(kept), 3), np.int32))
    _check_apart(edges, d2[kept], n_node)
    return edges, np.sqrt(d2[kept]).astype(np.float32)


def _check_apart(edges: Edges, d2: np.ndarray, n_node: np.ndarray) -> None:
    """Refuses a molecule with two atoms in one place: the edge between them has no direction, all else becomes NaN."""
    if not len(d2) or d2.min() > SAME_PLACE**2:
        return
    edge, ends = int(np.argmin(d2)), np.cumsum(n_node)
    graph = int(np.searchsorted(ends, edges.receivers[edge], side="right"))
    first = ends[graph] - n_node[graph]
    pair = sorted(int(atoms[edge] - first) for atoms in (edges.senders, edges.receivers))
    problem = "atoms {} and {} (counted from 0) are in one place; correct the positions or leave it out"
    raise UnusableStructure(graph, problem.format(*pair))


def _inverse_cells(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Reciprocal vectors as columns [n_graph, 3, 3]; those of axes that are not periodic are zero."""
    inverse = np.linalg.pinv(cell)
    identity = np.eye(3) * pbc[:, None, :]
    bad = np.flatnonzero(~np.isclose(cell @ inverse, identity, atol=1e-6).all(axis=(1, 2)))
    if bad.size:
        problem = "its periodic lattice vectors are zero or linearly dependent; correct the cell or set pbc to false"
        raise UnusableStructure(bad[0], problem)
    return inverse


def _periodic_edges(
    points: np.ndarray, cell: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, cutoff: float, index: int
) -> tuple[Edges, np.ndarray]:
    """Candidates of the periodic structure that stands at `index` in the batch; its atoms count from 0."""
    if len(points) == 0:
        return _concatenate([])
    # Searched inside the cell, where few images are in reach however far the atoms have drifted.
    home = _home(points @ inverse, pbc)
    points = points - home @ cell
    # |r . b_k| <= cutoff |b_k| bounds the shifts, once the spread of the atoms themselves is added.
    spread = np.ptp(points @ inverse, axis=0) + 1e-6
    n_image = np.floor(spread + cutoff * np.linalg.norm(inverse, axis=0)).astype(int)
    if len(points) ** 2 * np.prod(2.0 * n_image + 1) <= DENSE_GRID_LIMIT:
        senders, receivers, shifts, d2 = _dense_search(points, cell, n_image, cutoff)
    else:
        senders, receivers, shifts, d2 = _vesin_search(points, cell, pbc, cutoff)
    farthest = int(np.abs(shifts).max(initial=0))
    if farthest > MAX_TRANSLATION:
        problem = f"neighbours within {cutoff:g} A lie {farthest} cells away, above {MAX_TRANSLATION}"
        raise UnusableStructure(index, f"{problem}; give it a larger or less oblique cell")
    shifts = shifts + home[senders] - home[receivers]
    return Edges(senders.astype(np.int32), receivers.astype(np.int32), shifts), np.sqrt(d2).astype(np.float32)


def _dense_search(
    points: np.ndarray, cell: np.ndarray, n_image: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers, shifts, squared distances from the grid of atoms times images.

    The images are laid out by (sender, shift), so that the hits come out sorted without a sort.
    """
    shifts = np.indices((2 * n_image + 1).tolist(), dtype=np.int32).reshape(3, -1).T - n_image.astype(np.int32)
    images = points[:, None] - shifts @ cell  # the sender's image has the opposite shift
    # Only images inside the bounding box of the atoms, widened by the cutoff, can be in reach of an atom.
    reach = cutoff + 1e-6
    near = ((images >= points.min(0) - reach) & (images <= points.max(0) + reach)).all(axis=-1)
    image_sender, image_shift = np.nonzero(near)
    d2 = np.zeros((len(points), len(image_sender)))
    for x, y in zip(points.T, np.ascontiguousarray(images[near].T), strict=True):
        dx = x[:, None] - y
        dx *= dx
        d2 += dx
    hit = (d2 <= cutoff**2) & (d2 > MIN_SQUARED_DISTANCE)
    flat = np.flatnonzero(hit)
    receivers = np.repeat(np.arange(len(points)), np.count_nonzero(hit, axis=1))
    column = flat - receivers * len(image_sender)
    return image_sender[column], receivers, shifts.take(image_shift[column], axis=0), d2.ravel()[flat]


def _vesin_search(
    points: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `_dense_search`, by vesin's cell list; distances recomputed so that both paths agree."""
    # One thread: the data pipeline runs several workers. The wider cutoff leaves the boundary to us.
    search = vesin.NeighborList(cutoff=cutoff + 1e-6, full_list=True, n_threads=1)
    # vesin's pair (i, j, S) means j + S - i; in a full list the receiver may be read as either end.
    pairs, shifts = search.compute(points, _fill_cell(cell, pbc), pbc, "PS")
    senders, receivers = pairs.astype(np.int64).T
    d2 = np.square(points[receivers] - (points[senders] - shifts @ cell)).sum(axis=1)
    keep = np.flatnonzero((d2 <= cutoff**2) & (d2 > MIN_SQUARED_DISTANCE))
    order = keep[np.lexsort((*shifts[keep].T[::-1], senders[keep], receivers[keep]))]
    return senders[order], receivers[order], shifts[order], d2[order]


def _fill_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Replaces the rows of axes that are not periodic by unit vectors normal to the periodic ones."""
    normals = np.linalg.svd(cell)[2][pbc.sum() :]
    filled = cell.copy()
    filled[~pbc] = normals
    return filled


def _concatenate(pieces: list[tuple[Edges, np.ndarray]]) -> tuple[Edges, np.ndarray]:
    """Joins edge lists; the empty list gives the empty graph."""
    empty = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32))
    edges, distances = zip(*(pieces or [(empty, np.zeros(0, np.float32))]), strict=True)
    return Edges(*(np.concatenate(field) for field in zip(*edges, strict=True))), np.concatenate(distances)


def _sort_by_receiver(edges: Edges, distance: np.ndarray) -> tuple[Edges, np.ndarray]:
    """Brings molecules and periodic structures, searched apart, back into the order of the batch."""
    order = np.argsort(edges.receivers, kind="stable")
    return Edges(*(field.take(order, axis=0) for field in edges)), distance[order]

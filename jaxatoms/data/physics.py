"""Whether energies, forces and positions of a data set fit together: the checks that find a wrong unit or sign."""

import hashlib
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from jaxatoms.data.store import Store
from jaxatoms.types import SystemBatch

_GROUP = 48  # frames of one molecule or crystal that are compared with each other
_RADII = np.pad(covalent_radii, (0, 128 - len(covalent_radii)), constant_values=np.nan)


class Work(NamedTuple):
    """Pairs of near frames of the same atoms in the same cell.

    Attributes:
      energy: [n] eV, energy of the second minus the first.
      work: [n] eV, what the mean forces say of it: -(F1 + F2) / 2 . (r2 - r1).
      step: [n] A, the largest displacement of an atom.
      n_node: [n].
    """

    energy: np.ndarray
    work: np.ndarray
    step: np.ndarray
    n_node: np.ndarray


def shortest_distances(batch: SystemBatch) -> tuple[np.ndarray, np.ndarray]:
    """([n_graph] A, the shortest distance of two atoms; [n_graph], the smallest ratio to their covalent radii).

    Infinite for lone atoms. Images of an atom itself are left out.
    """
    distance, ratio = np.full(len(batch.n_node), np.inf), np.full(len(batch.n_node), np.inf)
    for i, (end, n) in enumerate(zip(np.cumsum(batch.n_node), batch.n_node, strict=True)):
        if n > 1:
            rows = slice(end - n, end)
            found = _pair_lengths(batch.positions[rows], batch.cell[i], batch.pbc[i])
            radii = _RADII[batch.atomic_numbers[rows]]
            distance[i], ratio[i] = found.min(), np.nanmin(found / (radii[:, None] + radii)[np.triu_indices(n, 1)])
    return distance, ratio


def _pair_lengths(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(positions), 1)
    return np.linalg.norm(_nearest(positions[second].astype(np.float64) - positions[first], cell, pbc), axis=-1)


def _nearest(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Vectors moved by whole lattice vectors towards zero; exact for those much shorter than the cell."""
    if not pbc.any():
        return vectors
    shares = np.rint(vectors @ np.linalg.inv(cell.astype(np.float64))) * pbc
    return vectors - shares @ cell.astype(np.float64)


def force_work(store: Store, records: np.ndarray) -> Work:
    """Each frame beside its nearest one among a few dozen neighbours in the file, of the same atoms and cell."""
    groups: dict[bytes, list[int]] = {}
    batch = store.take(records)
    ends = np.cumsum(batch.n_node)
    known = ~np.isnan(batch.energy) & ~np.isnan(np.add.reduceat(batch.forces, ends - batch.n_node, axis=0)).any(axis=1)
    for i in np.flatnonzero(known):
        atoms = batch.atomic_numbers[ends[i] - batch.n_node[i] : ends[i]]
        identity = atoms.tobytes() + np.round(batch.cell[i], 3).tobytes() + batch.pbc[i].tobytes()
        groups.setdefault(hashlib.blake2b(identity, digest_size=12).digest(), []).append(int(i))
    found: list[tuple[float, float, float, int]] = []
    for group in groups.values():
        for first in range(0, len(group), _GROUP):
            found += _nearest_pairs(batch, ends, group[first : first + _GROUP])
    return Work(*np.array(found, np.float64).reshape(-1, 4).T)


def _nearest_pairs(batch: SystemBatch, ends: np.ndarray, group: list[int]) -> list[tuple[float, float, float, int]]:
    n, cell, pbc = int(batch.n_node[group[0]]), batch.cell[group[0]], batch.pbc[group[0]]
    positions = np.stack([batch.positions[ends[i] - n : ends[i]] for i in group]).astype(np.float64)
    forces = np.stack([batch.forces[ends[i] - n : ends[i]] for i in group]).astype(np.float64)
    pairs = set()
    for a in range(len(group)):
        away = np.square(_nearest(positions - positions[a], cell, pbc)).sum(axis=(1, 2))
        away[away < 1e-12] = np.inf
        b = int(np.argmin(away))
        if np.isfinite(away[b]):
            pairs.add((min(a, b), max(a, b)))
    out = []
    for a, b in sorted(pairs):
        step = _nearest(positions[b] - positions[a], cell, pbc)
        work = -0.5 * float(((forces[a] + forces[b]) * step).sum())
        energy = float(batch.energy[group[b]] - batch.energy[group[a]])
        out.append((energy, work, float(np.linalg.norm(step, axis=1).max()), n))
    return out

"""Whether energies, forces and positions of a data set fit together: the checks that find a wrong unit or sign.

Thresholds were set on real samples (molecular dynamics, relaxations, rattled and compressed crystals, reactions), none
of which may warn.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.readers.checks import FREE_ATOM_ENERGY
from jaxatoms.data.statistics import Finding
from jaxatoms.data.store import Store
from jaxatoms.types import SystemBatch

SAMPLE = 2000  # records looked at
_SHORT, _SHORT_RATIO = 0.5, 0.3  # A, and of the sum of covalent radii; crystals at 1 TPa have 0.32
_LONG_RATIO = 1.4  # bonds have 0.8 to 1.1
_NOBLE = (2, 10, 18, 36, 54, 86)
_NEAR = 0.3  # A; the trapezoid rule tells the work between nearer frames within a few per cent
_GROUP = 48  # frames of one molecule or crystal that are compared with each other
_HARTREE, _RYDBERG, _KCAL, _KJ, _BOHR = 27.2114, 13.6057, 23.0605, 96.4853, 0.529177
_ENERGY_UNITS = {1 / _HARTREE: "Hartree", 1 / _RYDBERG: "Rydberg", _KCAL: "kcal/mol", _KJ: "kJ/mol"}
_SLOPES = _ENERGY_UNITS | {
    _HARTREE: "forces in Hartree/A", _RYDBERG: "forces in Rydberg/A", 1 / _KCAL: "forces in kcal/mol/A",
    1 / _KJ: "forces in kJ/mol/A", _BOHR: "positions in bohr", 1 / _BOHR: "forces per bohr",
    _HARTREE / _BOHR: "forces in Hartree/bohr", _RYDBERG / _BOHR: "forces in Rydberg/bohr",
}  # fmt: skip
_RADII = np.pad(covalent_radii, (0, N_ELEMENT - len(covalent_radii)), constant_values=np.nan)


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


def physics_findings(store: Store) -> list[Finding]:
    """The checks, each with what it looked at: distances, energies against free atoms and sizes, force work."""
    n = len(store)
    records = np.arange(n) if n <= SAMPLE else np.sort(np.random.RandomState(0).choice(n, SAMPLE, replace=False))
    batch, counts = store.take(records), store.element_counts(records)
    found = [_distances(batch, records), _free_atoms(batch.energy, counts), _sizes(batch.energy, counts)]
    return [finding for finding in [*found, _forces_and_energies(force_work(store, records))] if finding]


def _distances(batch: SystemBatch, records: np.ndarray) -> Finding | None:
    what = "shortest distance"
    distance, ratio = shortest_distances(batch)
    several = np.isfinite(distance)
    if not several.any():
        return None
    i = int(np.argmin(distance))
    text = f"{distance[i]:.3g} A (record {records[i]}; {several.sum()} structures looked at)"
    if distance[i] < _SHORT or np.nanmin(ratio) < _SHORT_RATIO:
        n_short = int(((distance < _SHORT) | (ratio < _SHORT_RATIO)).sum())
        return Finding("warning", what, f"{text}: {n_short} structures have atoms (nearly) in one place")
    if np.nanmedian(ratio[several]) > _LONG_RATIO and not np.isin(batch.atomic_numbers, _NOBLE).any():
        return Finding("warning", what, f"{text}: atoms are farther apart than bonds; positions may be in bohr")
    return Finding("ok", what, text)


def _free_atoms(energy: np.ndarray, counts: np.ndarray) -> Finding | None:
    """Total energies of all-electron methods are a few per cent below the sum of the free atoms."""
    what, table = "energy over that of the free atoms", np.full(N_ELEMENT, np.nan)
    table[list(FREE_ATOM_ENERGY)] = list(FREE_ATOM_ENERGY.values())
    known = (counts[:, np.isnan(table)].sum(axis=1) == 0) & ~np.isnan(energy) & (counts[:, 2:].sum(axis=1) > 0)
    if not known.any():
        return None
    ratio = energy[known] / (counts[known] @ np.nan_to_num(table))
    n_node = counts[known].sum(axis=1)
    text = f"{np.median(ratio):.4g} ({known.sum()} structures looked at)"
    for factor, unit in _ENERGY_UNITS.items():
        if _is_one(ratio / factor):
            return Finding("warning", what, f"{text}: energies seem to be in {unit}, not in eV")
    if _is_one(ratio * n_node) and not _is_one(ratio):
        return Finding("warning", what, f"{text}: energies seem to be per atom, not of the structure")
    return Finding("ok", what, text if _is_one(ratio) else f"{text}: no all-electron total energies, nothing to tell")


def _is_one(ratio: np.ndarray) -> bool:
    """Whether nearly all lie where total energies in eV lie."""
    return bool(np.mean((ratio > 0.97) & (ratio < 1.06)) > 0.9)


def _sizes(energy: np.ndarray, counts: np.ndarray) -> Finding | None:
    """A crystal's energy grows with its cell: compares cells of one composition that differ in size."""
    known = ~np.isnan(energy)
    sizes, energy = counts[known].sum(axis=1), energy[known]
    reduced = counts[known] // np.gcd.reduce(counts[known], axis=1)[:, None] if known.any() else counts[known]
    exponents = []
    for group in _groups(reduced):
        own, total = sizes[group], energy[group]
        small, large = own.min(), own.max()
        if large < 1.5 * small:
            continue
        means = [total[own == size].mean() for size in (small, large)]
        spread = max(total[own == size].std() for size in (small, large))
        if means[0] * means[1] > 0 and spread < 0.1 * min(np.abs(means)):
            exponents.append(np.log(means[1] / means[0]) / np.log(large / small))
    if not exponents:
        return None
    text = f"energy grows with atoms to the power {np.median(exponents):.2f} ({len(exponents)} compositions looked at)"
    if np.median(np.abs(exponents)) < 0.3:
        return Finding("warning", "cells of different size", f"{text}: energies seem to be per atom")
    return Finding("ok", "cells of different size", text)


def _groups(rows: np.ndarray) -> list[np.ndarray]:
    """Indices of equal rows."""
    if not len(rows):
        return []
    order = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return [np.flatnonzero(order == code) for code in range(order.max() + 1)]


def _forces_and_energies(pairs: Work) -> Finding | None:
    """Between near frames the energy changes by the work of the forces, with the same sign and unit."""
    what, near = "energy change over force work", pairs.step < _NEAR
    energy, work = pairs.energy[near], pairs.work[near]
    norm = np.sqrt(np.square(energy).sum() * np.square(work).sum())
    if not len(near):
        return None
    if near.sum() < 5 or not norm > 0:
        return Finding("ok", what, f"cannot tell: {near.sum()} pairs of frames nearer than {_NEAR} A")
    correlation = float((energy * work).sum() / norm)
    ratio = float(np.median(energy[work != 0] / work[work != 0]))
    text = f"{ratio:.3g} (correlation {correlation:.2f}; {near.sum()} pairs of near frames looked at)"
    if abs(correlation) >= 0.9:
        meaning = _meaning(ratio, pairs.n_node[near])
        return Finding("warning" if meaning else "ok", what, f"{text}{meaning}")
    if abs(correlation) < 0.5 and near.sum() >= 10:
        return Finding("warning", what, f"{text}: energies and forces do not belong together")
    return Finding("ok", what, f"{text}: cannot tell")


def _meaning(ratio: float, n_node: np.ndarray) -> str:
    """What a ratio away from 1 points to."""
    if 0.7 < ratio < 1.4:
        return ""
    if -1.4 < ratio < -0.7:
        return ": the forces have the sign of the gradient"
    for factor, unit in _SLOPES.items():
        if abs(abs(ratio) / factor - 1) < 0.1:
            sign = " and the sign of the gradient" if ratio < 0 else ""
            return f": {unit if unit.startswith(('forces', 'positions')) else f'energies in {unit}'}{sign}"
    if abs(ratio * np.median(n_node) - 1) < 0.2:
        return ": energies per atom"
    return ": energies and forces are in units that do not belong together"


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

"""What a user checks of a data set first: counts, sizes, energies, forces, duplicates; and whether it can be right."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.readers.structures import PARTLY_FIXED
from jaxatoms.data.references import LinearReference
from jaxatoms.data.store import Store
from jaxatoms.types import SystemBatch

SAMPLE = 200_000  # records looked at, unless all are asked for
_RECORDS_PER_CHUNK = 8192
_PLOTTED = 50_000  # values kept for histograms


@dataclasses.dataclass
class Moments:
    """Count, mean, standard deviation and range of the values added so far, and some of them for a histogram."""

    count: int = 0
    mean: float = float("nan")
    std: float = float("nan")
    low: float = float("inf")
    high: float = float("-inf")
    sample: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))

    def add(self, values: np.ndarray) -> None:
        """Takes in values of any shape; NaN are left out."""
        values = np.asarray(values, np.float64).reshape(-1)
        values = values[~np.isnan(values)]
        if not len(values):
            return
        n, mean, std = self.count, np.nan_to_num(self.mean), np.nan_to_num(self.std)
        total = n + len(values)
        shift = values.mean() - mean
        # Pairwise update: sums of squares would cancel for total energies near -1e4 eV.
        squares = n * std**2 + len(values) * values.var() + shift**2 * n * len(values) / total
        self.count, self.std = total, float(np.sqrt(squares / total))
        self.mean = float(mean + shift * len(values) / total)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if len(self.sample) < _PLOTTED:
            self.sample = np.concatenate([self.sample, values[:: max(1, len(values) // 2000)]])


@dataclasses.dataclass
class Statistics:
    """Of the records looked at. Energies eV, forces eV/A.

    Attributes:
      elements: [121] atoms of each atomic number.
      tags: [3] atoms of each tag.
      net_force: per molecule, the largest component of the summed forces; not for periodic structures.
      duplicates: (record, earlier record) pairs of equal atoms and positions, the first ten.
    """

    n_record: int
    n_looked_at: int
    elements: np.ndarray
    tags: np.ndarray
    n_node: Moments
    energy: Moments
    residual: Moments
    forces: Moments
    net_force: Moments
    target: Moments
    n_without_energy: int = 0
    n_without_forces: int = 0
    n_fixed: int = 0
    n_partly_fixed: int = 0
    n_periodic: int = 0
    n_left_handed: int = 0
    n_duplicate: int = 0
    duplicates: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def fixed_share(self) -> float:
        """Share of atoms that are held fixed."""
        return self.n_fixed / max(int(self.elements.sum()), 1)


def describe(
    store: Store, reference: LinearReference | None = None, target: np.ndarray | None = None, limit: int | None = SAMPLE
) -> Statistics:
    """Reads a data set once, in chunks.

    Args:
      reference: for the residual energies; without it they stay empty.
      target: [n] scalar target of each record, after its own references.
      limit: records looked at, drawn at random with a fixed seed; None takes all.
    """
    n = len(store)
    looked = np.arange(n)
    if limit is not None and n > limit:
        looked = np.sort(np.random.RandomState(0).choice(n, limit, replace=False))
    moments = (Moments() for _ in range(6))
    found = Statistics(n, len(looked), np.zeros(N_ELEMENT, np.int64), np.zeros(3, np.int64), *moments)
    seen: dict[bytes, int] = {}
    for chunk in _chunks(looked):
        batch = store.take(chunk)
        _add_labels(found, batch, reference)
        _add_geometry(found, batch)
        if PARTLY_FIXED in store.extra_columns:
            found.n_partly_fixed += int(np.maximum(store.column(PARTLY_FIXED)[chunk], 0).sum())
        _add_duplicates(found, batch, chunk, seen)
        if target is not None:
            found.target.add(target[chunk])
    return found


def _chunks(indices: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(indices), _RECORDS_PER_CHUNK):
        yield indices[first : first + _RECORDS_PER_CHUNK]


def _add_labels(found: Statistics, batch: SystemBatch, reference: LinearReference | None) -> None:
    found.n_node.add(batch.n_node)
    found.energy.add(batch.energy)
    found.forces.add(batch.forces)
    found.n_without_energy += int(np.isnan(batch.energy).sum())
    starts = np.cumsum(batch.n_node) - batch.n_node
    missing = np.isnan(batch.forces).any(axis=1)
    found.n_without_forces += int(np.logical_or.reduceat(missing, starts).sum())
    if reference is not None:
        known = ~np.isnan(batch.energy)  # others may hold elements that no reference knows
        atoms = batch.atomic_numbers[np.repeat(known, batch.n_node)]
        found.residual.add(reference.subtract(batch.energy[known], atoms, batch.n_node[known]))
    molecule = ~batch.pbc.any(axis=1)
    net = np.abs(np.add.reduceat(batch.forces.astype(np.float64), starts, axis=0)).max(axis=1)
    found.net_force.add(net[molecule])


def _add_geometry(found: Statistics, batch: SystemBatch) -> None:
    found.elements += np.bincount(batch.atomic_numbers, minlength=N_ELEMENT)
    found.tags += np.bincount(batch.tags, minlength=3)[:3]
    found.n_fixed += int(batch.fixed.sum())
    periodic = batch.pbc.any(axis=1)
    found.n_periodic += int(periodic.sum())
    found.n_left_handed += int((np.linalg.det(batch.cell[periodic].astype(np.float64)) < 0).sum())


def _add_duplicates(found: Statistics, batch: SystemBatch, records: np.ndarray, seen: dict[bytes, int]) -> None:
    ends = np.cumsum(batch.n_node)
    rows = np.concatenate([batch.positions.view(np.uint8).reshape(len(batch.positions), -1),
                           batch.atomic_numbers[:, None]], axis=1)  # fmt: skip
    for record, first, end in zip(records.tolist(), (ends - batch.n_node).tolist(), ends.tolist(), strict=True):
        earlier = seen.setdefault(hashlib.blake2b(rows[first:end].tobytes(), digest_size=12).digest(), record)
        if earlier != record:
            found.n_duplicate += 1
            if len(found.duplicates) < 10:
                found.duplicates.append((record, earlier))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of a data set: "ok", "warning" or "error", what was looked at and what was found."""

    level: str
    what: str
    found: str


def findings(found: Statistics, needs_forces: bool, is_surface: bool) -> list[Finding]:
    """The conversion checklist as far as it holds for any data set.

    Args:
      needs_forces: energies and forces are the target.
      is_surface: an adsorbate on a slab, with tags and fixed atoms.

    Source: docs/reference/datasets.md, Checks.
    """
    out = [_finding(found.n_duplicate == 0, "duplicate records", _duplicates(found), "warning")]
    if needs_forces:
        out.append(_finding(found.n_without_forces == 0, "records without forces", str(found.n_without_forces)))
        out.append(_finding(found.n_without_energy == 0, "records without energy", str(found.n_without_energy)))
    else:
        n, has = found.n_looked_at, (found.n_without_energy, found.n_without_forces)
        text = f"{n - has[0]} records have an energy, {n - has[1]} forces, of {n} looked at"
        out.append(Finding("ok", "labels", text))
    out.append(_constraints(found))
    if found.net_force.count:
        largest = found.net_force.high
        out.append(_finding(largest < 0.1, "net force of a molecule", f"at most {largest:.2g} eV/A", "warning"))
    if found.n_periodic:
        out.append(_finding(found.n_left_handed == 0, "left-handed cells", str(found.n_left_handed), "warning"))
    if is_surface:
        share = found.fixed_share
        out.append(_finding(0 < share < 1, "share of fixed atoms", f"{share:.3f}"))
        out.append(_finding(bool(found.tags.all()), "atoms of tags 0, 1, 2", " / ".join(map(str, found.tags))))
    return out


def _constraints(found: Statistics) -> Finding:
    text = f"{found.n_fixed} of {found.elements.sum()} atoms are fixed"
    if found.n_partly_fixed:
        text += f"; {found.n_partly_fixed} under other constraints (some directions, bonds, ...) are read as free"
    return _finding(not found.n_partly_fixed, "constraints", text, "warning")


def compare(
    what: str, measured: float, published: float | None, unit: str, tolerance: float, enough: bool = True
) -> Finding | None:
    """A measured constant beside the published one; None where nothing is published.

    A relative difference above `tolerance` warns, a factor of three is an error: then a unit is wrong. An excerpt that
    is not `enough` to have the constants of the whole is shown and not judged.
    """
    if published is None:
        return None
    text = f"{measured:.6g} {unit} (published {published:.6g})"
    if not published or not np.isfinite(measured):
        return Finding("warning" if not np.isfinite(measured) else "ok", what, text)
    if not enough:
        return Finding("ok", what, f"{text}, too few structures to compare")
    ratio = measured / published
    if not 1 / 3 < ratio < 3:
        return Finding("error", what, f"{text}: a unit is wrong, or these are other data")
    return _finding(abs(ratio - 1) <= tolerance, what, text, "warning")


def _finding(good: bool, what: str, found: str, level: str = "error") -> Finding:
    return Finding("ok" if good else level, what, found)


def _duplicates(found: Statistics) -> str:
    pairs = ", ".join(f"{a} = {b}" for a, b in found.duplicates[:3])
    return f"{found.n_duplicate}" + (f" (records {pairs})" if pairs else "")

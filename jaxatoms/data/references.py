"""Per-element reference energies, fitted on the train split, subtracted in float64 before any cast.

Raw total energies are about -1e4 eV, where float32 steps are 1e-3 eV: subtract here, cast afterwards.
"""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.store import Store
from jaxatoms.io import open_npz
from jaxatoms.types import InputError, UnusableStructure, naming

_RECORDS_PER_CHUNK = 16_384
_SAMPLE = 200_000  # records for the standard deviations; enough for four digits


@dataclasses.dataclass(frozen=True)
class LinearReference:
    """One energy per element; the reference energy of a structure is their sum over its atoms.

    Attributes:
      coeff: [121] float64 eV, indexed by atomic number, 0 for elements not in the fit.
      seen: [121] bool, whether the fit saw the element.
      span: [rank, 121] orthonormal compositions, where those of the fit do not fix every element's energy: only
        their combinations have a known reference energy. None: all compositions of the elements seen have.
    """

    coeff: np.ndarray
    seen: np.ndarray
    span: np.ndarray | None = None

    @classmethod
    def fit(cls, store: Store, indices: np.ndarray) -> "LinearReference":
        """Least squares of total energy on element counts, no intercept; records without energy are left out.

        The counts enter chunk by chunk through QR, which leaves the minimum where it is: memory does not grow
        with the number of records. Among equal minima the shortest vector is taken, as lstsq does.

        Raises:
          InputError: none of the records has an energy.

        Source: docs/reference/pretraining.md, Linear references: numpy.linalg.lstsq(X, y, rcond=None) on train.
        """
        triangle, n_record = np.zeros((0, N_ELEMENT + 1)), 0
        for chunk in _chunks(indices):
            energy = store.energy[chunk]
            known = ~np.isnan(energy)
            rows = np.column_stack([store.element_counts(chunk)[known], energy[known]])
            triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r"))
            n_record += int(known.sum())
        if n_record == 0:
            raise InputError(
                f"{store.path}: no record has an energy; a reference energy needs labelled structures"
            )
        fitted = cls.solve(triangle[:, :N_ELEMENT], triangle[:, N_ELEMENT], n_record)
        if fitted.span is not None:
            warnings.warn(
                f"{store.path.name}: the training compositions fix {len(fitted.span)} of {fitted.seen.sum()} reference "
                "energies; energies of other compositions cannot be trusted, forces can",
                stacklevel=2,
            )
        return fitted

    @classmethod
    def solve(cls, counts: np.ndarray, energy: np.ndarray, n_record: int | None = None) -> "LinearReference":
        """Least squares of `energy` [n], eV, on `counts` [n, 121]; the shortest vector among equal minima.

        Args:
          n_record: rows of the uncompressed matrix, in which rank is judged; default n.
        """
        # What lstsq would use for the uncompressed matrix.
        rcond = np.finfo(np.float64).eps * max(n_record or len(counts), N_ELEMENT)
        coeff = np.linalg.lstsq(counts, energy, rcond=rcond)[0]
        seen = np.abs(counts).max(axis=0) > 0
        _, size, directions = np.linalg.svd(counts, full_matrices=False)
        rank = int((size > rcond * size.max(initial=0)).sum())
        return cls(np.where(seen, coeff, 0.0), seen, directions[:rank] if rank < seen.sum() else None)

    def determines(self, atomic_numbers: np.ndarray, n_node: np.ndarray) -> np.ndarray:
        """[n_graph] bool: whether the fit fixes the reference energy of each structure's composition.

        Args: as `reference_energy`; elements may be unseen.
        """
        graph, counts = np.repeat(np.arange(len(n_node)), n_node), np.zeros((len(n_node), N_ELEMENT))
        np.add.at(counts, (graph, atomic_numbers), 1)
        known = np.asarray(~counts[:, ~self.seen].any(axis=1))
        if self.span is None:
            return known
        outside = np.linalg.norm(counts - counts @ self.span.T @ self.span, axis=1)
        known &= outside <= 1e-6 * np.linalg.norm(counts, axis=1)
        return known

    @classmethod
    def none(cls, store: Store, indices: np.ndarray) -> "LinearReference":
        """Zero for every element of the records: for data without energies."""
        return cls(np.zeros(N_ELEMENT), store.elements(indices))

    def reference_energy(self, atomic_numbers: np.ndarray, n_node: np.ndarray) -> np.ndarray:
        """[n_graph] float64 eV.

        Args:
          atomic_numbers: [sum n_node], the atoms of the structures one after another.
          n_node: [n_graph] atoms per structure.

        Raises:
          UnusableStructure: an element that the fit never saw, naming it.
        """
        graph = np.repeat(np.arange(len(n_node)), n_node)
        unseen = ~self.seen[atomic_numbers]
        if unseen.any():
            _refuse(int(np.argmax(unseen)), atomic_numbers, graph)
        return np.bincount(graph, weights=self.coeff[atomic_numbers], minlength=len(n_node))

    def subtract(
        self,
        energy: np.ndarray,
        atomic_numbers: np.ndarray,
        n_node: np.ndarray,
    ) -> np.ndarray:
        """[n_graph] float64 eV: total energy minus reference; arguments as `reference_energy`.

        Raises:
          UnusableStructure: an element that the fit never saw.
        """
        return np.asarray(energy, np.float64) - self.reference_energy(atomic_numbers, n_node)

    def add_back(
        self,
        residual: np.ndarray,
        atomic_numbers: np.ndarray,
        n_node: np.ndarray,
    ) -> np.ndarray:
        """[n_graph] float64 eV: the total energy of a residual; the inverse of `subtract`.

        Raises:
          UnusableStructure: an element that the fit never saw.
        """
        return np.asarray(residual, np.float64) + self.reference_energy(atomic_numbers, n_node)

    def save(self, path: Path | str) -> None:
        """Writes npz with the keys `coeff` (the reference's), `seen` and, where there is one, `span`."""
        span = {} if self.span is None else {"span": self.span}
        with open(path, "wb") as file:
            np.savez(file, coeff=self.coeff, seen=self.seen, **span)

    @classmethod
    def load(cls, path: Path | str) -> "LinearReference":
        """A saved reference, ours or one that has `coeff` of any length up to 121 only.

        Raises:
          InputError: not such a file.
        """
        with open_npz(path, "is not a linear reference", "fit one on the train split") as saved:
            coeff = _padded(saved["coeff"].astype(np.float64).reshape(-1))
            seen = saved["seen"].astype(bool) if "seen" in saved else coeff != 0
            return cls(coeff, seen, saved.get("span"))

    def as_record(self) -> dict:
        """The reference as JSON values: {"reference": {atomic number: eV}} and "span" where there is one."""
        own = {str(z): float(self.coeff[z]) for z in np.flatnonzero(self.seen)}
        return {"reference": own} | ({} if self.span is None else {"span": self.span.tolist()})

    @classmethod
    def from_record(cls, record: dict) -> "LinearReference":
        """The reference of a record that holds the values of `as_record`."""
        coeff, seen = np.zeros(N_ELEMENT), np.zeros(N_ELEMENT, bool)
        for z, value in record["reference"].items():
            coeff[int(z)], seen[int(z)] = value, True
        return cls(coeff, seen, np.array(record["span"]) if "span" in record else None)


def _refuse(node: int, atomic_numbers: np.ndarray, graph: np.ndarray) -> NoReturn:
    number = int(atomic_numbers[node])
    name = chemical_symbols[number] if number < len(chemical_symbols) else f"Z={number}"
    raise UnusableStructure(
        graph[node],
        f"element {name} has no reference energy (absent from the train split); remove the structure, or fit the "
        "reference on data with this element",
    )


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Standard deviations that targets are divided by; means are 0 (docs/reference/pretraining.md, Normalisation).

    Attributes:
      energy_std: eV, of the energy after the linear reference.
      force_std: eV/A, of the force components.
    """

    energy_std: float
    force_std: float

    def __post_init__(self):
        for name in ("energy_std", "force_std"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise InputError(
                    f"{name} is {value}: targets that do not vary cannot be scaled; give more varied "
                    "training structures"
                )


def make_normalization(
    spec: DatasetSpec, store: Store, train: np.ndarray, reference: LinearReference
) -> Normalization:
    """The published constants of a named data set, otherwise those of its train split.

    A kind of label that no training structure has needs no scale and gets 1. Warns when the data differ from the
    published constants more than threefold: most likely a unit is wrong.

    Raises:
      InputError: energies or forces do not vary.
    """
    labelled = labels_in(store, train)
    measured = [std if found else 1.0 for std, found in zip(target_std(store, train, reference), labelled, strict=True)]
    if spec.energy_std is None or spec.force_std is None:
        return Normalization(*measured)
    published = Normalization(spec.energy_std, spec.force_std)
    if labelled[0]:
        warn_if_far(spec.name, "energy after the linear reference", measured[0], published.energy_std, "eV")
    if labelled[1]:
        warn_if_far(spec.name, "force", measured[1], published.force_std, "eV/A")
    return published


def labels_in(store: Store, indices: np.ndarray) -> tuple[bool, bool]:
    """Whether any of the records has an energy, and whether any has a force."""
    chunks = _chunks(indices)
    has_energy = any(np.isfinite(store.energy[chunk]).any() for chunk in chunks)
    return has_energy, any(np.isfinite(store.take(chunk).forces).any() for chunk in chunks)


def target_std(store: Store, indices: np.ndarray, reference: LinearReference) -> tuple[float, float]:
    """Standard deviations of the residual energy, eV, and of the force components, eV/A.

    Missing labels are left out; NaN where nothing is labelled. Of more than 200,000 records a fixed sample
    is taken.
    """
    indices = np.asarray(indices)
    if len(indices) > _SAMPLE:
        indices = np.sort(np.random.RandomState(0).choice(indices, _SAMPLE, replace=False))
    energy, forces = np.zeros(3), np.zeros(3)
    for chunk in _chunks(indices):
        batch = store.take(chunk)
        with naming(functools.partial(_place, store, chunk)):
            energy += _moments(reference.subtract(batch.energy, batch.atomic_numbers, batch.n_node))
        forces += _moments(batch.forces)
    return _std(energy), _std(forces)


def _place(store: Store, records: np.ndarray, i: int) -> str:
    return store.where(int(records[i]))


def warn_if_far(dataset: str, what: str, measured: float, published: float, unit: str) -> None:
    """Warns when a standard deviation differs from the published one by more than a factor of three."""
    if not published / 3 <= measured <= published * 3:  # NaN warns too
        warnings.warn(
            f"{dataset}: the std of the {what} is {measured:.4g} {unit}, "
            f"published is {published:.4g} {unit}; "
            "a unit may be wrong, or these are other data than the name says",
            stacklevel=3,
        )


def _moments(values: np.ndarray) -> np.ndarray:
    values = values[~np.isnan(values)].astype(np.float64)
    return np.array([len(values), values.sum(), np.square(values).sum()])


def _std(moments: np.ndarray) -> float:
    # Residuals and forces average close to 0, so the difference of squares loses nothing.
    count, total, squares = moments
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else float("nan")


def _chunks(indices: np.ndarray) -> list[np.ndarray]:
    indices = np.asarray(indices)
    return [indices[i : i + _RECORDS_PER_CHUNK] for i in range(0, len(indices), _RECORDS_PER_CHUNK)]


def _padded(coeff: np.ndarray) -> np.ndarray:
    if len(coeff) > N_ELEMENT:
        raise ValueError(f"coeff has {len(coeff)} entries, at most {N_ELEMENT} are elements")
    return np.pad(coeff, (0, N_ELEMENT - len(coeff)))

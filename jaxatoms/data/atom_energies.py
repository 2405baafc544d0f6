"""Reference energies of a data set's level of theory: fitted, of isolated atoms in the data, or given in a file."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers as NUMBERS
from ase.data import chemical_symbols

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.references import LinearReference
from jaxatoms.data.store import Store
from jaxatoms.types import InputError

ALONE = 6.0  # A; a single atom whose images are at least so far apart counts as isolated
_KINDS = ("auto", "fit", "isolated")


class AtomEnergies(NamedTuple):
    """Reference energies of a data set.

    Attributes:
      reference: eV per element, with `shift` in every element.
      kind: "fit", "isolated" or "file".
      shift: eV per atom, the mean energy of the training structures above energies of free atoms; 0 for a fit.
    """

    reference: LinearReference
    kind: str
    shift: float = 0.0


def isolated_atoms(store: Store) -> np.ndarray:
    """The records that are one atom without neighbours: without a cell, or in one at least 6 A wide in every direction.

    Files for MACE mark them by `config_type=IsolatedAtom`; the structure itself says the same.
    """
    single = np.flatnonzero(store.n_node == 1)
    cell, pbc = store.column("cell")[single].astype(np.float64), store.column("pbc")[single]
    return single[~pbc.any(axis=1) | (_widths(cell) >= ALONE)]


def _widths(cell: np.ndarray) -> np.ndarray:
    """[n] the smallest distance of opposite faces of cells [n, 3, 3], A; 0 where there is no volume."""
    normals = np.cross(np.roll(cell, -1, axis=1), np.roll(cell, -2, axis=1))
    areas = np.linalg.norm(normals, axis=2)
    return np.abs(np.linalg.det(cell)) / np.maximum(areas.max(axis=1, initial=0), 1e-12)


def atom_energies(store: Store, train: np.ndarray, source: str = "auto") -> AtomEnergies:
    """The reference energies of the structures `train`.

    Args:
      source: "fit": least squares on the total energies. "isolated": energies of isolated atoms in the data. "auto":
        these where every element of `train` has one, else a fit. Otherwise a file: JSON {"H": -13.6, ...} in eV, or
        what `LinearReference.save` wrote.

    Raises:
      InputError: an element of `train` without a reference energy, an unreadable file, or no energies.

    Free atoms lie some eV above atoms in compounds. What the structures have on average per atom is added to the
    energies of free atoms, because a network learns a large constant slowly; differences between elements are theirs.
    """
    seen = store.elements(train)
    if source in ("auto", "isolated"):
        found = _of_isolated(store)
        missing = np.flatnonzero(seen & np.isnan(found))
        if source == "auto" and len(missing):
            return AtomEnergies(LinearReference.fit(store, train), "fit")
        _check_complete(missing, f"{store.source} has no isolated atom with an energy of")
        return _shifted(store, train, found, seen, "isolated")
    if source == "fit":
        return AtomEnergies(LinearReference.fit(store, train), "fit")
    given = _from_file(Path(source))
    _check_complete(np.flatnonzero(seen & np.isnan(given)), f"{source} has no reference energy of")
    return _shifted(store, train, given, seen, "file")


def _check_complete(missing: np.ndarray, what: str):
    if len(missing):
        names = ", ".join(chemical_symbols[z] for z in missing)
        raise InputError(f"{what} {names}, which the training structures hold; add it, or use --e0s fit")


def _of_isolated(store: Store) -> np.ndarray:
    """[121] mean energy of the isolated atoms of each element, eV; NaN without any."""
    records = isolated_atoms(store)
    records = records[np.isfinite(store.energy[records])]
    numbers = store.take(records).atomic_numbers
    count, total = (np.bincount(numbers, weights=w, minlength=N_ELEMENT) for w in (None, store.energy[records]))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _from_file(path: Path) -> np.ndarray:
    """[121] eV, NaN for elements that the file does not name."""
    if path.suffix == ".npz":
        saved = LinearReference.load(path)
        return np.where(saved.seen, saved.coeff, np.nan)
    try:
        entries = {_number(key): float(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        remedy = 'write JSON such as {"H": -13.6, "O": -2041.8}, in eV'
        raise InputError(f"{path}: no reference energies ({type(error).__name__}: {error}); {remedy}") from None
    table = np.full(N_ELEMENT, np.nan)
    table[list(entries)] = list(entries.values())
    return table


def _number(key: str) -> int:
    """Atomic number of a symbol or of a number in words."""
    number = int(key) if key.isdecimal() else NUMBERS[key]
    if not 1 <= number < N_ELEMENT:
        raise ValueError(f"{key} is no element")
    return number


def _shifted(store: Store, train: np.ndarray, energies: np.ndarray, seen: np.ndarray, kind: str) -> AtomEnergies:
    atoms = LinearReference(np.where(seen, energies, 0.0), seen)
    labelled = train[np.isfinite(store.energy[train])]
    if len(labelled) == 0:
        raise InputError(f"{store.source}: no training structure has an energy; leave energies out of --targets")
    counts = store.element_counts(labelled)
    rest = store.energy[labelled] - counts @ atoms.coeff
    shift = float(np.mean(rest / counts.sum(axis=1)))
    return AtomEnergies(LinearReference(np.where(seen, energies + shift, 0.0), seen), kind, shift)

"""Structures with results as frames of extended XYZ, written so that ASE reads back all of them."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian

from jaxatoms.data.readers.extxyz import writable_info

RESULTS = ("energy", "free_energy", "forces", "stress")  # never copied from the input
NESTED = ("key_value_pairs", "data")  # entries of `info` that come from a database row
ARRAYS = "arrays"  # entry of a row's data: per-atom arrays that have no column of their own


def with_results(atoms: ase.Atoms, results: Mapping[str, Any]) -> ase.Atoms:
    """A copy with these results, in ASE's units (eV, eV/A, eV/A^3); without any, it has no calculator.

    What the input itself says of energy, forces and stress is not copied, wherever it stands; the rest of it is.
    """
    atoms = atoms.copy()
    for name in RESULTS:
        atoms.info.pop(name, None)
        atoms.arrays.pop(name, None)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def as_extxyz(structures: Sequence[ase.Atoms]) -> bytes:
    """The frames of these structures; their `info` and `arrays` change to what the format holds."""
    text = io.StringIO()
    ase.io.write(text, [for_extxyz(atoms) for atoms in structures], format="extxyz")
    return text.getvalue().encode()


def for_extxyz(atoms: ase.Atoms) -> ase.Atoms:
    """The structure with everything where extended XYZ keeps it: no nested dictionaries, no columns with gaps."""
    info = {key: value for key, value in atoms.info.items() if key not in NESTED}
    info = {**atoms.info.get("data", {}), **atoms.info.get("key_value_pairs", {}), **info}
    info = {key: value for key, value in info.items() if key not in RESULTS}
    for name, values in info.pop(ARRAYS, {}).items():
        atoms.arrays.setdefault(name, np.asarray(values))
    for name in [name for name, values in atoms.arrays.items() if not _is_column(values)]:
        info[name] = atoms.arrays.pop(name)
    atoms.info = writable_info(info)
    lost = {type(held).__name__ for held in atoms.constraints if not isinstance(held, FixAtoms | FixCartesian)}
    if lost:
        kinds = ", ".join(sorted(lost))
        warnings.warn(f"extended XYZ does not keep the constraints {kinds}; a .db file does", stacklevel=2)
    return atoms


def _is_column(values: np.ndarray) -> bool:
    if values.dtype.kind in "OSU":
        return values.ndim == 1 and all(len(str(value).split()) == 1 for value in values)
    return values.ndim <= 2 and values.dtype.kind in "ifb"

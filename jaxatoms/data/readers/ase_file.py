"""Anything ASE reads (extxyz, traj, db, ...) -> Systems. eV, A and eV/A are ASE's units already.

A label that a structure does not carry stays missing (NaN energy, None forces); a carried one must be finite.
"""

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data.readers.checks import fail
from jaxatoms.data.readers.compressed import plain_file
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.types import System

VERSION = 1


def read(path: Path | str, energy_key: str = "", forces_key: str = "") -> Iterator[System]:
    """Yields every structure; its group is the info key `group`, or itself alone.

    Args:
      energy_key: where the energy stands, if not as ASE's own energy: a key of the comment line or of the database.
      forces_key: where the forces stand, if not as ASE's own forces: a per-atom array.

    Raises:
      InputError: missing file, a file ASE cannot read, a named key that a structure lacks, or a bad value (see
        `system_from_atoms`).
    """
    return (system for _, system in read_atoms(path, energy_key, forces_key))


def read_atoms(
    path: Path | str, energy_key: str = "", forces_key: str = "", first: int = 0
) -> Iterator[tuple[ase.Atoms, System]]:
    """As `read`, each with the ASE object that it came from; those before structure `first` are passed over."""
    path = Path(path)
    with plain_file(path) as plain:
        for i, atoms in enumerate(_iter_atoms(path, plain)):
            if i < first:
                continue
            _name_labels(path, f"structure {i}", atoms, {"energy": energy_key, "forces": forces_key})
            system = system_from_atoms(path, f"structure {i}", atoms, group=_group(atoms))
            yield atoms, system._replace(tags=_meaningful_tags(system.tags))


def _iter_atoms(path: Path, plain: Path) -> Iterator[ase.Atoms]:
    done = 0
    try:
        for atoms in ase.io.iread(str(plain), index=":", do_not_split_by_at_sign=True):
            yield atoms
            done += 1
    except Exception as error:
        where = f"structure {done}" if done else ""
        remedy = "it is damaged, or not what its name says; check it, or convert it to extxyz"
        fail(path, where, f"ASE cannot read it ({type(error).__name__}: {error})", remedy)


def _name_labels(path: Path, record: str, atoms: ase.Atoms, keys: dict[str, str]) -> None:
    """Puts labels that stand under other names where `system_from_atoms` looks for them."""
    for label, key in keys.items():
        if not key:
            continue
        results = dict(getattr(atoms.calc, "results", {}))
        places = ({**atoms.info, **results} if label == "energy" else {**atoms.arrays, **results},
                  atoms.info.get("key_value_pairs", {}), atoms.info.get("data", {}))
        found = next((place[key] for place in places if key in place), None)
        if found is None:
            known = ", ".join(sorted(set(atoms.info) | set(atoms.arrays) | set(results)))
            fail(path, record, f"has no {label} under '{key}'", f"it has: {known}")
        atoms.calc = SinglePointCalculator(atoms, **{**results, label: found})


def _group(atoms: ase.Atoms) -> str:
    value = atoms.info.get("group", atoms.info.get("key_value_pairs", {}).get("group", ""))
    return str(value)


def _meaningful_tags(tags: np.ndarray | None) -> np.ndarray | None:
    # ASE writes zeros where nobody set tags; read as "sub-surface" they would switch all quadruplets off.
    return None if tags is None or not tags.any() else tags

"""Anything ASE reads (extxyz, traj, db, ...) -> Systems. eV, A and eV/A are ASE's units already.

A label that a structure does not carry stays missing (NaN energy, None forces); a carried one must be finite.
"""

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np

from jaxatoms.data.readers.checks import fail
from jaxatoms.data.readers.compressed import plain_file
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.types import System

VERSION = 1


def read(path: Path | str) -> Iterator[System]:
    """Yields every structure; its group is the info key `group`, or itself alone.

    Raises:
      InputError: missing file, a file ASE cannot read, or a bad value (see `system_from_atoms`).
    """
    return (system for _, system in read_atoms(path))


def read_atoms(path: Path | str) -> Iterator[tuple[ase.Atoms, System]]:
    """As `read`, each with the ASE object that it came from."""
    path = Path(path)
    with plain_file(path) as plain:
        for i, atoms in enumerate(_iter_atoms(path, plain)):
            system = system_from_atoms(path, f"structure {i}", atoms, group=_group(atoms))
            yield atoms, system._replace(tags=_meaningful_tags(system.tags))


def _iter_atoms(path: Path, plain: Path) -> Iterator[ase.Atoms]:
    try:
        yield from ase.io.iread(str(plain), index=":", do_not_split_by_at_sign=True)
    except Exception as error:
        fail(path, "", f"ASE cannot read it ({type(error).__name__}: {error})", "convert it to extxyz")


def _group(atoms: ase.Atoms) -> str:
    value = atoms.info.get("group", atoms.info.get("key_value_pairs", {}).get("group", ""))
    return str(value)


def _meaningful_tags(tags: np.ndarray | None) -> np.ndarray | None:
    # ASE writes zeros where nobody set tags; read as "sub-surface" they would switch all quadruplets off.
    return None if tags is None or not tags.any() else tags

"""One ASE Atoms object into a checked System. Raw labels: `get_forces()` would zero those of fixed atoms."""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, check_shape, check_tags
from jaxatoms.types import System


def system_from_atoms(path: Path, record: str, atoms: Atoms, group: str) -> System:
    """The structure with whatever labels it carries.

    Args:
      record: name of the structure in messages and in `key`.
      atoms: eV, A, eV/A; energy and forces in its calculator results, or in `info` and `arrays`.

    Raises:
      InputError: unknown element, NaN or infinite value, zero-volume periodic cell, tags other than 0, 1, 2.
    """
    numbers = check_elements(path, record, atoms.numbers)
    check_finite(path, record, "positions", atoms.positions)
    check_cell(path, record, atoms.cell.array, atoms.pbc)
    results = getattr(atoms.calc, "results", {})
    periodic = bool(atoms.pbc.any())
    return System(
        atomic_numbers=numbers,
        positions=atoms.positions,
        cell=atoms.cell.array if periodic else None,
        pbc=tuple(bool(flag) for flag in atoms.pbc),
        energy=_energy(path, record, results.get("energy", atoms.info.get("energy"))),
        forces=_forces(path, record, results.get("forces", atoms.arrays.get("forces")), len(numbers)),
        tags=_tags(path, record, atoms),
        fixed=_fixed(atoms),
        group=group,
        key=record,
    )


def _energy(path: Path, record: str, value: object) -> float:
    if value is None:
        return float("nan")
    energy = np.asarray(value, np.float64)
    check_shape(path, record, "energy", energy.shape, ())
    check_finite(path, record, "energy", energy)
    return float(energy)


def _forces(path: Path, record: str, value: np.ndarray | None, n_node: int) -> np.ndarray | None:
    if value is None:
        return None
    forces = np.asarray(value, np.float64)
    check_shape(path, record, "forces", forces.shape, (n_node, 3))
    check_finite(path, record, "forces", forces)
    return forces


def _tags(path: Path, record: str, atoms: Atoms) -> np.ndarray | None:
    tags = atoms.arrays.get("tags")
    return None if tags is None else check_tags(path, record, tags)


def _fixed(atoms: Atoms) -> np.ndarray | None:
    """[n_node] bool; None without constraints. ASE turns the extxyz column `move_mask` F into FixAtoms."""
    held = [constraint.index for constraint in atoms.constraints if isinstance(constraint, FixAtoms)]
    if not held:
        return None
    fixed = np.zeros(len(atoms), bool)
    fixed[np.concatenate(held)] = True
    return fixed

"""One ASE Atoms object into a checked System. Raw labels: `get_forces()` would zero those of fixed atoms."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, check_shape, check_tags, fail
from jaxatoms.types import System

PARTLY_FIXED = "n_partly_fixed"  # column of `extra`; only structures that have such atoms carry it


def system_from_atoms(path: Path | str, record: str, atoms: Atoms, group: str, labels: bool = True) -> System:
    """The structure with whatever labels it carries.

    Atoms that are held in all three directions are fixed; those held in some are free here, and `extra` counts them
    under PARTLY_FIXED, with those under constraints of another kind.

    Args:
      record: name of the structure in messages and in `key`.
      atoms: eV, A, eV/A; energy and forces in its calculator results, or in `info` and `arrays`.
      labels: False leaves energy and forces missing and does not look at them.

    Raises:
      InputError: unknown element, partial occupancy, NaN or infinite value, zero-volume periodic cell, tags other than
        0, 1, 2.
    """
    numbers = check_elements(path, record, atoms.numbers)
    _check_occupancy(path, record, atoms)
    check_finite(path, record, "positions", atoms.positions)
    fixed, n_partly = fixed_atoms(atoms.constraints, len(numbers))
    results = getattr(atoms.calc, "results", {}) if labels else {}
    info, arrays = (atoms.info, atoms.arrays) if labels else ({}, {})
    return System(
        atomic_numbers=numbers,
        positions=atoms.positions,
        cell=check_cell(path, record, atoms.cell.array, atoms.pbc),
        pbc=tuple(bool(flag) for flag in atoms.pbc),
        energy=_energy(path, record, results.get("energy", info.get("energy"))),
        forces=_forces(path, record, results.get("forces", arrays.get("forces")), len(numbers)),
        tags=_tags(path, record, atoms),
        fixed=fixed,
        group=group,
        key=record,
        extra={PARTLY_FIXED: n_partly} if n_partly else None,
    )


def fixed_atoms(constraints: Iterable, n_node: int) -> tuple[np.ndarray | None, int]:
    """([n_node] bool, True where an atom is held in all directions; how many are held or bound in part).

    None without any atom held in all directions. ASE turns the extxyz column `move_mask` F into FixAtoms, its three
    columns into FixCartesian.
    """
    held, other = np.zeros((n_node, 3), bool), np.zeros(n_node, bool)
    for constraint in constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.index] = True
        elif isinstance(constraint, FixCartesian | FixScaled):
            held[constraint.index] |= np.asarray(constraint.mask, bool)
        else:
            other[_bound(constraint, n_node)] = True
    fixed = np.asarray(held.all(axis=1))
    partly = (held.any(axis=1) | other) & ~fixed
    return (fixed if fixed.any() else None), int(partly.sum())


def _bound(constraint, n_node: int) -> np.ndarray | slice:
    """Atoms of a bond, a plane, ...; all where the constraint does not say."""
    try:
        return np.asarray(constraint.get_indices(), int)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return slice(n_node)


def _check_occupancy(path: Path | str, record: str, atoms: Atoms) -> None:
    """ASE reads a disordered CIF as if each site held its first element, and notes the shares in `info`."""
    occupancy = atoms.info.get("occupancy")
    for site in occupancy.values() if isinstance(occupancy, dict) else ():
        if not isinstance(site, dict) or any(abs(share - 1) > 1e-6 for share in site.values()):
            remedy = "write an ordered structure, with one element per site"
            fail(path, record, f"has a partially occupied site ({site})", remedy)


def _number(path: Path | str, record: str, name: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        fail(path, record, f"'{name}' is {value!r:.40}, no number", "write a number, or leave the label out")


def _energy(path: Path | str, record: str, value: object) -> float:
    if value is None:
        return float("nan")
    energy = _number(path, record, "energy", value)
    if energy.shape == (1,):  # as SchNetPack writes it into a database
        energy = energy[0]
    check_shape(path, record, "energy", energy.shape, ())
    check_finite(path, record, "energy", energy)
    return float(energy)


def _forces(path: Path | str, record: str, value: object, n_node: int) -> np.ndarray | None:
    if value is None:
        return None
    forces = _number(path, record, "forces", value)
    check_shape(path, record, "forces", forces.shape, (n_node, 3))
    check_finite(path, record, "forces", forces)
    return forces


def _tags(path: Path | str, record: str, atoms: Atoms) -> np.ndarray | None:
    tags = atoms.arrays.get("tags")
    return None if tags is None else check_tags(path, record, tags)

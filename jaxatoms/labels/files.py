"""What labelling writes: extended XYZ, an HDF5 file in the layout of ANI-1x, the list of what failed.

All are drafts of a `Journal`: they grow chunk by chunk, and get their names when they are whole.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io
import h5py
import numpy as np

from jaxatoms.data.frames import as_extxyz, with_results
from jaxatoms.data.readers.ani1x import ENERGY_UNIT
from jaxatoms.data.readers.ase_file import read_atoms
from jaxatoms.data.readers.checks import MIN_ATOMS, fail
from jaxatoms.labels.calculations import Outcome
from jaxatoms.labels.methods import RECORDED
from jaxatoms.tools.drafts import BytesDraft, part_of
from jaxatoms.units import HARTREE


class FramesDraft(BytesDraft):
    """Labelled structures as extended XYZ, each with the record of the method in its `info`."""

    def __init__(self, path: Path, record: dict[str, str]):
        super().__init__(path)
        self.record = record

    def append(self, chunk: list[Outcome]) -> None:
        super().append(as_extxyz([self._frame(outcome) for outcome in chunk]))

    def _frame(self, outcome: Outcome) -> ase.Atoms:
        atoms = with_results(outcome.atoms, outcome.results or {})
        kept = {key: value for key, value in atoms.info.items() if key not in RECORDED}
        atoms.info = kept | self.record
        return atoms


class AniDraft(FramesDraft):
    """Labelled molecules as extended XYZ, which becomes an HDF5 file in the layout of ANI-1x when it is whole.

    The atoms of a molecule are sorted by atomic number, because a formula has one order of atoms there.
    """

    def finish(self) -> None:
        whole = part_of(self.path, "whole")
        write_ani1x(whole, self.part, self.record)
        os.replace(whole, self.path)
        self.part.unlink()

    def _frame(self, outcome: Outcome) -> ase.Atoms:
        order = np.argsort(outcome.atoms.numbers, kind="stable")
        results = outcome.results or {}
        atoms = ase.Atoms(outcome.atoms.numbers[order], outcome.atoms.positions[order])
        return with_results(atoms, {"energy": results["energy"], "forces": results["forces"][order]})


def write_ani1x(path: Path, frames: Path, attributes: dict[str, str]) -> None:
    """Write an HDF5 file in the layout that `data.readers.ani1x` reads; memory does not grow with its length.

    Args:
      frames: extended XYZ of molecules with energy (eV) and forces (eV/A); those of a formula in one order of atoms.
      attributes: of the file.
    """
    counts: dict[str, int] = {}
    for atoms in _frames(frames):
        formula = atoms.get_chemical_formula()
        counts[formula] = counts.get(formula, 0) + 1
    places = dict.fromkeys(counts, 0)
    with h5py.File(path, "w") as file:
        file.attrs.update({**attributes, "energy_unit": ENERGY_UNIT})
        for atoms in _frames(frames):
            formula = atoms.get_chemical_formula()
            if formula not in file:
                _add_formula(file.create_group(formula), atoms.numbers, counts[formula])
            _fill(file[formula], places[formula], atoms)
            places[formula] += 1


def _frames(path: Path) -> Iterator[ase.Atoms]:
    yield from ase.io.iread(str(path), index=":", format="extxyz", do_not_split_by_at_sign=True)


def _add_formula(group: h5py.Group, numbers: np.ndarray, n_frame: int) -> None:
    vectors = (n_frame, len(numbers), 3)
    group["atomic_numbers"] = numbers.astype(np.uint8)
    for name, shape in (("coordinates", vectors), ("wb97x_dz.energy", (n_frame,)), ("wb97x_dz.forces", vectors)):
        group.create_dataset(name, shape, np.float64)


def _fill(group: h5py.Group, place: int, atoms: ase.Atoms) -> None:
    group["coordinates"][place] = atoms.positions
    group["wb97x_dz.energy"][place] = atoms.calc.results["energy"] / HARTREE
    group["wb97x_dz.forces"][place] = atoms.calc.results["forces"] / HARTREE


def check_molecules(source: Path) -> int:
    """Refuses structures that the layout of ANI-1x cannot hold; the number of those that its reader leaves out.

    Raises:
      InputError: a structure is periodic, or has charges or magnetic moments, which belong to its label.
    """
    n_small = 0
    for i, (atoms, _) in enumerate(read_atoms(source)):
        state = [name for name in ("initial_charges", "initial_magmoms") if np.any(atoms.arrays.get(name, 0))]
        problem = "is periodic" if atoms.pbc.any() else f"has {state[0]}" if state else ""
        if problem:
            fail(source, f"structure {i}", f"{problem}, which an .h5 file cannot hold", "choose --out with .extxyz")
        n_small += len(atoms) < MIN_ATOMS
    return n_small

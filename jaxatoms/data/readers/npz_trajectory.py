"""One molecule's frames in an npz file (rMD17 and MD22 layouts) -> Systems; kcal/mol becomes eV."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxatoms.data.readers.checks import (
    FRAMES_PER_BLOCK,
    check_elements,
    check_energy_unit,
    check_finite,
    check_shape,
    fail,
    require_file,
)
from jaxatoms.types import System
from jaxatoms.units import KCAL_PER_MOL

VERSION = 1
_LAYOUTS = (  # numbers [n], positions [m, n, 3] A, energies [m] or [m, 1] kcal/mol, forces [m, n, 3] kcal/mol/A
    ("nuclear_charges", "coords", "energies", "forces"),
    ("z", "R", "E", "F"),
)


def read(path: Path | str) -> Iterator[System]:
    """Yields the frames in file order, each a group of its own. Energies stay float64.

    Raises:
      InputError: missing or damaged file, another layout, NaN, energies in another unit.

    Source: docs/reference/datasets.md, rMD17 and MD22; the factor is the reference's 1/23.061.
    """
    path = require_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = next((names for names in _LAYOUTS if set(names) <= set(file.files)), None)
            there = ", ".join(file.files)
            arrays = [file[name] for name in names or ()]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        fail(path, "", f"not a readable npz file ({error})", "download it again")
    if not arrays:
        layouts = " or ".join(", ".join(names) for names in _LAYOUTS)
        fail(path, "", f"has the arrays {there}", f"expected {layouts}")
    numbers, positions, energy, forces = arrays
    yield from _frames(path, check_elements(path, "", numbers.astype(np.int64)), positions, energy, forces)


def _frames(path: Path, numbers: np.ndarray, positions: np.ndarray, energy: np.ndarray, forces: np.ndarray):
    n_frame, n_node = len(positions), len(numbers)
    check_shape(path, "", "energies", energy.reshape(-1).shape, (n_frame,))
    for name, values in (("positions", positions), ("forces", forces)):
        check_shape(path, "", name, values.shape, (n_frame, n_node, 3))
    for first in range(0, n_frame, FRAMES_PER_BLOCK):
        block = slice(first, first + FRAMES_PER_BLOCK)
        block_of = {"energies": energy.reshape(-1)[block], "forces": forces[block], "positions": positions[block]}
        for name, array in block_of.items():
            check_finite(path, "frame", name, array, first)
        ev = block_of["energies"].astype(np.float64) * KCAL_PER_MOL
        check_energy_unit(path, "frame", numbers, ev)
        scaled = block_of["forces"].astype(np.float64) * KCAL_PER_MOL
        for i in range(len(ev)):
            key = f"frame {first + i}"
            yield System(numbers, block_of["positions"][i], energy=float(ev[i]), forces=scaled[i], key=key)

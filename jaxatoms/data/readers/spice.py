"""SPICE subsets (HDF5, one group per molecule; bohr, Hartree, gradients) -> Systems in eV and A."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxatoms.data.readers.checks import check_elements, check_finite, check_shape, fail, open_hdf5, require_datasets
from jaxatoms.types import System
from jaxatoms.units import SPICE_BOHR, SPICE_HARTREE

VERSION = 1
_PER_FRAME = ("conformations", "dft_total_energy", "formation_energy", "dft_total_gradient")
_LAYOUT = "of SPICE: <molecule>/{atomic_numbers, " + ", ".join(_PER_FRAME) + "}"


def read(path: Path | str) -> Iterator[System]:
    """Yields every conformation: molecules in the file's key order, then conformers.

    `energy` is the formation energy (the reference's target); `extra` holds `dft_total_energy`, eV. The file holds
    the gradient, so forces are its negative. The group is the molecule.

    Raises:
      InputError: missing file, another layout, unknown element, NaN.

    Source: specification datasets 9.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if len(file) == 0:
            fail(path, "", "holds no molecules", f"expected the layout {_LAYOUT}")
        for name, molecule in file.items():
            if not hasattr(molecule, "items"):
                fail(path, name, "is not a group", f"expected the layout {_LAYOUT}")
            require_datasets(path, name, molecule, ("atomic_numbers", *_PER_FRAME), _LAYOUT)
            yield from _conformations(path, name, molecule)


def _conformations(path: Path, name: str, molecule) -> Iterator[System]:
    numbers = check_elements(path, name, molecule["atomic_numbers"][()])
    positions, total, formation, gradient = (molecule[key][()].astype(np.float64) for key in _PER_FRAME)
    n_frame = len(positions)
    shapes = ((n_frame, len(numbers), 3), (n_frame,), (n_frame,), (n_frame, len(numbers), 3))
    for key, values, shape in zip(_PER_FRAME, (positions, total, formation, gradient), shapes, strict=True):
        check_shape(path, name, key, values.shape, shape)
        check_finite(path, name, key, values, 0)
    forces = -gradient * (SPICE_HARTREE / SPICE_BOHR)
    for i in range(n_frame):
        yield System(
            numbers,
            positions[i] * SPICE_BOHR,
            energy=float(formation[i]) * SPICE_HARTREE,
            forces=forces[i],
            group=name,
            key=f"{name}[{i}]",
            extra={"dft_total_energy": float(total[i]) * SPICE_HARTREE},
        )

"""SPICE subsets (HDF5, one group per molecule; bohr, Hartree, gradients) -> Systems in eV and A."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from jaxatoms.data.readers.checks import check_elements, check_finite, check_shape, fail, open_hdf5, require_datasets
from jaxatoms.types import System
from jaxatoms.units import SPICE_BOHR, SPICE_HARTREE

VERSION = 2
_PER_FRAME = ("conformations", "dft_total_energy", "formation_energy", "dft_total_gradient")
_LAYOUT = "of SPICE: <molecule>/{atomic_numbers, " + ", ".join(_PER_FRAME) + "}"


def read(path: Path | str, subset: str = "") -> Iterator[System]:
    """Yields every conformation: molecules in the file's key order, then conformers; molecules without any pass.

    Args:
      subset: words of the one subset that is read, as in "solvated_amino_acids"; a file whose molecules do not say to
        which they belong is read whole.

    `energy` is the formation energy (the reference's target); `extra` holds `dft_total_energy`, eV. The file holds
    the gradient, so forces are its negative. The group is the molecule.

    Raises:
      InputError: missing file, another layout, no molecule of the subset, unknown element, NaN.

    Source: docs/reference/datasets.md, SPICE.
    """
    path, n_molecule, found = Path(path), 0, set()
    with open_hdf5(path) as file:
        if len(file) == 0:
            fail(path, "", "holds no molecules", f"expected the layout {_LAYOUT}")
        for name, molecule in file.items():
            if not hasattr(molecule, "items"):
                fail(path, name, "is not a group", f"expected the layout {_LAYOUT}")
            require_datasets(path, name, molecule, ("atomic_numbers", *_PER_FRAME), _LAYOUT)
            found.add(own := _subset(molecule))
            if not own or subset.replace("_", " ").lower() in own.lower():
                n_molecule += 1
                if len(molecule["conformations"]):
                    yield from _conformations(path, name, molecule)
        if not n_molecule:
            there = ", ".join(sorted(found))
            fail(path, "", f"holds no molecule of {subset}, but of: {there}", "choose another subset")


def _subset(molecule: h5py.Group) -> str:
    """Such as "SPICE Dipeptides Single Points Dataset v1.2"; empty where the file does not say."""
    stored = np.asarray(molecule["subset"][()]).reshape(-1) if "subset" in molecule else []
    return " ".join(text.decode() if isinstance(text, bytes) else str(text) for text in stored)


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

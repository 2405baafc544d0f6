"""ANI-1x release file (one HDF5 group per formula) -> Systems in eV and A; other levels are ignored."""

from collections.abc import Iterator
from pathlib import Path

import h5py

from jaxatoms.data.readers.checks import MIN_ATOMS, fail, open_hdf5, require_datasets
from jaxatoms.data.readers.molecules import iter_frames, pieces
from jaxatoms.types import System
from jaxatoms.units import HARTREE

VERSION = 1
ENERGY_UNIT = "Hartree"  # attribute `energy_unit` of a file whose method is another one than that of the release
_NAMES = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
_LAYOUT = "of the ANI-1x release: <formula>/{atomic_numbers, coordinates, wb97x_dz.energy, wb97x_dz.forces}"


def read(path: Path | str) -> Iterator[System]:
    """Yields every wB97X/6-31G(d) conformation of the formulas with at least four atoms.

    Energies come in Hartree and forces in Hartree/A (true forces, no sign change); positions are A already.
    The group is the formula. A file with the attribute `energy_unit` says so itself, and its energies may be far from
    those of free atoms in DFT, as those of semi-empirical methods are.

    Raises:
      InputError: missing file, another layout, unknown element, NaN or infinite label.

    Source: docs/reference/datasets.md, ANI-1x; reference `ani1x_preprocess` scripts.
    """
    for part in parts(path):
        yield from read_part(part)


def parts(path: Path | str) -> list[tuple]:
    """(file, formula, ...): pieces of the file, in its order, that a conversion may do apart.

    Raises:
      InputError: missing file or another layout.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if len(file) == 0:
            fail(path, "", "holds no formulas", f"expected the layout {_LAYOUT}")
        for formula, molecule in file.items():
            _check_layout(path, formula, molecule)
        formulas = [name for name in file if len(file[name]["atomic_numbers"]) >= MIN_ATOMS]
        frames = [len(file[name][_NAMES[1]]) for name in formulas]
    return [(str(path), *(formulas[i] for i in piece)) for piece in pieces(frames)]


def read_part(part: tuple) -> Iterator[System]:
    """Yields one piece of `parts`."""
    path = Path(part[0])
    with open_hdf5(path) as file:
        stated = file.attrs.get("energy_unit") == ENERGY_UNIT
        for formula in part[1:]:
            yield from iter_frames(path, formula, file[formula], _NAMES, HARTREE, formula, guess_unit=not stated)


def _check_layout(path: Path, formula: str, molecule: h5py.Group | h5py.Dataset) -> None:
    if not isinstance(molecule, h5py.Group):
        fail(path, formula, "is not a group", f"expected the layout {_LAYOUT}")
    require_datasets(path, formula, molecule, ("atomic_numbers", *_NAMES), _LAYOUT)

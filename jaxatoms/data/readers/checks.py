"""The checks that every reader makes first: labels, elements, cells, HDF5 layout.

A failed check raises an InputError of one line, `<file>: <record>: <problem>; <remedy>`. Blocks of frames are
checked at once, so that a conversion costs no per-structure Python here.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
from ase.geometry import complete_cell

from jaxatoms.data.tags import REMEDY
from jaxatoms.types import InputError

MAX_ATOMIC_NUMBER = 120  # the atom embedding has rows for 1..120
MIN_ATOMS = 4  # below it GemNet-OC has no quadruplets; the reference drops such upstream structures
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # which of ASE's six components each element of the matrix is
FRAMES_PER_BLOCK = 4096  # bounds the memory of a conversion, whatever the size of a file's groups


def fail(path: Path | str, record: str, problem: str, remedy: str) -> NoReturn:
    """Raises InputError with one line naming the file, the record (may be empty) and the remedy."""
    where = f"{path}: {record}" if record else str(path)
    raise InputError(" ".join(f"{where}: {problem}; {remedy}".split()))


def stress_matrix(path: Path | str, record: str, value) -> np.ndarray:
    """[3, 3] symmetric stress of a matrix, of its nine numbers or of ASE's six (xx, yy, zz, yz, xz, xy); NaN for None.

    Raises:
      InputError: another number of components, or one that is not finite.
    """
    if value is None:
        return np.full((3, 3), np.nan)
    try:
        stress = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        fail(path, record, f"stress is {value!r:.40}, no numbers", "write six or nine numbers, or leave it out")
    if stress.size not in (6, 9):
        fail(path, record, f"stress has {stress.size} components", "6 or 9 were expected")
    check_finite(path, record, "stress", stress)
    matrix = stress[_VOIGT] if stress.size == 6 else stress.reshape(3, 3)
    return (matrix + matrix.T) / 2


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below a folder, or a folder between them, is hidden: macOS leaves `._x` beside each file x."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def require_file(path: Path | str) -> Path:
    """The path, if a file lies there.

    Raises:
      InputError: nothing lies there, or a folder does.
    """
    path = Path(path)
    if path.is_dir():
        fail(path, "", "is a folder, not a file", "name the file itself")
    if not path.is_file():
        fail(path, "", "no such file", "check the path")
    return path


@contextlib.contextmanager
def open_hdf5(path: Path | str) -> Iterator[h5py.File]:
    """The open HDF5 file; damage found while reading is reported under the file's name.

    Raises:
      InputError: missing file, or not a whole HDF5 file.
    """
    path = require_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        fail(path, "", f"not a readable HDF5 file ({error})", "download or convert it again")


def require_datasets(path: Path | str, record: str, group: h5py.Group, names: tuple[str, ...], layout: str) -> None:
    """Refuses a group that lacks one of the named arrays.

    Raises:
      InputError: naming the first array that is missing and the layout expected.
    """
    for name in names:
        if not isinstance(group.get(name), h5py.Dataset):
            fail(path, record, f"lacks the array '{name}'", f"expected the layout {layout}")


def check_shape(path: Path | str, record: str, name: str, shape: tuple, expected: tuple) -> None:
    """Refuses an array of another shape than the layout says.

    Raises:
      InputError: with both shapes.
    """
    if tuple(shape) != tuple(expected):
        fail(
            path,
            record,
            f"'{name}' has shape {tuple(shape)}, expected {tuple(expected)}",
            "convert the file again",
        )


def check_finite(path: Path | str, record: str, name: str, values: np.ndarray, first: int | None = None) -> None:
    """Refuses NaN and infinite values.

    Args:
      values: any shape; the first axis counts frames when `first` is given.
      first: number of the first frame, to name the frame as `record[frame]`.

    Raises:
      InputError: naming the first bad frame.
    """
    if np.isfinite(values).all():
        return
    if first is not None:
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        record = f"{record}[{first + int(np.argmax(bad))}]"
    fail(path, record, f"'{name}' is NaN or infinite", "remove the record or compute its label")


def check_elements(path: Path | str, record: str, atomic_numbers: np.ndarray) -> np.ndarray:
    """The atomic numbers as uint8.

    Raises:
      InputError: no atoms, or a number outside 1..120.
    """
    if len(atomic_numbers) == 0:
        fail(path, record, "has no atoms", "remove the record")
    if not np.issubdtype(atomic_numbers.dtype, np.integer):
        fail(path, record, f"atomic numbers of type {atomic_numbers.dtype}", "store them as integers")
    bad = (atomic_numbers < 1) | (atomic_numbers > MAX_ATOMIC_NUMBER)
    if bad.any():
        number = int(atomic_numbers[np.argmax(bad)])
        fail(
            path,
            record,
            f"unknown element, atomic number {number}",
            f"only 1..{MAX_ATOMIC_NUMBER} are elements here",
        )
    return atomic_numbers.astype(np.uint8)


def check_cell(path: Path | str, record: str, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """The cell of a periodic structure, None for a molecule.

    A direction that is not periodic may lack its lattice vector; it gets one of unit length, normal to the others, as
    `ase.geometry.complete_cell` gives it. No image lies along it, so its length does not matter.

    Args:
      cell: [3, 3] A, rows are lattice vectors.
      pbc: [3] bool.

    Raises:
      InputError: NaN in the cell, or zero volume (images would be infinitely many).
    """
    if not np.any(pbc):
        return None
    cell = np.asarray(cell, np.float64)
    check_finite(path, record, "cell", cell)
    missing = ~cell.any(axis=1)
    if missing.any() and not (missing & np.asarray(pbc, bool)).any():
        cell = complete_cell(cell)
    if abs(np.linalg.det(cell)) < 1e-6:  # A^3; the smallest real cell is above 1
        remedy = "give every periodic direction a lattice vector of its own, or set pbc to F F F for a molecule"
        fail(path, record, "periodic, but its cell has zero volume", remedy)
    return cell


def check_tags(path: Path | str, record: str, tags: np.ndarray) -> np.ndarray:
    """The tags as uint8.

    Raises:
      InputError: a tag other than 0 (sub-surface), 1 (surface), 2 (adsorbate).
    """
    bad = (tags < 0) | (tags > 2)
    if np.any(bad):
        value = int(tags[np.argmax(bad)])
        fail(path, record, f"tag {value}", REMEDY)
    return tags.astype(np.uint8)


# eV, free atoms at wB97X/6-31G(d), from the Transition1x loader; any all-electron DFT agrees within a per cent.
FREE_ATOM_ENERGY = {1: -13.622, 6: -1029.413, 7: -1484.871, 8: -2041.840, 9: -2712.821, 16: -10831.0}


def check_energy_unit(path: Path | str, record: str, numbers: np.ndarray, energy: np.ndarray) -> None:
    """Refuses total energies of a molecule that are far from the sum of its free atoms: a wrong unit.

    Every unit in use (eV, Hartree, kcal/mol, kJ/mol) differs from eV more than fourfold; a bond from the sum of
    the atoms by a few per cent. Molecules with an element not in the table pass.

    Args:
      energy: [m] eV.

    Raises:
      InputError: naming the energy found and the one expected.
    """
    if not len(energy) or not set(numbers.tolist()) <= set(FREE_ATOM_ENERGY):
        return
    expected = sum(FREE_ATOM_ENERGY[z] for z in numbers.tolist())
    ratio = energy / expected
    worst = int(np.argmax(np.abs(ratio - 1)))
    if not 0.25 < ratio[worst] < 4:
        fail(
            path,
            record,
            f"energy {energy[worst]:.6g} eV, but its free atoms have {expected:.6g} eV",
            "the file's energies are in another unit than its layout says; convert them",
        )

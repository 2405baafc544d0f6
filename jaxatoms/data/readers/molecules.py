"""One block of frames of one molecule, as the HDF5 releases store them, into checked Systems."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from jaxatoms.data.readers.checks import (
    FRAMES_PER_BLOCK,
    check_elements,
    check_energy_unit,
    check_finite,
    check_shape,
)
from jaxatoms.types import System

_FRAMES_PER_PART = 50_000


def pieces(n_frame: list[int]) -> list[range]:
    """Neighbouring molecules joined until a piece holds 50,000 frames: a conversion's units of work."""
    ends = np.cumsum(n_frame, dtype=np.int64)
    number = (ends - np.array(n_frame, np.int64)) // _FRAMES_PER_PART
    cuts = np.flatnonzero(np.diff(number)) + 1
    return [range(a, b) for a, b in zip([0, *cuts], [*cuts, len(n_frame)], strict=True) if b > a]


def iter_frames(
    path: Path, record: str, molecule: h5py.Group, names: tuple[str, str, str], unit: float, group: str,
    guess_unit: bool = True,
) -> Iterator[System]:
    """Yields the frames of one molecule.

    Args:
      record: name of the molecule in messages and keys.
      molecule: holds `atomic_numbers` [n_node] and the three arrays of `names`.
      names: of the positions [m, n_node, 3] A, the energies [m] and the forces [m, n_node, 3].
      unit: eV per energy unit of the file (forces are per A).
      group: what must not be split.
      guess_unit: refuse energies far from those of free atoms in DFT, which are in another unit.

    Raises:
      InputError: wrong shapes, unknown elements, NaN or infinite values, energies in another unit.
    """
    numbers = check_elements(path, record, molecule["atomic_numbers"][()])
    _check_shapes(path, record, molecule, names, len(numbers))
    n_frame = len(molecule[names[1]])
    for first in range(0, n_frame, FRAMES_PER_BLOCK):
        block = [molecule[name][first : first + FRAMES_PER_BLOCK] for name in names]
        for name, values in zip(names, block, strict=True):
            check_finite(path, record, name, values, first)
        positions, energy, forces = block
        # Scaled in float64: a float32 product of -1e4 eV would lose 1e-3 eV.
        energy, forces = energy.astype(np.float64) * unit, forces.astype(np.float64) * unit
        if guess_unit:
            check_energy_unit(path, record, numbers, energy)
        for i in range(len(energy)):
            yield System(
                numbers,
                positions[i],
                energy=float(energy[i]),
                forces=forces[i],
                group=group,
                key=f"{record}[{first + i}]",
            )


def _check_shapes(
    path: Path, record: str, molecule: h5py.Group, names: tuple[str, str, str], n_node: int
) -> None:
    n_frame = molecule[names[0]].shape[0] if molecule[names[0]].ndim else 0
    for name, shape in zip(names, ((n_frame, n_node, 3), (n_frame,), (n_frame, n_node, 3)), strict=True):
        check_shape(path, record, name, molecule[name].shape, shape)

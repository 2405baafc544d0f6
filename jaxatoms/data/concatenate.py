"""Single structures -> the concatenated arrays of a `SystemBatch`."""

from collections.abc import Sequence

import numpy as np

from jaxatoms.types import System, SystemBatch

MOLECULE_TAG = 2  # every atom of a molecule counts as adsorbate


def concatenate(systems: Sequence[System]) -> SystemBatch:
    """The structures one after another, atoms in order; absent tags are 2, absent forces NaN, absent cells zero."""
    n_node = np.array([len(system.atomic_numbers) for system in systems], np.int32)

    def joined(name: str, dtype: type, missing: object, shape: tuple[int, ...] = ()) -> np.ndarray:
        values = [getattr(system, name) for system in systems]
        filled = [np.full((n, *shape), missing) if v is None else v for v, n in zip(values, n_node, strict=True)]
        return np.concatenate(filled).astype(dtype)

    no_cell = np.zeros((3, 3))
    return SystemBatch(
        n_node=n_node,
        atomic_numbers=joined("atomic_numbers", np.uint8, 0),
        positions=joined("positions", np.float32, np.nan, (3,)),
        forces=joined("forces", np.float32, np.nan, (3,)),
        tags=joined("tags", np.uint8, MOLECULE_TAG),
        fixed=joined("fixed", bool, False),
        energy=np.array([system.energy for system in systems], np.float64),
        cell=np.stack([no_cell if system.cell is None else system.cell for system in systems]).astype(np.float32),
        pbc=np.array([system.pbc for system in systems], bool),
    )

"""The small data sets inside the package (HDF5 columns, eV and A) -> Systems with their scalar targets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxatoms.data.readers.checks import (
    check_cell,
    check_elements,
    check_finite,
    check_shape,
    check_tags,
    fail,
    open_hdf5,
    require_datasets,
)
from jaxatoms.types import System

VERSION = 2
_PREFIX = "target_"
_PER_NODE = {"atomic_numbers": (), "positions": (3,), "forces": (3,), "tags": (), "fixed": ()}
_PER_RECORD = {"n_node": (), "energy": (), "cell": (3, 3), "pbc": (3,), "group": ()}
_LAYOUT = "of a demo file: n_node, atomic_numbers, positions, energy, forces"


def read(path: Path | str) -> Iterator[System]:
    """Yields every structure. Energies and forces may be absent where the file holds scalar targets.

    Targets (`target_<name>`, in the unit of the file's `description`, NaN where missing) stand in `extra`.

    Raises:
      InputError: missing file, another layout, unknown element, NaN or infinite label, zero-volume cell.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        columns = _read_columns(path, file)
    _check_values(path, columns)
    ends = np.cumsum(columns["n_node"])
    for i, end in enumerate(ends):
        yield _system(columns, i, slice(int(end - columns["n_node"][i]), int(end)))


def _read_columns(path: Path, file: h5py.File) -> dict[str, Any]:
    targets = [name for name in file if name.startswith(_PREFIX)]
    labels = () if targets else ("energy", "forces")
    cell = ("cell", "pbc") if "cell" in file else ()
    require_datasets(path, "", file, ("n_node", "atomic_numbers", "positions", *labels, *cell), _LAYOUT)
    columns = {name: file[name][()] for name in (*_PER_RECORD, *_PER_NODE) if name in file}
    n_record, n_node = len(columns["n_node"]), int(columns["n_node"].sum())
    for name, values in columns.items():
        expected = (n_record, *_PER_RECORD[name]) if name in _PER_RECORD else (n_node, *_PER_NODE[name])
        check_shape(path, "", name, values.shape, expected)
    for name in targets:
        check_shape(path, "", name, file[name].shape, (n_record,))
    return {**columns, "targets": {name: file[name][()].astype(np.float64) for name in targets}}


def _check_values(path: Path, columns: dict[str, np.ndarray]) -> None:
    if (columns["n_node"] < 1).any():
        fail(path, f"record {int(np.argmin(columns['n_node']))}", "has no atoms", "remove the record")
    columns["atomic_numbers"] = check_elements(path, "", columns["atomic_numbers"])
    record_of_node = np.repeat(np.arange(len(columns["n_node"])), columns["n_node"])
    labels = ("positions",) if columns["targets"] else ("positions", "energy", "forces")
    for name in labels:
        if name in columns and not np.isfinite(columns[name]).all():
            row = int(np.argmin(np.isfinite(columns[name]).reshape(len(columns[name]), -1).all(axis=1)))
            record = row if name == "energy" else record_of_node[row]
            check_finite(path, f"record {record}", name, columns[name][row])
    if "tags" in columns:
        columns["tags"] = check_tags(path, "", columns["tags"])
    if "cell" in columns:
        for i, (cell, pbc) in enumerate(zip(columns["cell"], columns["pbc"], strict=True)):
            check_cell(path, f"record {i}", cell, pbc)


def _system(columns: dict[str, Any], i: int, nodes: slice) -> System:
    pbc = tuple(bool(flag) for flag in columns["pbc"][i]) if "pbc" in columns else (False, False, False)
    group = columns["group"][i] if "group" in columns else b""
    return System(
        atomic_numbers=columns["atomic_numbers"][nodes],
        positions=columns["positions"][nodes],
        cell=columns["cell"][i] if any(pbc) else None,
        pbc=pbc,
        energy=float(columns["energy"][i]) if "energy" in columns else float("nan"),
        forces=columns["forces"][nodes] if "forces" in columns else None,
        tags=columns["tags"][nodes] if "tags" in columns else None,
        fixed=columns["fixed"][nodes].astype(bool) if "fixed" in columns else None,
        group=group.decode() if isinstance(group, bytes) else str(group),
        key=f"record {i}",
        extra={name: values[i] for name, values in columns["targets"].items()},
    )

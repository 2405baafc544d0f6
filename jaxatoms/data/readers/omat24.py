"""OMat24 databases (`.aselmdb`: zlib-compressed JSON rows in LMDB) -> Systems with stress, eV, A and eV/A^3."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.constraints import dict2constraint

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, check_shape, fail, stress_matrix
from jaxatoms.data.readers.lmdb_file import open_lmdb, ranges, shards
from jaxatoms.data.readers.structures import PARTLY_FIXED, fixed_atoms
from jaxatoms.data.tags import surface_tags
from jaxatoms.types import System

VERSION = 2
PATTERN = "*.aselmdb"


def read(path: Path | str) -> Iterator[System]:
    """Yields every row of the databases below a folder, in the order of their names and ids.

    Tags and fixed atoms are kept where a row has them. The group is the row's id of origin (`data.sid` without its
    rattling suffix) where it has one; `extra` holds `stress` [3, 3] eV/A^3, NaN where missing.

    Raises:
      InputError: nothing there, a damaged file, a row without energy or forces, a bad value.

    Source: docs/reference/datasets.md, OMat24.
    """
    for part in parts(path):
        yield from read_part(part)


def parts(path: Path | str) -> list[tuple]:
    """(file, first, stop): pieces of the files' ids.

    Raises:
      InputError: nothing there, or a damaged file.
    """
    found = []
    for shard in shards(path, PATTERN):
        with open_lmdb(shard) as transaction:
            found += [(str(shard), *piece) for piece in ranges(len(_ids(shard, transaction)))]
    return found


def read_part(part: tuple) -> Iterator[System]:
    """Yields one piece of `parts`."""
    shard, first, stop = Path(part[0]), part[1], part[2]
    with open_lmdb(shard) as transaction:
        for i in _ids(shard, transaction)[first:stop]:
            yield _system(shard, f"row {i}", _decode(shard, f"row {i}", transaction.get(str(i).encode())))


def _ids(shard: Path, transaction) -> list[int]:
    """Rows are numbered from 1; deleted ones are listed."""
    following = transaction.get(b"nextid")
    if following is None:
        fail(shard, "", "has no 'nextid'", "expected an ASE database in LMDB form (.aselmdb)")
    deleted = transaction.get(b"deleted_ids")
    gone = set(_decode(shard, "deleted_ids", deleted)) if deleted else set()
    return [i for i in range(1, _decode(shard, "nextid", following)) if i not in gone]


def _decode(shard: Path, record: str, data: bytes | None):
    if data is None:
        fail(shard, record, "is absent", "download the file again")
    try:
        return json.loads(zlib.decompress(data), object_hook=_array)
    except (zlib.error, ValueError, TypeError) as error:
        fail(shard, record, f"damaged row ({error})", "download the file again")


def _array(value: dict):
    """ASE writes arrays as {"__ndarray__": [shape, type, flat list]}."""
    if "__ndarray__" not in value:
        return value
    shape, dtype, flat = value["__ndarray__"]
    return np.array(flat, np.dtype(dtype)).reshape(shape)


def _system(shard: Path, record: str, row: dict) -> System:
    for name in ("numbers", "positions", "cell", "pbc", "energy", "forces"):
        if row.get(name) is None:
            fail(shard, record, f"lacks '{name}'", "OMat24 rows carry a structure, energy and forces")
    numbers = check_elements(shard, record, np.asarray(row["numbers"]))
    positions, forces, cell = (np.asarray(row[name], np.float64) for name in ("positions", "forces", "cell"))
    for name, array in (("positions", positions), ("forces", forces)):
        check_shape(shard, record, name, array.shape, (len(numbers), 3))
        check_finite(shard, record, name, array)
    check_finite(shard, record, "energy", np.asarray(row["energy"]))
    pbc = np.asarray(row["pbc"], bool)
    fixed, n_partly = _fixed(shard, record, row, len(numbers))
    stress = stress_matrix(shard, record, row.get("stress"))
    return System(
        atomic_numbers=numbers,
        positions=positions,
        cell=check_cell(shard, record, cell, pbc),
        pbc=tuple(bool(flag) for flag in pbc),
        energy=float(row["energy"]),
        forces=forces,
        tags=surface_tags(f"{shard}: {record}", row.get("tags"), positions, cell),
        fixed=fixed,
        group=_origin(row),
        key=record,
        extra={"stress": stress} | ({PARTLY_FIXED: n_partly} if n_partly else {}),
    )


def _fixed(shard: Path, record: str, row: dict, n_node: int) -> tuple[np.ndarray | None, int]:
    constraints = row.get("constraints") or []
    try:
        constraints = json.loads(constraints) if isinstance(constraints, str) else constraints
        return fixed_atoms([dict2constraint(item) for item in constraints], n_node)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        fail(shard, record, f"unreadable constraints ({type(error).__name__}: {error})", "write the row again")


def _origin(row: dict) -> str:
    data = row.get("data")
    sid = data.get("sid", "") if isinstance(data, dict) else ""
    return str(sid).split("_rattled")[0]

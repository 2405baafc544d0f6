"""Open Catalyst S2EF shards (`data.NNNN.lmdb` of pickled records, old and new form) -> Systems in eV and A."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, check_shape, check_tags, fail
from jaxatoms.data.readers.lmdb_file import open_lmdb, ranges, shards
from jaxatoms.data.readers.unpickle import PlainRecord, RefusedPickle, load_pickle
from jaxatoms.types import System

PATTERN = "*.lmdb"
_ENERGY = ("y", "energy", "y_relaxed")  # the first that a record has
_FORCES = ("force", "forces")
_PERIODIC = (True, True, True)


def parts(path: Path | str) -> list[tuple]:
    """(shard, first, stop): pieces of the shards in name order, which concatenate to the whole.

    Raises:
      InputError: no shards, or a damaged one.
    """
    path, found = Path(path), []
    for shard in shards(path, PATTERN):
        with open_lmdb(shard) as transaction:
            found += [(str(shard), *piece) for piece in ranges(_count(shard, transaction))]
    return found


def read_part(part: tuple, group: str) -> Iterator[System]:
    """Yields the records of one piece; `group` is put before the system id to name the group.

    `extra` holds `sid` and `fid`, -1 where a record has none.

    Raises:
      InputError: a record that asks for more than arrays, lacks a label or holds a bad value.

    Source: docs/reference/datasets.md, Open Catalyst shards.
    """
    shard, first, stop = Path(part[0]), part[1], part[2]
    with open_lmdb(shard) as transaction:
        for i in range(first, stop):
            yield _system(shard, f"record {i}", _values(shard, i, transaction.get(str(i).encode())), group)


def _count(shard: Path, transaction) -> int:
    stored = transaction.get(b"length")
    if stored is None:
        return transaction.stat()["entries"]
    try:
        return int(load_pickle(stored))
    except (RefusedPickle, TypeError, ValueError) as error:
        fail(shard, "length", f"is no number ({error})", "download the file again")


def _values(shard: Path, i: int, data: bytes | None) -> dict:
    if data is None:
        fail(shard, f"record {i}", "is absent", "download the file again")
    try:
        record = load_pickle(data)
    except RefusedPickle as error:
        fail(shard, f"record {i}", f"refused: {error}", "use files from the Open Catalyst project only")
    values = record.values if isinstance(record, PlainRecord) else record
    if not isinstance(values, dict):
        fail(shard, f"record {i}", "is no Open Catalyst record", "check that this is an S2EF shard")
    return values


def _number(shard: Path, record: str, name: str, value: object) -> int:
    """An id, which some files hold as a tensor of one element; -1 where a record has none."""
    if value is None:
        return -1
    try:
        return int(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        fail(shard, record, f"'{name}' is {value!r:.40}, no whole number", "write the shard again")


def _system(shard: Path, record: str, values: dict, group: str) -> System:
    def get(*names: str) -> np.ndarray:
        for name in names:
            if values.get(name) is not None:
                return np.asarray(values[name])
        fail(shard, record, f"lacks '{names[0]}'", "S2EF records carry positions, energy, forces, tags and fixed")

    numbers = check_elements(shard, record, get("atomic_numbers").astype(np.int64))
    n = len(numbers)
    pos, forces, energy = get("pos"), get(*_FORCES), get(*_ENERGY).astype(np.float64).reshape(-1)
    check_shape(shard, record, "energy", energy.shape, (1,))
    for name, array in (("pos", pos), ("forces", forces)):
        check_shape(shard, record, name, array.shape, (n, 3))
    for name, array in (("pos", pos), ("forces", forces), ("energy", energy)):
        check_finite(shard, record, name, array)
    cell = get("cell").reshape(3, 3)
    check_cell(shard, record, cell, np.array(_PERIODIC))
    sid, fid = (_number(shard, record, name, values.get(name)) for name in ("sid", "fid"))
    return System(
        atomic_numbers=numbers,
        positions=pos,
        cell=cell,
        pbc=_PERIODIC,
        energy=float(energy[0]),
        forces=forces,
        tags=check_tags(shard, record, get("tags")),
        fixed=get("fixed").astype(bool),
        group=f"{group}{sid}" if sid >= 0 else "",
        key=record,
        extra={"sid": sid, "fid": fid},
    )

"""Systems into the columns of a store, streamed a thousand at a time; the folder is whole or absent."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

import numpy as np

from jaxatoms.data.columns import (
    COLUMNS,
    FORMAT_VERSION,
    N_ELEMENT,
    content_fingerprint,
    is_per_node,
    read_manifest,
)
from jaxatoms.data.concatenate import concatenate
from jaxatoms.io import is_running
from jaxatoms.types import DISK_REFUSALS, InputError, System

_SYSTEMS_PER_FLUSH = 1024
_BLOCK = 16 << 20  # bytes


def write_columns(
    systems: Iterator[System],
    path: Path | str,
    source: dict,
    record_columns: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Streams Systems into a new store; it appears at `path` whole or not at all, replacing an older one.

    Args:
      systems: checked structures, eV and A; consumed once, a thousand in memory at a time.
      path: folder of the store.
      source: where the systems come from, kept in the manifest.
      record_columns: called after the stream; extra per-record columns, name -> [n].

    Raises:
      InputError: no systems at all, a folder that cannot be written; or whatever the iterator raises.
    """
    _write_whole(Path(path), lambda writer: _append_all(writer, systems), source, record_columns)


def _write_whole(path: Path, fill: Callable, source: dict, record_columns: Callable | None) -> None:
    _remove_stale(path)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    _make_folder(scratch)
    try:
        _write_into(scratch, fill, source, record_columns)
        _move_into_place(scratch, path)
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def join_columns(
    pieces: Sequence[Path],
    path: Path | str,
    source: dict,
    record_columns: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Stores one after another into a new one, equal to what a single stream of their records would have written.

    Args: as `write_columns`; `pieces` are folders of stores.

    Raises:
      InputError: no pieces, a damaged one, a folder that cannot be written.
    """
    _write_whole(Path(path), lambda writer: [writer.append_store(piece) for piece in pieces], source, record_columns)


def _make_folder(scratch: Path) -> None:
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(scratch.parent, error) from None


def _cannot_write(path: Path, error: OSError) -> InputError:
    remedy = "free disk space or choose another cache folder with JAXATOMS_CACHE"
    return InputError(f"{path}: cannot be written ({error.strerror}); {remedy}")


def _remove_stale(path: Path) -> None:
    """Removes temporaries of conversions that were killed; those of a running process stay."""
    for folder in path.parent.glob(f".{path.name}.*-*-*"):
        pid = folder.name.rsplit("-", 2)[1]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(scratch: Path, path: Path) -> None:
    try:
        os.replace(scratch, path)
    except OSError:
        # os.replace cannot overwrite a folder that holds files, so the old one steps aside first.
        old = path.with_name(f".{path.name}.old-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        os.replace(path, old)
        os.replace(scratch, path)
        shutil.rmtree(old, ignore_errors=True)


def _append_all(writer: "_Writer", systems: Iterator[System]) -> None:
    while buffer := list(itertools.islice(systems, _SYSTEMS_PER_FLUSH)):
        writer.append(buffer)


def _write_into(folder: Path, fill: Callable, source: dict, record_columns: Callable | None) -> None:
    with _Writer(folder) as writer:
        fill(writer)
        if writer.n_record == 0:
            raise InputError(f"{source.get('path', folder)}: holds no usable structure; check the file")
        for name, values in (record_columns() if record_columns else {}).items():
            writer.add_record_column(name, np.asarray(values))
        manifest = writer.manifest(source)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


class _Writer:
    """Appends blocks of Systems to the columns of a folder and keeps the running counts and checksums."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.n_record = self.n_node = self.max_n_node = 0
        self.periodic = False
        self.histogram = np.zeros(N_ELEMENT, np.int64)
        self.groups: dict[str, int] = {}
        self.extra: dict[str, dict] = {}
        self.entries = {name: _entry(name, column.dtype, column.shape) for name, column in COLUMNS.items()}
        self.files, self.digests = {}, {}

    def __enter__(self) -> Self:
        for name in self.entries:
            self._start(name)
        self._append("offsets", np.zeros(1))
        return self

    def __exit__(self, kind, *_) -> None:
        for file in self.files.values():
            # What waits in the buffers of a full disk's files would only repeat the error.
            with contextlib.suppress(*(() if kind is None else (OSError,))):
                file.close()

    def append(self, systems: list[System]) -> None:
        """Writes a block of systems, one concatenation per column."""
        block = concatenate(systems)._asdict()
        n_node = block.pop("n_node")
        block["offsets"] = self.n_node + np.cumsum(n_node)
        block["group"] = np.array([self._group_code(system.group) for system in systems])
        for name, values in block.items():
            self._append(name, values)
        self._append_extra(systems)
        self.n_record += len(systems)
        self.n_node += int(n_node.sum())
        self.max_n_node = max(self.max_n_node, int(n_node.max()))
        self.periodic |= bool(block["pbc"].any())
        self.histogram += np.bincount(block["atomic_numbers"], minlength=N_ELEMENT)

    def append_store(self, piece: Path) -> None:
        """Writes all records of a store, column by column in blocks."""
        manifest = read_manifest(piece)
        codes = [self._group_code(name) for name in json.loads((piece / "groups.json").read_text())]
        extra = {name: entry for name, entry in manifest["columns"].items() if name not in COLUMNS}
        self._begin_extra(extra)
        for name in self.extra.keys() - extra.keys():
            n = manifest["n_node" if is_per_node(name, self.extra[name]) else "n_record"]
            self._append(name, _missing(self.extra[name], n))
        for name, entry in manifest["columns"].items():
            for block in _blocks(piece, entry):
                self._append(name, self._moved(name, block, np.array([*codes, -1])))
        self.n_record += manifest["n_record"]
        self.n_node += manifest["n_node"]
        self.max_n_node = max(self.max_n_node, manifest["max_n_node"])
        self.periodic |= manifest["periodic"]
        for number, count in manifest["elements"].items():
            self.histogram[int(number)] += count

    def _moved(self, name: str, block: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """A block of another store's column as it reads behind what is written here."""
        if name == "offsets":
            return block[1:] + self.n_node
        return codes[block] if name == "group" else block

    def _begin_extra(self, found: Mapping[str, dict]) -> None:
        """Opens columns that no earlier record had."""
        for name in sorted(found.keys() - self.extra.keys()):
            own = found[name]
            per_node = own.get("per_node", False)
            entry = _entry(name, own["dtype"], own["shape"]) | ({"per_node": True} if per_node else {})
            self.extra[name] = self.entries[name] = entry
            self._start(name)
            self._append(name, _missing(entry, self.n_node if per_node else self.n_record))

    def _append_extra(self, systems: list[System]) -> None:
        """Writes the values of `System.extra` and `System.atom_extra`.

        A column that begins or ends midway is missing elsewhere.
        """
        found = {name: np.asarray(value) for system in systems for name, value in (system.extra or {}).items()}
        columns = {
            name: {"dtype": "<f8" if value.dtype.kind == "f" else "<i8", "shape": value.shape}
            for name, value in found.items()
        }
        per_node = {"dtype": "<f8", "shape": (), "per_node": True}
        self._begin_extra(columns | {name: per_node for system in systems for name in system.atom_extra or {}})
        for name, entry in self.extra.items():
            if is_per_node(name, entry):
                rows = [(system.atom_extra or {}).get(name, _missing(entry, len(system.atomic_numbers)))
                        for system in systems]  # fmt: skip
                self._append(name, np.concatenate(rows))
                continue
            absent = _missing(entry, 1)[0]
            values = [(system.extra or {}).get(name, absent) for system in systems]
            self._append(name, np.array(values).reshape(-1, *entry["shape"]))

    def add_record_column(self, name: str, values: np.ndarray) -> None:
        """Writes a whole extra column, one row per record."""
        if len(values) != self.n_record:
            raise InputError(
                f"column '{name}' has {len(values)} rows for {self.n_record} records; read the file again"
            )
        self.entries[name] = _entry(name, values.dtype.str, values.shape[1:])
        self._start(name)
        self._append(name, values)

    def manifest(self, source: dict) -> dict:
        """Closes the columns; what belongs into manifest.json."""
        for name, file in self.files.items():
            file.flush()
            self.entries[name] |= {"size": file.tell(), "sha256": self.digests[name].hexdigest()}
        groups = json.dumps(list(self.groups))
        (self.folder / "groups.json").write_text(groups)
        return {
            "format_version": FORMAT_VERSION,
            "source": source,
            "n_record": self.n_record,
            "n_node": self.n_node,
            "max_n_node": self.max_n_node,
            "n_group": len(self.groups),
            "periodic": self.periodic,
            "elements": {str(z): int(self.histogram[z]) for z in np.flatnonzero(self.histogram)},
            "columns": self.entries,
            "fingerprint": content_fingerprint(self.entries, groups),
        }

    def _start(self, name: str) -> None:
        self.files[name] = open(self.folder / self.entries[name]["file"], "wb")  # noqa: SIM115 (closed in __exit__)
        self.digests[name] = hashlib.sha256()

    def _append(self, name: str, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.entries[name]["dtype"]).reshape(-1).view(np.uint8).data
        self.files[name].write(data)
        self.digests[name].update(data)

    def _group_code(self, group: str) -> int:
        return self.groups.setdefault(group, len(self.groups)) if group else -1


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> dict:
    # A column is named after a key of the user's, which may hold any character.
    return {"file": f"{quote(name, safe=' ')}.bin", "dtype": dtype, "shape": list(shape)}


def _blocks(folder: Path, entry: dict) -> Iterator[np.ndarray]:
    """A column in pieces of at most 16 MiB; whole where it is needed so (offsets, groups: 8 bytes a record)."""
    if entry["file"] in ("offsets.bin", "group.bin"):
        yield np.fromfile(folder / entry["file"], entry["dtype"])
        return
    size = np.dtype(entry["dtype"]).itemsize
    with open(folder / entry["file"], "rb") as file:
        while data := file.read(_BLOCK - _BLOCK % size):
            yield np.frombuffer(data, entry["dtype"])


def _missing(entry: dict, n_record: int) -> np.ndarray:
    return np.full((n_record, *entry["shape"]), np.nan if entry["dtype"] == "<f8" else -1)

"""Random access to converted data sets: memory-mapped columns read by index, without a loop over structures.

A store is a folder of raw little-endian columns, `groups.json` and `manifest.json`. Nothing here holds a
whole data set in memory, subtracts a reference or changes a unit.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxatoms.data.columns import COLUMNS, N_ELEMENT, read_manifest
from jaxatoms.data.convert import alone, convert
from jaxatoms.data.registry import READERS, DatasetSpec, resolve
from jaxatoms.data.source import fingerprint_source
from jaxatoms.data.writer import write_columns
from jaxatoms.types import InputError, System, SystemBatch

_RECORDS_PER_CHUNK = 65_536
_log = logging.getLogger(__name__)


class Store:
    """Random access to a converted data set.

    Attributes:
      path: folder of the store.
      manifest: what was written: counts, columns with their sha256, source, reader.
      n_node: [n] int32 atoms of each record.
      energy: [n] float64 total energies, eV; NaN where missing. Read only, on disk.

    Example:
      >>> store = Store.open("cache/ani1x-1f00"); batch = store.take(np.array([5, 2, 5]))
    """

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self._columns = {name: _map_column(path, name, entry) for name, entry in manifest["columns"].items()}
        self._offsets = self._columns["offsets"]
        self.n_node = np.diff(self._offsets).astype(np.int32)
        self.energy = self._columns["energy"]

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """The store in a folder, after checking its manifest and the size of every column.

        Raises:
          InputError: no store there, another format version, or a damaged one.
        """
        path = Path(path)
        return cls(path, read_manifest(path))

    def __len__(self) -> int:
        return self.manifest["n_record"]

    def __reduce__(self):  # workers map the files themselves instead of receiving the data
        return Store.open, (self.path,)

    @property
    def fingerprint(self) -> str:
        """Hash of the content (not of its place): equal stores hold equal records in equal order."""
        return self.manifest["fingerprint"]

    @property
    def source(self) -> str:
        """Where the records came from, for messages."""
        return str(self.manifest["source"].get("path", self.path))

    @property
    def largest_element(self) -> int:
        """The largest atomic number."""
        return int(self._columns["atomic_numbers"].max())

    @property
    def periodic(self) -> bool:
        """Whether any record is periodic in any direction."""
        return self.manifest["periodic"]

    @property
    def groups(self) -> tuple[np.ndarray, list[str]]:
        """[n] int32 group code of each record, and the names the codes index.

        A record that named no group is alone in one, called `#<record>`.
        """
        codes = np.array(self._columns["group"])
        names = json.loads((self.path / "groups.json").read_text())
        alone = np.flatnonzero(codes < 0)
        codes[alone] = len(names) + np.arange(len(alone), dtype=np.int32)
        return codes, names + [f"#{record}" for record in alone]

    @property
    def extra_columns(self) -> list[str]:
        """Names of the columns beside the usual ones: `target_<name>`, `atom_<name>`, `official_split`."""
        return sorted(set(self._columns) - set(COLUMNS))

    def column(self, name: str) -> np.ndarray:
        """The column of that name, read only, on disk; for per-record extras such as `target_gap` [n].

        Raises:
          InputError: no such column.
        """
        if name not in self._columns:
            known = ", ".join(self.extra_columns) or "none"
            raise InputError(f"{self.path}: the data set has no '{name}'; it has: {known}")
        return self._columns[name]

    def take(self, indices: np.ndarray) -> SystemBatch:
        """The records at these indices, in this order, repetitions allowed.

        Args:
          indices: [n_graph] integers in 0..len-1.

        Raises:
          IndexError: an index outside the store.
        """
        indices, rows = self._rows(indices)
        node = {
            name: np.take(self._columns[name], rows, axis=0)
            for name, column in COLUMNS.items()
            if column.per_node
        }
        return SystemBatch(
            n_node=self.n_node[indices],
            energy=self.energy[indices],
            cell=self._columns["cell"][indices],
            pbc=self._columns["pbc"][indices],
            **node,
        )

    def take_per_atom(self, name: str, indices: np.ndarray) -> np.ndarray:
        """[sum n_node] the values of a column with a row per atom, such as `atom_charges`, as `take` orders atoms."""
        return self.column(name)[self._rows(indices)[1]]

    def element_counts(self, indices: np.ndarray) -> np.ndarray:
        """[n_graph, 121] int32: atoms of each atomic number in each record. Chunk long index arrays."""
        indices, rows = self._rows(indices)
        record = np.repeat(np.arange(len(indices)), self.n_node[indices])
        flat = record * N_ELEMENT + self._columns["atomic_numbers"][rows]
        counts = np.bincount(flat, minlength=len(indices) * N_ELEMENT)
        return counts.reshape(len(indices), N_ELEMENT).astype(np.int32)

    def elements(self, indices: np.ndarray) -> np.ndarray:
        """[121] bool: the atomic numbers that occur in these records, however many they are."""
        found = np.zeros(N_ELEMENT, bool)
        indices = np.asarray(indices)
        for first in range(0, len(indices), _RECORDS_PER_CHUNK):
            _, rows = self._rows(indices[first : first + _RECORDS_PER_CHUNK])
            found[np.unique(self._columns["atomic_numbers"][rows])] = True
        return found

    def where(self, record: int) -> str:
        """The source and the record, as messages name them."""
        return f"{self.source}: structure {record}"

    def verify(self) -> None:
        """Reads every column once and compares its sha256 with the manifest.

        Raises:
          InputError: the content changed after it was written.
        """
        for name, entry in self.manifest["columns"].items():
            if _hash_file(self.path / entry["file"]) != entry["sha256"]:
                raise InputError(
                    f"{self.path}: damaged store (column '{name}' fails its checksum); "
                    "delete the folder and convert again"
                )

    def _rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices as int64, and the row of each of their atoms in the per-atom columns."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(
                f"record indices must lie in 0..{len(self) - 1}, got {indices.min()}..{indices.max()}"
            )
        n_node = self.n_node[indices].astype(np.int64)
        ends = np.cumsum(n_node)
        # Row of an atom = its place in the batch, moved by where its record starts in the store.
        shift = self._offsets[indices] - (ends - n_node)
        return indices, np.repeat(shift, n_node) + np.arange(ends[-1] if len(ends) else 0)


def write_store(
    systems: Iterator[System],
    path: Path | str,
    source: dict,
    record_columns: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> Store:
    """Streams Systems into a new store and opens it; see `writer.write_columns`.

    Raises:
      InputError: no systems at all, a folder that cannot be written; or whatever the iterator raises.
    """
    write_columns(systems, path, source, record_columns)
    return Store.open(path)


def open_dataset(
    name: str,
    data_root: Path | str | None = None,
    cache_dir: Path | str | None = None,
    workers: int = 1,
    notify: Callable[[int, int], None] | None = None,
) -> tuple[DatasetSpec, Store]:
    """The specification and the store of a named data set, converted where no up-to-date store is cached.

    Args:
      name: see `registry.resolve`.
      data_root: folder of the data sets; default the environment variable JAXATOMS_DATA.
      cache_dir: folder of the stores; default JAXATOMS_CACHE, then `~/.cache/jaxatoms`.
      workers, notify: of a conversion, see `convert.convert`.

    Returns:
      The specification with `periodic` decided by the records where it was open, and the store.

    Raises:
      InputError: unknown name, missing or faulty files.

    Example:
      >>> spec, store = open_dataset("demo:organic")
    """
    spec, source = resolve(name, data_root or os.environ.get("JAXATOMS_DATA") or None)
    cache = Path(cache_dir or os.environ.get("JAXATOMS_CACHE") or "~/.cache/jaxatoms").expanduser()
    path = _cache_path(cache, spec, source)
    described = _describe_source(spec, source)
    if not _is_current(path, described):
        with alone(path):
            if not _is_current(path, described):  # another process may have made it meanwhile
                _log.info("converting %s into %s", source, path)
                convert(spec, source, path, described, lambda: _record_columns(spec, source), workers, notify)
    store = Store.open(path)
    return (dataclasses.replace(spec, periodic=store.periodic) if spec.periodic is None else spec), store


def _cache_path(cache: Path, spec: DatasetSpec, source: Path) -> Path:
    slug = re.sub(r"[^\w.]+", "-", spec.store_name or spec.name)
    identity = "\0".join([str(source.resolve()), *(f"{key}={value}" for key, value in spec.options)])
    return cache / f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _describe_source(spec: DatasetSpec, source: Path) -> dict:
    reader = READERS[spec.reader]
    files = reader.source_files(source) if hasattr(reader, "source_files") else ()
    return {
        "path": str(source),
        "reader": spec.reader,
        "reader_version": reader.VERSION,
        **fingerprint_source(source, files),
    }


def _is_current(path: Path, described: dict) -> bool:
    try:
        manifest = read_manifest(path)
    except InputError:
        return False  # absent, half-made by an older version, or damaged: converting anew heals it
    return {**manifest["source"], "path": ""} == {**described, "path": ""}


def _record_columns(spec: DatasetSpec, source: Path) -> dict[str, np.ndarray]:
    """What a reader knows beside the Systems: the official split."""
    reader, columns = READERS[spec.reader], {}
    if hasattr(reader, "official_split") and (split := reader.official_split(source)) is not None:
        columns["official_split"] = split
    return columns


def _map_column(path: Path, name: str, entry: dict) -> np.ndarray:
    mapped = np.memmap(path / entry["file"], dtype=entry["dtype"], mode="r")
    # A plain view: the memmap subclass costs microseconds in every operation.
    return mapped.view(np.ndarray).reshape(-1, *entry["shape"])


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

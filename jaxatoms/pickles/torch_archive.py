"""What `torch.save` writes, in its zip and its legacy format: the object, and where the numbers of its tensors are.

Files are memory-mapped, and numbers are read when asked for.
"""

import mmap
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxatoms.pickles.unpickler import DamagedPickle, PickleError, StorageRef, TensorRef

MAX_PICKLE_BYTES = 1 << 28
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WEB = "a web page"
_KINDS = {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "gzip data", b"%PDF": "a PDF", b"<!DO": _WEB, b"<htm": _WEB}

Data = bytes | mmap.mmap
MakeUnpickler = Callable[[Any], Any]  # bytes, or an open file or memory map -> what reads its pickles


class TorchArchive(NamedTuple):
    """A saved object with `TensorRef` in place of tensors, and the bytes that they are views of."""

    content: Any
    data: Data
    places: dict[str, tuple[int, int]]  # storage key -> (position in `data`, bytes)
    byteorder: str = "little"

    def bytes_of(self, storage: StorageRef) -> tuple[Data, int]:
        """(what holds the numbers of a storage, where they begin in it).

        Raises:
          PickleError: they are missing or short.
        """
        if storage.held is not None or storage.numel == 0:
            return storage.held or b"", 0
        if storage.key not in self.places:
            raise PickleError(f"lacks the data of storage {storage.key}")
        start, found = self.places[storage.key]
        if found != storage.n_bytes:
            raise PickleError(f"has {found} bytes of storage {storage.key}, expected {storage.n_bytes}")
        return self.data, start

    def array(self, tensor: TensorRef) -> np.ndarray:
        """The numbers of a tensor, as a view of the data that cannot be written to.

        Raises:
          PickleError: as `bytes_of`.
        """
        dtype = tensor.storage.dtype.newbyteorder(">" if self.byteorder == "big" else "<")
        data, start = self.bytes_of(tensor.storage)
        first = start + tensor.offset * dtype.itemsize
        strides = tuple(step * dtype.itemsize for step in tensor.strides)
        try:
            return np.ndarray(tensor.shape, dtype, *((b"", 0) if 0 in tensor.shape else (data, first)), strides)
        except (ValueError, OverflowError) as error:
            raise PickleError(f"holds a tensor of an impossible shape ({error})") from None


def open_torch(path: Path | str, make: MakeUnpickler, checksums: bool = False) -> TorchArchive:
    """The archive in a file.

    Args:
      path: of the file.
      make: the reader's unpickler.
      checksums: compare those of a zip archive, which reads all of it.

    Raises:
      PickleError: no PyTorch file, a damaged one, or one that asks for more than the reader allows.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if not head:
            raise PickleError("is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return _read_zip(file, data, make, checksums) if head[:2] == b"PK" else read_legacy(data, make)
        except PickleError as error:
            if head[:2] == b"PK" or head[:1] == b"\x80" or not isinstance(error, DamagedPickle):
                raise
        except zipfile.BadZipFile:
            raise PickleError("is truncated or no zip archive") from None
        except Exception as error:  # a damaged archive can raise nearly anything
            raise PickleError(f"is damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from None
    kind = next((words for magic, words in _KINDS.items() if head.startswith(magic)), None)
    kind = kind or ("a tar archive" if tarfile.is_tarfile(path) else "unknown data")
    raise PickleError(f"is no PyTorch checkpoint but {kind}")


# --- zip: NAME/data.pkl and one uncompressed entry per storage, NAME/data/KEY -----------------------------


def _read_zip(file, data: Data, make: MakeUnpickler, checksums: bool) -> TorchArchive:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in entries if name.split("/")[-1] == "data.pkl"]
        if len(roots) != 1:
            raise PickleError(_not_a_checkpoint(entries))
        root = roots[0]
        if f"{root}constants.pkl" in entries:
            raise PickleError("is a TorchScript program, not a checkpoint of weights")
        if entries[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise PickleError("has an implausibly large table of contents")
        unpickler = make(archive.read(f"{root}data.pkl"))
        content, places = unpickler.load(), {}
        order = f"{root}byteorder"
        byteorder = archive.read(order).decode("ascii", "replace") if order in entries else "little"
    for key in unpickler.storages:
        if info := entries.get(f"{root}data/{key}"):
            start = _data_start(data, info)
            places[key] = (start, info.file_size)
            if checksums and zlib.crc32(data[start : start + info.file_size]) != info.CRC:
                raise PickleError(f"has a damaged storage {key}")
    return TorchArchive(content, data, places, byteorder)


def _data_start(data: Data, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin: behind its local header, whose length varies."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise PickleError("is compressed, which torch.save never does; save it again with torch")
    header = data[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise PickleError("has a damaged zip entry")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > len(data):
        raise PickleError("is truncated")
    return start


def _not_a_checkpoint(entries: dict) -> str:
    if "[Content_Types].xml" in entries:
        return "is an office document, not a PyTorch checkpoint"
    if any(name.endswith(".npy") for name in entries):
        return "is a NumPy archive, not a PyTorch checkpoint"
    return "is a zip archive, but not a PyTorch checkpoint"


# --- legacy: magic, protocol, system, object and keys as pickles, then length and numbers per storage ------


def read_legacy(data: Data, make: MakeUnpickler) -> TorchArchive:
    """The archive in bytes of the legacy format.

    Raises:
      PickleError: damaged, or one that asks for more than the reader allows.
    """
    unpickler = make(data)
    if unpickler.load() != _LEGACY_MAGIC:
        raise PickleError("is a pickle, but not of PyTorch")
    if (protocol := unpickler.load()) != _LEGACY_PROTOCOL:
        raise PickleError(f"has PyTorch's format number {protocol}, expected {_LEGACY_PROTOCOL}")
    system = unpickler.load()
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    byteorder: Literal["little", "big"] = "little" if little else "big"
    content, keys = unpickler.load(), unpickler.load()
    if not isinstance(keys, list):
        raise PickleError("has no list of storages")
    places, position = {}, unpickler.position
    for key in keys:
        if key not in unpickler.storages:
            raise PickleError(f"lists the unknown storage {key!r}")
        storage = unpickler.storages[key]
        start, stop = position + 8, position + 8 + storage.n_bytes
        if stop > len(data):
            raise PickleError("is truncated")
        if int.from_bytes(data[position:start], byteorder, signed=True) != storage.numel:
            raise PickleError(f"has a damaged storage {key}")
        places[key] = (start, storage.n_bytes)
        position = stop
    return TorchArchive(content, data, places, byteorder)

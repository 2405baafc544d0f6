"""PyTorch files (`torch.save`, zip and legacy format) -> their objects with lazily read arrays, without PyTorch.

    file = TorchFile("jmp-s.pt")
    file.content["state_dict"]["backbone.int_blocks.0.dense_ca.linear.weight"]   # a TensorRef: shape and dtype
    file.read(...)                                                              # its numbers as a NumPy array

Nothing of the file is executed (`torch_pickle`); storages are memory-mapped or read when asked for.
"""

import mmap
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.interop.torch_pickle import MAX_PICKLE_BYTES, CheckpointUnpickler, StorageRef, TensorRef, TorchFileError
from jaxatoms.types import InputError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WEB = "a web page"
_KINDS = {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "gzip data", b"%PDF": "a PDF", b"<!DO": _WEB, b"<htm": _WEB}


class TorchFile:
    """A file made by `torch.save`; `content` is what was saved, with `TensorRef` in place of tensors.

    Raises:
      InputError: missing, truncated, not a PyTorch file, or one that asks for code to be run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._places: dict[str, tuple[int, int]] = {}  # key -> (position in the file, bytes)
        try:
            with self.path.open("rb") as file:
                head = file.read(4)
            self.byteorder = "little"
            self.content = self._read_zip() if head[:2] == b"PK" else self._read_legacy(head)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read {self.path}: {reason}; give a PyTorch checkpoint") from error
        except (TorchFileError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} {_words(error)}; download it again or give another file") from None

    def read(self, tensor: TensorRef) -> np.ndarray:
        """The numbers of a tensor, memory-mapped where the file allows; not writable.

        Raises:
          InputError: the storage is missing or short.
        """
        storage = tensor.storage
        dtype = storage.dtype.newbyteorder(">" if self.byteorder == "big" else "<")
        if storage.numel == 0:
            return np.zeros(tensor.shape, storage.dtype)
        start, size = self._place(storage)
        if size != storage.numel * dtype.itemsize:
            raise InputError(
                f"{self.path}: storage {storage.key} has {size} bytes, expected {storage.numel} x {dtype.itemsize}; "
                "download the file again"
            )
        flat = np.memmap(self.path, dtype, "r", offset=start, shape=(storage.numel,))
        strides = tuple(s * dtype.itemsize for s in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        return np.asarray(view)

    def _place(self, storage: StorageRef) -> tuple[int, int]:
        if storage.key not in self._places:
            raise InputError(f"{self.path} lacks the data of storage {storage.key}; download it again")
        return self._places[storage.key]

    # --- zip: NAME/data.pkl and one uncompressed entry per storage, NAME/data/KEY -------------------------

    def _read_zip(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            roots = [name[: -len("data.pkl")] for name in entries if name.split("/")[-1] == "data.pkl"]
            if len(roots) != 1:
                raise TorchFileError(_not_a_checkpoint(entries))
            root = roots[0]
            if f"{root}constants.pkl" in entries:
                raise TorchFileError("is a TorchScript program, not a checkpoint of weights")
            if entries[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise TorchFileError("has an implausibly large table of contents")
            unpickler = CheckpointUnpickler(archive.read(f"{root}data.pkl"))
            content = unpickler.load()
            if f"{root}byteorder" in entries:
                self.byteorder = archive.read(f"{root}byteorder").decode("ascii", "replace")
            for key in unpickler.storages:
                info = entries.get(f"{root}data/{key}")
                if info is not None:
                    self._places[key] = (self._data_start(info), info.file_size)
        return content

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of an uncompressed entry begin: behind its local header, whose length varies."""
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError("is compressed, which torch.save never does; save it again with torch")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise TorchFileError("has a damaged zip entry")
            name, extra = struct.unpack("<HH", header[26:30])
            start = info.header_offset + 30 + name + extra
            if start + info.file_size > os.path.getsize(self.path):
                raise TorchFileError("is truncated")
        return start

    # --- legacy: magic, protocol, system, object and keys as pickles, then length and numbers per storage --

    def _read_legacy(self, head: bytes) -> Any:
        if not head:
            raise TorchFileError("is empty")
        if head[:1] != b"\x80":
            kind = next((words for magic, words in _KINDS.items() if head.startswith(magic)), None)
            kind = kind or ("a tar archive" if tarfile.is_tarfile(self.path) else "unknown data")
            raise TorchFileError(f"is no PyTorch checkpoint but {kind}")
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            unpickler = CheckpointUnpickler(b"")
            unpickler.use(data)
            if unpickler.load() != _LEGACY_MAGIC:
                raise TorchFileError("is a pickle, but not of PyTorch")
            if (protocol := unpickler.load()) != _LEGACY_PROTOCOL:
                raise TorchFileError(f"has PyTorch's format number {protocol}, expected {_LEGACY_PROTOCOL}")
            system = unpickler.load()
            little = system.get("little_endian", True) if isinstance(system, dict) else True
            self.byteorder = "little" if little else "big"
            content, keys = unpickler.load(), unpickler.load()
            self._index_legacy(data, unpickler.position, keys, unpickler.storages)
        return content

    def _index_legacy(self, data, position: int, keys: Any, storages: dict[str, StorageRef]) -> None:
        if not isinstance(keys, list):
            raise TorchFileError("has no list of storages")
        for key in keys:
            if key not in storages:
                raise TorchFileError(f"lists the unknown storage {key!r}")
            size = storages[key].numel * storages[key].dtype.itemsize
            count = data[position : position + 8]
            if len(count) < 8 or position + 8 + size > len(data):
                raise TorchFileError("is truncated")
            if struct.unpack("<q" if self.byteorder == "little" else ">q", count)[0] != storages[key].numel:
                raise TorchFileError(f"has a damaged storage {key}")
            self._places[key] = (position + 8, size)
            position += 8 + size


def _not_a_checkpoint(entries: dict) -> str:
    if "[Content_Types].xml" in entries:
        return "is an office document, not a PyTorch checkpoint"
    if any(name.endswith(".npy") for name in entries):
        return "is a NumPy archive, not a PyTorch checkpoint"
    return "is a zip archive, but not a PyTorch checkpoint"


def _words(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "is truncated or no zip archive"
    return str(error)


def tensors_of(content: Any, prefix: str = "") -> dict[str, TensorRef]:
    """Every tensor of nested dicts and lists by its path, "optimizer_states/0/ema/12"."""
    if isinstance(content, TensorRef):
        return {prefix: content}
    if isinstance(content, StorageRef | pickle.PickleBuffer):
        return {}
    pairs = content.items() if type(content) is dict else enumerate(content) if type(content) in (list, tuple) else ()
    found: dict[str, TensorRef] = {}
    for key, value in pairs:
        found |= tensors_of(value, f"{prefix}/{key}" if prefix else str(key))
    return found

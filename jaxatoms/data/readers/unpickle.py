"""Pickles from strangers -> plain containers and NumPy arrays; anything else a pickle asks for is refused.

Tensors and NumPy arrays become arrays, `torch_geometric` records become `PlainRecord`. Nothing that a pickle names is
run (`jaxatoms.pickles`). Torch is not needed.
"""

import functools
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxatoms.pickles.torch_archive import TorchArchive, open_torch, read_legacy
from jaxatoms.pickles.unpickler import Built, Called, FastUnpickler, PickleError, StorageRef, TensorRef
from jaxatoms.types import InputError

_SCALAR_KINDS = "biufcSU"  # NumPy types without Python objects inside


class RefusedPickle(InputError):
    """A pickle is damaged or asks for more than plain containers and arrays."""


def load_pickle(data: bytes) -> Any:
    """Plain containers, numbers, strings, arrays and `PlainRecord`s out of a pickle.

    Raises:
      RefusedPickle: naming what it asked for, or how it is damaged.
    """
    return _refusing(lambda: _plain(TorchArchive(_unpickler(data).load(), b"", {})))


def load_torch_file(path: Path | str) -> Any:
    """The content of a file written by `torch.save` (zip archive or the older form), tensors as arrays.

    Raises:
      RefusedPickle: as `load_pickle`.
      OSError: the file cannot be read.
    """
    return _refusing(lambda: _plain(open_torch(path, _unpickler, checksums=True)))


def _refusing(load):
    try:
        return load()
    except (RecursionError, MemoryError):
        raise RefusedPickle("too deeply nested or too large") from None
    except PickleError as error:
        raise RefusedPickle(str(error)) from None


class PlainRecord(Built):
    """The attributes of a record object (`torch_geometric.data.Data`, old or new form), and none of its behaviour."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise PickleError("record state is not a dictionary")
        self.__dict__.update(state)

    @property
    def values(self) -> dict[str, Any]:
        """Name -> value, wherever the version that wrote the record kept them."""
        store = self.__dict__.get("_store")
        inner = store.__dict__.get("_mapping") if isinstance(store, PlainRecord) else None
        return inner if isinstance(inner, dict) else self.__dict__


class _ArrayParts(Built):
    """A NumPy array under construction: `_reconstruct` makes it, its state fills it."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, data = state
        self.array = _from_buffer(data, dtype, shape, "F" if column_major else "C")


class _DtypeParts(Built):
    """A NumPy type under construction; only its byte order is taken from its state."""

    def __init__(self, name: str, *_):
        self.dtype = np.dtype(name)
        if self.dtype.kind not in _SCALAR_KINDS:
            raise PickleError(f"asks for an array of type {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _from_buffer(data: bytes, dtype: _DtypeParts, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    return np.ndarray(shape, dtype.dtype, np.frombuffer(data, np.uint8).data, order=order).copy()


def _scalar(dtype: _DtypeParts, data: bytes):
    return np.frombuffer(data, dtype.dtype)[0]


def _storage_from_bytes(data: bytes) -> StorageRef:
    """A storage that is itself a small torch file."""
    archive = read_legacy(data, _unpickler)
    if archive.byteorder != "little" or not isinstance(archive.content, StorageRef):
        raise PickleError("holds something else than a little-endian storage")
    held, start = archive.bytes_of(archive.content)
    return archive.content._replace(held=held[start : start + archive.content.n_bytes])


def _refuse(name: str):
    raise PickleError(f"asks for {name}")


_NUMPY = {
    "multiarray._reconstruct": Called(lambda *_: _ArrayParts()),
    "multiarray.scalar": Called(_scalar),
    "numeric._frombuffer": Called(_from_buffer),
    "ndarray": None,  # named, never built
    "dtype": Called(_DtypeParts),
}
_PYG = "torch_geometric.data"
_NAMES: dict[str, Any] = {
    **{f"{core}.{name}": value for name, value in _NUMPY.items() for core in ("numpy", "numpy.core", "numpy._core")},
    "torch.storage._load_from_bytes": Called(_storage_from_bytes),
    **{f"{_PYG}.{name}": PlainRecord for name in ("data.Data", "storage.GlobalStorage", "storage.BaseStorage")},
    **{f"{_PYG}.data.{name}": None for name in ("DataEdgeAttr", "DataTensorAttr")},  # of some versions, never built
}
_unpickler = functools.partial(FastUnpickler, unknown=_refuse, names=_NAMES)


def _plain(archive: TorchArchive) -> Any:
    """Replaces the stand-ins inside containers; a pickle may share containers and close circles."""
    return _replace(archive.content, archive, {})


def _replace(value: Any, archive: TorchArchive, memo: dict[int, tuple]) -> Any:
    if isinstance(value, _ArrayParts):
        return value.array
    if isinstance(value, TensorRef):
        return _array(archive, value)
    if isinstance(value, _DtypeParts | Called | StorageRef):
        raise PickleError("holds a type, function or bare storage instead of data")
    if not isinstance(value, dict | list | tuple | PlainRecord):
        return value
    if id(value) not in memo:
        memo[id(value)] = (value, value)  # kept with the value itself, so that its id stays its own
        memo[id(value)] = (value, _replace_inside(value, archive, memo))
    return memo[id(value)][1]


def _replace_inside(value: Any, archive: TorchArchive, memo: dict[int, tuple]) -> Any:
    if isinstance(value, tuple):
        return tuple(_replace(item, archive, memo) for item in value)
    inner = value.__dict__ if isinstance(value, PlainRecord) else value
    for key, item in list(enumerate(inner) if isinstance(inner, list) else inner.items()):
        inner[key] = _replace(item, archive, memo)
    return value


def _array(archive: TorchArchive, tensor: TensorRef) -> np.ndarray:
    """A copy, which must not be larger than what it is a view of: a pickle may hold many of them."""
    if math.prod(tensor.shape) > tensor.storage.numel:
        raise PickleError(f"array of shape {tensor.shape} has data for {tensor.storage.numel} values only")
    return archive.array(tensor).copy()

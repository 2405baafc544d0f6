"""Pickles from strangers -> plain containers and NumPy arrays; anything else a pickle asks for is refused.

A pickle names the functions it wants called. Here only the names below exist, and each is a small stand-in of our
own: tensors and NumPy arrays become arrays, `torch_geometric` records become `PlainRecord`. Torch is not needed.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxatoms.types import InputError

_TORCH_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first of the pickles in a torch file that is no zip archive
_SCALAR_KINDS = "biufcSU"  # NumPy types without Python objects inside


class RefusedPickle(InputError):
    """A pickle is damaged or asks for more than plain containers and arrays."""


def load_pickle(data: bytes) -> Any:
    """Plain containers, numbers, strings, arrays and `PlainRecord`s out of a pickle.

    Raises:
      RefusedPickle: naming what it asked for, or how it is damaged.
    """
    return _plain(_load(io.BytesIO(data), {}))


def load_torch_file(path: Path | str) -> Any:
    """The content of a file written by `torch.save` (zip archive or the older form), tensors as arrays.

    Raises:
      RefusedPickle: as `load_pickle`.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return _plain(_guarded(lambda: _load_either(file)))


class PlainRecord:
    """The attributes of a record object (`torch_geometric.data.Data`, old or new form), and none of its behaviour."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise RefusedPickle("record state is not a dictionary")
        self.__dict__.update(state)

    @property
    def values(self) -> dict[str, Any]:
        """Name -> value, wherever the version that wrote the record kept them."""
        store = self.__dict__.get("_store")
        inner = store.__dict__.get("_mapping") if isinstance(store, PlainRecord) else None
        return inner if isinstance(inner, dict) else self.__dict__


class _Stand:
    """A callable that a pickle may call but not change (`BUILD` would otherwise set attributes on it)."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise RefusedPickle("tries to change a function")


class _ArrayParts:
    """A NumPy array under construction: `_reconstruct` makes it, `BUILD` fills it."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        self.array = _from_buffer(data, dtype, shape, "F" if column_major else "C")


class _DtypeParts:
    """A NumPy type under construction; only its byte order is taken from its state."""

    def __init__(self, name: str, *_):
        self.dtype = np.dtype(name)
        if self.dtype.kind not in _SCALAR_KINDS:
            raise RefusedPickle(f"asks for an array of type {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _from_buffer(data: bytes, dtype: _DtypeParts, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    return np.ndarray(shape, dtype.dtype, np.frombuffer(data, np.uint8).data, order=order).copy()


def _scalar(dtype: _DtypeParts, data: bytes):
    return np.frombuffer(data, dtype.dtype)[0]


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
    _check_size(shape, len(storage))
    item = storage.dtype.itemsize
    # NumPy checks that the view stays inside the storage.
    view = np.ndarray(shape, storage.dtype, storage.data, offset * item, tuple(s * item for s in strides))
    return view.copy()


def _check_size(shape: tuple, n_held: int) -> None:
    if math.prod(shape) > n_held or any(n < 0 for n in shape):
        raise RefusedPickle(f"array of shape {tuple(shape)} has data for {n_held} values only")


def _storage_from_bytes(data: bytes) -> np.ndarray:
    return _guarded(lambda: _load_legacy(io.BytesIO(data)))


_NUMPY = {
    "multiarray._reconstruct": lambda *_: _ArrayParts(),
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": lambda data, dtype, shape, order: _from_buffer(data, dtype, shape, order),
    "ndarray": None,
    "dtype": _DtypeParts,
}
_NAMES: dict[str, Any] = {
    **{f"{core}.{name}": value for name, value in _NUMPY.items() for core in ("numpy", "numpy.core", "numpy._core")},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch.Size": tuple,
    "collections.OrderedDict": dict,
    "_codecs.encode": lambda text, coding: text.encode(coding if coding == "latin1" else "ascii"),
    "torch_geometric.data.data.DataEdgeAttr": None,  # named by some versions, never built
    "torch_geometric.data.data.DataTensorAttr": None,
}
_RECORD_CLASSES = (
    "torch_geometric.data.data.Data",
    "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.BaseStorage",
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storages: dict):
        super().__init__(file, encoding="latin1")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _RECORD_CLASSES:
            return PlainRecord
        if module == "torch" and name in _TORCH_DTYPES:
            return _TORCH_DTYPES[name]
        if full not in _NAMES:
            raise RefusedPickle(f"asks for {full}")
        return _NAMES[full] and _Stand(_NAMES[full])

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, size = pid[:5]
        if key not in self.storages:
            self.storages[key] = np.zeros(0, dtype) if size == 0 else self.read_storage(key, dtype, size)
        return self.storages[key]

    def read_storage(self, key: str, dtype: str, size: int) -> np.ndarray:
        """A storage seen for the first time, of `size` values."""
        raise RefusedPickle("refers to data outside itself")


class _ZipUnpickler(_Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file, {})
        self.archive, self.root = archive, root

    def read_storage(self, key: str, dtype: str, size: int) -> np.ndarray:
        member = self.archive.getinfo(f"{self.root}/data/{key}")
        if member.file_size != size * np.dtype(dtype).itemsize:
            raise RefusedPickle("storage sizes differ")
        return np.frombuffer(self.archive.read(member), dtype)


class _LegacyUnpickler(_Unpickler):
    """The object of an older torch file: its storages are announced here and follow behind it."""

    def __init__(self, file, limit: int):
        super().__init__(file, {})
        self.limit = limit  # bytes; no storage is larger than its file

    def read_storage(self, key: str, dtype: str, size: int) -> np.ndarray:
        if not 0 <= size * np.dtype(dtype).itemsize <= self.limit:
            raise RefusedPickle(f"asks for {size} values, more than the file holds")
        return np.zeros(size, dtype)


def _load(file, storages: dict) -> Any:
    return _guarded(_Unpickler(file, storages).load)


def _guarded(load):
    """Calls `load`, whose every failure on damaged input is a refusal."""
    try:
        return load()
    except RefusedPickle:
        raise
    except (RecursionError, MemoryError):
        raise RefusedPickle("too deeply nested or too large") from None
    except Exception as error:
        raise RefusedPickle(f"damaged pickle ({type(error).__name__}: {error})") from None


def _load_either(file) -> Any:
    load = _load_zip if zipfile.is_zipfile(file) else _load_legacy
    file.seek(0)
    return load(file)


def _load_zip(file) -> Any:
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        root = name.removesuffix("/data.pkl")
        return _ZipUnpickler(io.BytesIO(archive.read(name)), archive, root).load()


def _load_legacy(file) -> Any:
    """Magic number, version, platform, the object, the names of its storages, then their contents."""
    if _load(file, {}) != _LEGACY_MAGIC:
        raise RefusedPickle("not a torch file")
    _load(file, {}), _load(file, {})
    # Tensors copy from their storage while they are built, so the contents are fetched first: the object is
    # passed over once to reach them and read a second time with them in hand.
    start, limit = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(start)
    first = _LegacyUnpickler(file, limit)
    first.load()
    keys, storages = _load(file, {}), {}
    for key in keys:
        announced = first.storages[key]
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        if count != len(announced):
            raise RefusedPickle("storage sizes differ")
        storages[key] = np.frombuffer(file.read(announced.nbytes), announced.dtype)
    file.seek(start)
    return _load(file, storages)


def _plain(value: Any) -> Any:
    """Replaces the stand-ins inside containers; a pickle may share containers and close circles."""
    return _guarded(lambda: _replace(value, {}))


def _replace(value: Any, memo: dict[int, tuple]) -> Any:
    if isinstance(value, _ArrayParts):
        return value.array
    if isinstance(value, _DtypeParts | _Stand):
        raise RefusedPickle("holds a type or function instead of data")
    if not isinstance(value, dict | list | tuple | PlainRecord):
        return value
    if id(value) not in memo:
        memo[id(value)] = (value, value)  # kept with the value itself, so that its id stays its own
        memo[id(value)] = (value, _replace_inside(value, memo))
    return memo[id(value)][1]


def _replace_inside(value: Any, memo: dict[int, tuple]) -> Any:
    if isinstance(value, tuple):
        return tuple(_replace(item, memo) for item in value)
    inner = value.__dict__ if isinstance(value, PlainRecord) else value
    for key, item in list(enumerate(inner) if isinstance(inner, list) else inner.items()):
        inner[key] = _replace(item, memo)
    return value

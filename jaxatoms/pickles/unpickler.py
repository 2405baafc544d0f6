"""Pickles, those of PyTorch among them, without PyTorch and without running anything that they name.

A pickle may ask for any function of any installed package to be called. Here only the entries of `_CALLED` are, all of
them our own, and what a reader adds; what becomes of every other name is for the reader to say. Nothing is imported.
NumPy and the standard library only.
"""

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_EXPANDED = 1 << 20  # elements of a tensor that repeats its storage (stride 0)
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class PickleError(ValueError):
    """A pickle or its file is damaged or asks for more than its reader allows; the message is what it does or is."""


class DamagedPickle(PickleError):
    """A pickle is none, or not whole."""


class StorageRef(NamedTuple):
    """A block of numbers elsewhere in the file, or in `held` where a pickle has it inside."""

    key: str
    dtype: np.dtype
    numel: int
    held: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """Of the numbers."""
        return self.numel * self.dtype.itemsize


class TensorRef(NamedTuple):
    """A view of a storage; strides and offset count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Called:
    """A function of ours under a name of theirs."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise PickleError("tries to alter a function")


class Built:
    """An object of ours that a pickle makes and gives a state; abstract: each class says what it takes of the state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise NotImplementedError


class Opaque(Built):
    """An object of a class that was not imported: its name, arguments, state and items."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items = name, args, None, []

    def __repr__(self) -> str:
        return f"<{self.name}, not imported>"

    def __call__(self, *args: Any, **_: Any) -> "Opaque":
        return Opaque(self.name, args)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """Receives the items of a list subclass."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Receives the items of a list subclass."""
        self.items.extend(values)

    def __hash__(self) -> int:
        return id(self)


class _StorageType(NamedTuple):
    dtype: Any  # np.dtype, or None for a kind that is not supported
    name: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    """torch._utils._rebuild_tensor_v2, checked: the view must lie inside its storage."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageRef) or not all(type(n) is int and n >= 0 for n in numbers):
        raise PickleError("holds a tensor that is no plain view of a storage")
    if len(shape) != len(strides):
        raise PickleError("holds a tensor whose shape and strides differ in length")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else -1
    if last >= storage.numel or count > max(storage.numel, MAX_EXPANDED):
        raise PickleError(f"holds a tensor of shape {tuple(shape)} that exceeds its storage of {storage.numel}")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _ordered(*args: Any) -> dict:
    return dict(*args[:1])


def _from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, Called):
        raise PickleError("rebuilds a tensor with an unknown function")
    return function(*args)


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """How old pickles write bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise PickleError(f"encodes bytes as {codec!r}")
    return text.encode("latin1")


_CALLED = {
    "torch._utils._rebuild_tensor_v2": Called(_tensor),
    "torch._utils._rebuild_tensor": Called(_tensor),
    "torch._utils._rebuild_parameter": Called(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Called(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": Called(_from_type),
    "torch.Size": Called(lambda values=(): tuple(values)),
    "collections.OrderedDict": Called(_ordered),
    "collections.defaultdict": Called(lambda *_: {}),
    "_codecs.encode": Called(_encode),
}


class _Restricted:
    """What both unpicklers share: they read pickles one after another; `storages` collects storages by key.

    Args:
      stream: bytes, or an open binary file or memory map.
      unknown: (full name) -> what stands for a name that is neither in `_CALLED` nor in `names`; may raise PickleError.
      names: full name -> what stands for it: functions as `Called`, classes that derive from `Built`, None.
    """

    def __init__(self, stream: Any, unknown: Callable[[str], Any], names: Mapping[str, Any] | None = None):
        self.storages: dict[str, StorageRef] = {}
        self._stream = io.BytesIO(stream) if isinstance(stream, bytes) else stream
        self._unknown, self._names = unknown, names or {}
        super().__init__(self._stream, encoding="latin1")  # type: ignore[call-arg]

    @property
    def position(self) -> int:
        """Where the next pickle or the data behind the last one begins."""
        return self._stream.tell()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        full = f"{module}.{name}"
        if full in self._names:
            return self._names[full]
        if full in _CALLED:
            return _CALLED[full]
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]), name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _StorageType(None, name)
        return self._unknown(full)

    def persistent_load(self, pid: Any) -> StorageRef:
        """("storage", type, key, location, numel[, view]) -> where the numbers are."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise PickleError("refers to an object outside the file")
        kind, key, numel = pid[1], pid[2], pid[4]
        if kind.dtype is None:
            raise PickleError(f"stores numbers as {kind.name}, which is not supported")
        if len(pid) > 5 and pid[5] is not None:
            raise PickleError("holds a view of a storage, as files from before PyTorch 0.4 do")
        if type(numel) is not int or numel < 0 or not isinstance(key, str):
            raise PickleError("describes a storage wrongly")
        return self.storages.setdefault(key, StorageRef(key, kind.dtype, numel))

    def load(self) -> Any:
        """The object.

        Raises:
          PickleError: damaged, or refused.
        """
        try:
            return super().load()  # type: ignore[misc]
        except PickleError:
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            words = " ".join(str(error).split())[:120]
            raise DamagedPickle(f"has a damaged pickle ({type(error).__name__}: {words})") from None


class FastUnpickler(_Restricted, pickle.Unpickler):
    """For many small pickles, in C. A hostile pickle can make its memo large, and `Opaque` is no class to it."""


class Unpickler(_Restricted, pickle._Unpickler):  # type: ignore[name-defined, misc]
    """For files with objects of unknown classes, in Python and half as fast; its memo cannot be made to allocate."""

    # The inherited versions of these opcodes would treat our objects as classes, or set attributes of theirs.
    def _new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        if isinstance(arguments, dict):  # NEWOBJ_EX has keywords on top
            arguments, kind = kind, self.stack.pop()  # type: ignore[attr-defined]
        self._instantiate(kind, arguments)

    def _instantiate(self, klass: Any, args: Any) -> None:
        if not (isinstance(klass, Opaque | Called) or (isinstance(klass, type) and issubclass(klass, Built))):
            raise PickleError("makes an instance of something that is no class")
        self.append(klass(*args))  # type: ignore[attr-defined]

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, Built | Called):
            target.__setstate__(state)
        elif not isinstance(target, dict):  # the state of an ordered dict is metadata of PyTorch's
            raise PickleError("tries to alter an object")

    dispatch = dict(pickle._Unpickler.dispatch) | {  # type: ignore[attr-defined, assignment]
        pickle.NEWOBJ[0]: _new_object,
        pickle.NEWOBJ_EX[0]: _new_object,
        pickle.BUILD[0]: _build,
    }

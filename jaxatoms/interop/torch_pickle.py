"""Pickles of PyTorch checkpoints without PyTorch and without running anything that they name.

A pickle may ask for any function of any installed package to be called. Here only the entries of `_CALLED` are, all of
them our own; every other name becomes an `Opaque` record that is never imported, and names that have no business in a
checkpoint are refused. NumPy and the standard library only.
"""

import io
import pickle
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_PICKLE_BYTES = 1 << 28
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
# First parts of module names that are reasons to refuse a file rather than to ignore the object.
_REFUSED = frozenset(
    "os posix nt subprocess sys shutil socket ctypes importlib runpy pickle _pickle marshal code codeop pty platform "  # noqa: SIM905
    "multiprocessing threading asyncio http urllib requests webbrowser tempfile io _io inspect gc signal operator "
    "commands popen2 pip setuptools distutils site builtins __builtin__".split()
)
_HARMLESS_BUILTINS = frozenset(
    "set frozenset slice complex range bytearray bytes list dict tuple int float str bool object type".split()  # noqa: SIM905
)


class TorchFileError(ValueError):
    """A pickle is damaged or names something that this reader refuses; the message says what."""


class StorageRef(NamedTuple):
    """A block of numbers elsewhere in the file."""

    key: str
    dtype: np.dtype
    numel: int


class TensorRef(NamedTuple):
    """A view of a storage; strides and offset count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
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

    def append(self, value: Any) -> None:
        """Receives the items of a list subclass."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Receives the items of a list subclass."""
        self.items.extend(values)

    def __hash__(self) -> int:
        return id(self)


class _Called:
    """A function of ours under a name of theirs."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _StorageType(NamedTuple):
    dtype: Any  # np.dtype, or None for a kind that is not supported
    name: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    """torch._utils._rebuild_tensor_v2, checked: the view must lie inside its storage."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageRef) or not all(type(n) is int and n >= 0 for n in numbers):
        raise TorchFileError("holds a tensor that is no plain view of a storage")
    if len(shape) != len(strides):
        raise TorchFileError("holds a tensor whose shape and strides differ in length")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else -1
    if last >= storage.numel or count > max(storage.numel, MAX_EXPANDED):
        raise TorchFileError(f"holds a tensor of shape {tuple(shape)} that exceeds its storage of {storage.numel}")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _ordered(*args: Any) -> dict:
    return dict(*args[:1])


def _from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, _Called):
        raise TorchFileError("rebuilds a tensor with an unknown function")
    return function(*args)


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """How old pickles write bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise TorchFileError(f"encodes bytes as {codec!r}")
    return text.encode("latin1")


_CALLED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Size"): lambda values=(): tuple(values),
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _encode,
}


class CheckpointUnpickler(pickle._Unpickler):  # type: ignore[name-defined]  # its memo cannot be made to allocate
    """Unpickles one object; `storages` collects the storages it refers to, by key."""

    def __init__(self, data: bytes):
        self.storages: dict[str, StorageRef] = {}
        self._stream: Any = io.BytesIO(data)
        super().__init__(self._stream)

    def use(self, stream: Any) -> None:
        """Read from an open file instead: several pickles, one after another."""
        self._stream = stream
        super().__init__(stream)

    @property
    def position(self) -> int:
        """Where the next pickle or the data behind the last one begins."""
        return self._stream.tell()

    def find_class(self, module: str, name: str) -> Any:
        """Ours for what is allowed, `Opaque` for the rest; nothing is imported."""
        if (module, name) in _CALLED:
            return _Called(_CALLED[module, name])
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]), name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _StorageType(None, name)
        root = module.split(".")[0]
        harmless = root in ("builtins", "__builtin__") and name in _HARMLESS_BUILTINS
        if root in _REFUSED and not harmless:
            raise TorchFileError(f"asks to call {module}.{name}, which no checkpoint needs")
        return Opaque(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> StorageRef:
        """("storage", type, key, location, numel[, view]) -> where the numbers are."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise TorchFileError("refers to an object outside the file")
        kind, key, numel = pid[1], pid[2], pid[4]
        if kind.dtype is None:
            raise TorchFileError(f"stores numbers as {kind.name}, which is not supported")
        if len(pid) > 5 and pid[5] is not None:
            raise TorchFileError("holds a view of a storage, as files from before PyTorch 0.4 do")
        if type(numel) is not int or numel < 0 or not isinstance(key, str):
            raise TorchFileError("describes a storage wrongly")
        return self.storages.setdefault(key, StorageRef(key, kind.dtype, numel))

    def load(self) -> Any:
        """The object.

        Raises:
          TorchFileError: damaged, or refused.
        """
        try:
            return super().load()
        except TorchFileError:
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            words = " ".join(str(error).split())[:120]
            raise TorchFileError(f"has a damaged pickle ({type(error).__name__}: {words})") from None

    # The inherited versions of these opcodes would treat our objects as classes, or set attributes of theirs.
    def _new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        if isinstance(arguments, dict):  # NEWOBJ_EX has keywords on top
            arguments, kind = kind, self.stack.pop()  # type: ignore[attr-defined]
        self._instantiate(kind, arguments)

    def _instantiate(self, klass: Any, args: Any) -> None:
        if not isinstance(klass, Opaque | _Called):
            raise TorchFileError("makes an instance of something that is no class")
        self.append(klass(*args))  # type: ignore[attr-defined]

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, Opaque):
            target.state = state
        elif not isinstance(target, dict):  # the state of an ordered dict is metadata of PyTorch's
            raise TorchFileError("tries to alter an object")

    dispatch = dict(pickle._Unpickler.dispatch) | {  # type: ignore[attr-defined, assignment]
        pickle.NEWOBJ[0]: _new_object,
        pickle.NEWOBJ_EX[0]: _new_object,
        pickle.BUILD[0]: _build,
    }

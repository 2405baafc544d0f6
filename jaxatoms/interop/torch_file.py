"""PyTorch checkpoints (`torch.save`, zip and legacy format) -> their objects with lazily read arrays, without PyTorch.

    file = TorchFile("jmp-s.pt")
    file.content["state_dict"]["backbone.int_blocks.0.dense_ca.linear.weight"]   # a TensorRef: shape and dtype
    file.read(...)                                                              # its numbers as a NumPy array

Nothing of the file is executed: objects of unknown classes become `Opaque` records, and names that have no business in
a checkpoint are refused.
"""

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.pickles.torch_archive import open_torch
from jaxatoms.pickles.unpickler import Opaque, PickleError, StorageRef, TensorRef, Unpickler
from jaxatoms.types import InputError

# First parts of module names that are reasons to refuse a file rather than to ignore the object.
_REFUSED = frozenset(
    "os posix nt subprocess sys shutil socket ctypes importlib runpy pickle _pickle marshal code codeop pty platform "  # noqa: SIM905
    "multiprocessing threading asyncio http urllib requests webbrowser tempfile io _io inspect gc signal operator "
    "commands popen2 pip setuptools distutils site builtins __builtin__".split()
)
_HARMLESS_BUILTINS = frozenset(
    "set frozenset slice complex range bytearray bytes list dict tuple int float str bool object type".split()  # noqa: SIM905
)


class TorchFile:
    """A file made by `torch.save`; `content` is what was saved, with `TensorRef` in place of tensors.

    Raises:
      InputError: missing, truncated, not a PyTorch file, or one that asks for code to be run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._archive = open_torch(self.path, functools.partial(Unpickler, unknown=_unknown))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read {self.path}: {reason}; give a PyTorch checkpoint") from error
        except PickleError as error:
            raise InputError(f"{self.path} {error}; download it again or give another file") from None
        self.content = self._archive.content

    def read(self, tensor: TensorRef) -> np.ndarray:
        """The numbers of a tensor, memory-mapped; not writable.

        Raises:
          InputError: the storage is missing or short.
        """
        try:
            return self._archive.array(tensor)
        except PickleError as error:
            raise InputError(f"{self.path} {error}; download it again") from None


def _unknown(name: str) -> Opaque:
    """A record of an object of an unknown class, unless the name is a reason to refuse the file."""
    root, _, rest = name.partition(".")
    harmless = root in ("builtins", "__builtin__") and rest in _HARMLESS_BUILTINS
    if root in _REFUSED and not harmless:
        raise PickleError(f"asks to call {name}, which no checkpoint needs")
    return Opaque(name)


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

"""Small files that appear whole or not at all: written beside their place, synced, then renamed."""

import contextlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.types import InputError

# What reading a damaged .npz, or another file, may raise.
_UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden neighbour of `path` to write; it takes the place of `path` when the block ends well, and goes if not."""
    draft = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield draft
        sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Replace a text file in one step."""
    with replacing(path) as draft:
        draft.write_text(text)


def write_json(path: Path, record: Any, default: Callable[[Any], Any] | None = None):
    """Replace a JSON file in one step.

    Args:
      default: turns what JSON cannot hold into what it can, as in `json.dumps`.
    """
    write_text(path, json.dumps(record, indent=1, default=default) + "\n")


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None: JSON has no word for them, and other readers refuse Python's."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz, its folder where that is missing.

    Raises:
      InputError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft, open(draft, "wb") as file:  # of a mere name NumPy would make another one
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None


@contextlib.contextmanager
def open_npz(path: str | os.PathLike, problem: str, remedy: str) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz by name, for a block that does nothing but read them.

    Args:
      problem: says after the path what is wrong with a file that the block cannot read: "is not a subset file".
      remedy: ends the message.

    Raises:
      InputError: the file is missing, damaged or no .npz, or lacks what the block reads; or the block's own.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            yield archive
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} {problem} ({reason}); {remedy}") from None


def sync(path: Path) -> None:
    """Ask the disk to keep a file or folder through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether a process of this host has the number: the one that a draft or a lock names."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

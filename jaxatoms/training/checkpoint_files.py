"""The files of a checkpoint, without their arrays: which directory a path means, its record, whether it is whole.

No JAX: commands that only read records import this module. The layout is described in `training.checkpoint`.
"""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jaxatoms.types import InputError

MARKER = "complete.json"
META = "meta.json"
ARRAYS = "arrays"
POINTERS = ("best", "last")
STEP_NAME = re.compile(r"step_(\d{8,})")


def read_meta(path: str | Path) -> dict[str, Any]:
    """The JSON record alone, e.g. to build the model whose abstract tree `restore` needs.

    Raises:
      InputError: no such checkpoint, or its record is unreadable.
    """
    directory = resolve_checkpoint(path)
    try:
        return json.loads((directory / META).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {directory} is damaged: {META}: {one_line(error)}") from error


def resolve_checkpoint(path: str | Path) -> Path:
    """The step directory meant by a step directory, `best`/`last`, a `checkpoints` or a run directory.

    The last two mean `best` (on validation), or `last` where no best was saved, or else the newest step; `RUN@last`
    and `RUN@best` name one of them.

    Raises:
      InputError: nothing there, or a pointer names a directory that is gone.

    Example:
      >>> resolve_checkpoint("runs/ani1x@last")
    """
    path = Path(path)
    run, _, pointer = str(path).rpartition("@")
    if pointer in POINTERS and not path.exists():
        return _named(Path(run), pointer)
    if path.is_file() and path.name in POINTERS:
        target = path.parent / (read_pointer(path) or "?")
        if not target.is_dir():
            raise InputError(f"{path} names {target.name}, which is not there; give a step directory")
        return target
    if path.is_dir() and ((path / META).exists() or (path / MARKER).exists() or STEP_NAME.search(path.name)):
        return path
    for folder in (path / "checkpoints", path):
        for name in POINTERS:
            if (folder / name).is_file():
                return resolve_checkpoint(folder / name)
        found = step_dirs(folder)
        if found:
            return found[max(found)]
    raise InputError(f"no checkpoint at {path}; give a run directory, RUN@last or a step directory")


def _named(run: Path, pointer: str) -> Path:
    for folder in (run / "checkpoints", run):
        if (folder / pointer).is_file():
            return resolve_checkpoint(folder / pointer)
    raise InputError(f"{run} has no checkpoint named {pointer!r}; give a run directory or a step directory")


def find_damage(directory: Path) -> str | None:
    """What is wrong with a step directory (missing, short or altered files), or None if it is whole."""
    try:
        listing = json.loads((directory / MARKER).read_text())["files"]
    except FileNotFoundError:
        return f"incomplete, it has no {MARKER}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} is unreadable: {one_line(error)}"
    for name, (size, digest) in listing.items():
        file = directory / name
        try:
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, expected {size}"
            if file_digest(file) != digest:
                return f"the content of {name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def step_dirs(directory: Path) -> dict[int, Path]:
    """{step: directory} of everything named like a checkpoint."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        matches = ((STEP_NAME.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir())
        return {int(match[1]): path for match, path in matches if match}
    return {}


def read_pointer(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

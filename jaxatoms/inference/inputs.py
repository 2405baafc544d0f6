"""What a result was made from: {input: its identity}, kept with the result and compared before it is used again.

An identity follows from content, never from a place, so that data and runs may move.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.data.classes import find_mapping
from jaxatoms.data.mixing import split_names
from jaxatoms.data.source import fingerprint_source
from jaxatoms.data.store import open_dataset
from jaxatoms.training.checkpoint_files import MARKER, resolve_checkpoint
from jaxatoms.types import InputError

TORCH_FILES = (".pt", ".pth", ".ckpt")
_DATA = ("--upstream", "--downstream", "--dataset")
_WEIGHTS = ("--init", "--checkpoint")
_FILES = ("--torch", "--model", "--subset", "--losses", "--features", "--config")

Inputs = dict[str, Any]


def changed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Names of the inputs that are other ones now, or were not known before."""
    return [name for name, value in now.items() if (before or {}).get(name) != value]


def digest(values: np.ndarray) -> str:
    """Hash of an array of numbers or strings, with its type and shape."""
    values = np.ascontiguousarray(values)
    head = f"{values.dtype.str} {values.shape}".encode()
    return hashlib.sha256(head + values.tobytes()).hexdigest()[:16]


def weights(path: str | Path) -> str | None:
    """Of the checkpoint that a path means, or of a PyTorch file; None where there is none."""
    if Path(path).suffix in TORCH_FILES:
        return file(path)
    try:
        return hashlib.sha256((resolve_checkpoint(path) / MARKER).read_bytes()).hexdigest()[:16]
    except (InputError, OSError):
        return None


def file(path: str | Path) -> str | None:
    """Of a file's content (large ones: ends, size and time); None where there is none."""
    return fingerprint_source(path)["hash"][:16] if Path(path).is_file() else None


def dataset(name: str, data_root: str | None = None, cache_dir: str | None = None, classes: bool = False) -> str | None:
    """Of a data set's records, converted where need be; None where it cannot be read.

    Args:
      classes: also of the file that an OC set's classes come from.
    """
    if name.endswith(".npz") and "@" not in name:
        return file(name)
    try:
        spec, store = open_dataset(name, data_root, cache_dir)
    except InputError:
        return None
    own = store.fingerprint[:16]
    if not classes or spec.classes != "catalyst":
        return own
    with contextlib.suppress(InputError):
        return f"{own} {file(find_mapping(spec, store))}"
    return f"{own} groups"


def of_command(words: Sequence[str], look: Callable = dataset) -> Inputs:
    """Of a command line: data sets, checkpoints and files that its options name; None where one is not there yet.

    Args:
      look: `dataset`, or the same with a memory.
    """
    given = _values(words)
    root, cache = (next(iter(given.get(option, [])), None) for option in ("--data-root", "--cache-dir"))
    classes = words[0] == "experiments.csi"
    found: Inputs = {}
    for option in _DATA:
        for name in (name for word in given.get(option, []) for name in split_names(word)):
            found[f"{option} {name}"] = look(name, root, cache, classes)
    for option, identify in (*((o, weights) for o in _WEIGHTS), *((o, file) for o in _FILES)):
        found |= {f"{option} {word}": identify(word) for word in given.get(option, [])}
    return found


def _values(words: Sequence[str]) -> dict[str, list[str]]:
    """{option: the words that follow it}."""
    out: dict[str, list[str]] = {}
    option = ""
    for word in words:
        if word.startswith("--"):
            option, sign, value = word.partition("=")
            out.setdefault(option, []).extend([value] if sign else [])
        else:
            out.setdefault(option, []).append(word)
    return out


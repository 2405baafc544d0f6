"""The columns of a store, its manifest, and the checks made when one is opened; reads no records."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxatoms.types import InputError

FORMAT_VERSION = 1
N_ELEMENT = 121  # columns of element counts, indexed by atomic number; 0 is never used
_REMEDY = "delete the folder and convert again"


class Column(NamedTuple):
    """Type and trailing shape of one column; `per_node` says whether it has a row per atom or per record."""

    dtype: str
    shape: tuple[int, ...]
    per_node: bool


COLUMNS = {
    "atomic_numbers": Column("|u1", (), True),
    "positions": Column("<f4", (3,), True),  # A
    "forces": Column("<f4", (3,), True),  # eV/A, NaN where missing
    "tags": Column("|u1", (), True),
    "fixed": Column("|b1", (), True),
    "offsets": Column("<i8", (), False),  # first atom of each record; one row more than records
    "energy": Column("<f8", (), False),  # eV, NaN where missing
    "cell": Column("<f4", (3, 3), False),  # A, zeros for molecules
    "pbc": Column("|b1", (3,), False),
    "group": Column("<i4", (), False),  # row of groups.json, or -1 for a record alone in its group
}


def content_fingerprint(entries: dict, groups: str) -> str:
    """Hash of the columns' types and contents and of the text of groups.json."""
    content = [
        [name, entry["dtype"], entry["shape"], entry["sha256"]] for name, entry in sorted(entries.items())
    ]
    return hashlib.sha256(json.dumps([FORMAT_VERSION, content, groups]).encode()).hexdigest()


def read_manifest(path: Path) -> dict:
    """The manifest of the store in a folder, whose files have the sizes it names.

    Raises:
      InputError: no store there, another format version, or a damaged one.
    """
    if not (path / "manifest.json").is_file():
        raise InputError(f"{path}: not a converted data set (no manifest.json); convert the data set first")
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: store format {manifest['format_version']}, expected {FORMAT_VERSION}; {_REMEDY}"
            )
        fingerprint = content_fingerprint(manifest["columns"], (path / "groups.json").read_text())
        if fingerprint != manifest["fingerprint"] or not set(COLUMNS) <= set(manifest["columns"]):
            raise InputError(f"{path}: damaged store (manifest.json does not fit its checksum); {_REMEDY}")
        _check_sizes(path, manifest)
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged store ({type(error).__name__}: {error}); {_REMEDY}") from None
    return manifest


def _check_sizes(path: Path, manifest: dict) -> None:
    for name, entry in manifest["columns"].items():
        file = path / entry["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != entry["size"]:
            raise InputError(
                f"{path}: damaged store ('{entry['file']}' has {size} bytes, not {entry['size']}); {_REMEDY}"
            )
        rows = size // (np.dtype(entry["dtype"]).itemsize * max(1, int(np.prod(entry["shape"]))))
        if rows != _expected_rows(name, manifest):
            raise InputError(f"{path}: damaged store (column '{name}' has {rows} rows); {_REMEDY}")


def _expected_rows(name: str, manifest: dict) -> int:
    if name == "offsets":
        return manifest["n_record"] + 1
    return manifest["n_node"] if is_per_node(name, manifest["columns"][name]) else manifest["n_record"]


def is_per_node(name: str, entry: dict) -> bool:
    """Whether a column of a manifest has a row per atom."""
    return COLUMNS[name].per_node if name in COLUMNS else entry.get("per_node", False)

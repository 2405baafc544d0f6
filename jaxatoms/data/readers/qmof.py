"""QMOF database -> periodic Systems with scalar targets: the official JSON pair, or a CSV with a zip of CIF files."""

import contextlib
import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import ase.io
import numpy as np
from ase.data import atomic_numbers

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, fail, is_hidden
from jaxatoms.data.readers.json_stream import iter_items
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.types import InputError, System

VERSION = 2
_RECORDS, _STRUCTURES = "qmof.json", "qmof_structure_data.json"
_CIFS = "relaxed_structures.zip"
_PERIODIC = (True, True, True)


def read(path: Path | str) -> Iterator[System]:
    """Yields every framework in the order of the structures; records join them by `qmof_id`, whatever their order.

    `extra` holds every numeric scalar of the record as `target_<name>`, such as `target_outputs.pbe.bandgap` (eV);
    NaN where a record has none.

    Args:
      path: the folder or zip archive with qmof.json and qmof_structure_data.json, or a folder with one CSV and
        relaxed_structures.zip (columns as the keys of the JSON form, `qmof_id` names the CIF).

    Raises:
      InputError: neither form is there, a structure without record or the reverse, a bad structure.

    Source: docs/reference/datasets.md, QMOF.
    """
    path = Path(path)
    tables = [file for file in sorted(path.glob("*.csv")) if not is_hidden(file, path)] if path.is_dir() else []
    if tables and not (path / _RECORDS).exists():
        yield from _read_table(tables[0], path / _CIFS)
        return
    try:
        with _open_text(path, _RECORDS) as stream:
            scalars = _scalars_by_id(path, stream)
        with _open_text(path, _STRUCTURES) as stream:
            for i, structure in enumerate(iter_items(stream)):
                name = _id(path, f"structure {i}", structure)
                if name not in scalars:
                    fail(path, name, f"has a structure, but no record of its own in {_RECORDS}", "download both again")
                yield _system(path, name, scalars.pop(name), structure)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        fail(path, "", f"not a readable QMOF pair ({type(error).__name__}: {error})", "download it again")
    if scalars:
        fail(path, next(iter(scalars)), f"has a record, but no structure in {_STRUCTURES}", "download both again")


def _scalars_by_id(path: Path, records: TextIO) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for i, record in enumerate(iter_items(records)):
        name = _id(path, f"record {i}", record)
        if name in found:
            fail(path, name, f"stands twice in {_RECORDS}", "download it again")
        found[name] = dict(_scalars("target_", record))
    return found


def _id(path: Path, place: str, item: dict) -> str:
    if not item.get("qmof_id"):
        fail(path, place, "has no 'qmof_id', by which records and structures belong together", "download both again")
    return str(item["qmof_id"])


@contextlib.contextmanager
def _open_text(path: Path, name: str) -> Iterator[TextIO]:
    """A member of the folder or zip archive, at any depth."""
    if path.is_dir():
        found = sorted(path.rglob(name))
        if not found:
            fail(path, "", f"holds no {name}", f"unpack {_RECORDS} and {_STRUCTURES} there")
        with open(found[0]) as file:
            yield file
        return
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((m for m in archive.namelist() if Path(m).name == name), None)
            if member is None:
                fail(path, "", f"holds no {name}", f"name the folder of {_RECORDS} and {_STRUCTURES}")
            with archive.open(member) as raw:
                yield io.TextIOWrapper(raw)
    except (OSError, zipfile.BadZipFile) as error:
        fail(path, "", f"not a readable zip archive ({error})", "download it again")


def _system(path: Path, name: str, scalars: dict[str, float], structure: dict) -> System:
    structure = structure.get("structure", structure)
    cell = np.array(structure["lattice"]["matrix"], np.float64)
    shares = [[one.get("occu", 1) for one in site.get("species", [{}])] for site in structure["sites"]]
    if any(len(share) != 1 or abs(share[0] - 1) > 1e-6 for share in shares):
        fail(path, name, "has a partially occupied site", "remove the record")
    symbols = [str(site["label"]).rstrip("0123456789") for site in structure["sites"]]
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown:
        fail(path, name, f"unknown element {unknown[0]}", "remove the record")
    numbers = check_elements(path, name, np.array([atomic_numbers[symbol] for symbol in symbols], int))
    positions = np.array([site["xyz"] for site in structure["sites"]], np.float64)
    check_finite(path, name, "positions", positions)
    check_cell(path, name, cell, np.array(_PERIODIC))
    return System(numbers, positions, cell, _PERIODIC, key=name, extra=scalars)


def _scalars(prefix: str, value: dict) -> Iterator[tuple[str, float]]:
    """Every number of a nested dictionary, under its dotted name."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _scalars(f"{prefix}{key}.", item)
        elif isinstance(item, int | float) and not isinstance(item, bool) and np.isfinite(item):
            yield sys.intern(f"{prefix}{key}"), float(item)


def _read_table(table: Path, cifs: Path) -> Iterator[System]:
    with open(table, newline="") as file, zipfile.ZipFile(_required(cifs)) as archive:
        members = {Path(member).stem: member for member in archive.namelist()}
        for row in csv.DictReader(file):
            name = row.get("qmof_id", "")
            if name not in members:
                fail(table, name, f"has no CIF in {cifs.name}", "download both files again")
            atoms = _read_cif(table, name, archive.read(members[name]).decode())
            numbers = {key: value for key, text in row.items() if (value := _number(text)) is not None}
            system = system_from_atoms(table, name, atoms, group="")
            yield system._replace(tags=None, extra=dict(_scalars("target_", numbers)))


def _read_cif(table: Path, name: str, text: str) -> ase.Atoms:
    try:
        return ase.io.read(io.StringIO(text), format="cif")  # type: ignore[return-value]
    except Exception as error:
        fail(table, name, f"ASE cannot read its CIF ({type(error).__name__}: {error})", "download it again")


def _required(cifs: Path) -> Path:
    if not cifs.is_file():
        fail(cifs, "", "no such file", f"put {_CIFS} beside the CSV")
    return cifs


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None

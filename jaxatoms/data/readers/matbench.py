"""MatBench task file (`<task>.json.gz`: columns, index, rows of pymatgen structure and value) -> Systems."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from jaxatoms.data.readers.checks import check_cell, check_elements, check_finite, fail, require_file
from jaxatoms.data.readers.json_stream import find_list, iter_items
from jaxatoms.types import InputError, System

VERSION = 1
_PERIODIC = (True, True, True)


def read(path: Path | str) -> Iterator[System]:
    """Yields every row, in file order (the order that the official folds count), 2-atom cells included.

    `extra` holds `target_y`: the file's value in the task's own unit; False and True become 0 and 1.

    Raises:
      InputError: missing, cut or other file, a structure with partial occupancy, a value that is NaN.

    Source: docs/reference/datasets.md, MatBench.
    """
    path = require_file(path)
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt") as stream:
            place = _check_columns(path, find_list(stream, "columns"))
            stream.seek(0)
            rows = iter_items(stream, "data")
            next(rows)
            for i, row in enumerate(rows):
                yield _system(path, f"row {i}", row[place], row[1 - place])
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, IndexError) as error:
        fail(path, "", f"not a readable MatBench file ({error})", "download it again")


def _check_columns(path: Path, columns: list) -> int:
    """The place of the structure among the two columns."""
    if len(columns) != 2 or not {"structure", "composition"} & set(columns):
        fail(path, "", f"has the columns {columns}", "expected a structure and one target")
    if "structure" not in columns:
        fail(path, "", "holds compositions without structures", "choose a structure task")
    return columns.index("structure")


def _system(path: Path, record: str, structure: dict, value: object) -> System:
    cell = np.array(structure["lattice"]["matrix"], np.float64)
    sites = structure["sites"]
    numbers = check_elements(path, record, np.array([_number(path, record, site) for site in sites], int))
    positions = np.array([site["abc"] for site in sites], np.float64) @ cell
    check_finite(path, record, "positions", positions)
    check_cell(path, record, cell, np.array(_PERIODIC))
    target = float("nan") if value is None else float(value)  # type: ignore[arg-type]
    check_finite(path, record, "target", np.array(target))
    return System(numbers, positions, cell, _PERIODIC, key=record, extra={"target_y": target})


def _number(path: Path, record: str, site: dict) -> int:
    species = site["species"]
    if len(species) != 1 or abs(species[0]["occu"] - 1) > 1e-6:
        fail(path, record, "has a partially occupied site", "remove the record")
    symbol = species[0]["element"]
    if symbol not in atomic_numbers:
        fail(path, record, f"unknown element {symbol}", "remove the record")
    return atomic_numbers[symbol]

"""The paper's numbers, read from paper_tables.csv beside this file (its README names the source)."""

import csv
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

from jaxatoms.types import InputError

SOURCE = "arXiv 2502.11085 v1"
_FILE = Path(__file__).parent / "paper_tables.csv"
_KEYS = {"1": "Table1", "2": "Table2", "3": "Table3", "4": "Table4", "5": "Table5", "fig4": "Fig4"}
_KEYS |= {"fig1": "TMLR-figure-pull", "fig9": "Fig9"}


class RowKey(NamedTuple):
    """A row of a table: what was trained, before it met a task."""

    n: int | None  # structures; None: not known
    epochs: int | None
    upstream: str  # the paper's name: ANI-1x, Mixed (Balanced), ...
    backbone: str  # the paper's name: GemNet-OC-S, ...
    variant: str = ""  # settings that differ from the paper's recipe; "" where none does

    @property
    def budget(self) -> int | None:
        """C = N x E, structures seen."""
        return None if self.n is None or self.epochs is None else self.n * self.epochs


class Column(NamedTuple):
    """A column of a table: what was measured, and how it was fine-tuned."""

    dataset: str  # the paper's name: rMD17, MatBench phonons fold0, ...
    metric: str
    unit: str  # meV/A, meV, eV, 1/cm
    recipe: str = ""  # fine-tuning settings that differ from the paper's; "" where none does


@dataclasses.dataclass(frozen=True)
class Published:
    """One printed number."""

    table: str
    row: RowKey
    column: Column
    value: float
    note: str


def published(table: str) -> list[Published]:
    """The numbers of a table, in printed order.

    Args:
      table: "1" to "5", "fig1", "fig4" or "fig9".

    Raises:
      InputError: no such table.

    Example:
      >>> published("1")[12].value
      5.4
    """
    if table not in _KEYS:
        raise InputError(f"no published table {table!r}; known are {', '.join(_KEYS)}")
    return [entry for entry in _all() if entry.table == _KEYS[table]]


@functools.cache
def _all() -> tuple[Published, ...]:
    with _FILE.open(newline="") as file:
        return tuple(_entry(line) for line in csv.DictReader(file))


def _entry(line: dict[str, str]) -> Published:
    n, epochs = (int(float(line[k])) if line[k] else None for k in ("N", "E"))
    return Published(
        table=line["table"],
        row=RowKey(n, epochs, line["upstream"], line["backbone"]),
        column=Column(line["dataset"], line["metric"], line["unit"].replace("Ang", "A")),
        value=float(line["value"]),
        note=line["note"],
    )


def rows_of(entries: list[Published]) -> list[RowKey]:
    """Their rows, in printed order."""
    return list(dict.fromkeys(entry.row for entry in entries))


def columns_of(entries: list[Published]) -> list[Column]:
    """Their columns, in printed order."""
    return list(dict.fromkeys(entry.column for entry in entries))

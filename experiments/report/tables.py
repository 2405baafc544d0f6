"""Results beside the published numbers, as Markdown and CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from experiments.paper.names import UPSTREAM, short_count
from experiments.paper.published import SOURCE, Column, Published, RowKey, columns_of, published, rows_of
from experiments.report.grouping import Cells, make_cells
from experiments.report.results import Found, Result

TABLES = ("1", "2", "3", "4", "5")
MISSING = "-"
_CSV_COLUMNS = (
    "table", "budget_C", "N", "E", "upstream", "backbone", "variant", "dataset", "recipe", "metric", "unit",
    "published", "mean", "std", "n_seeds", "seeds", "commits", "runs", "notes",
)  # fmt: skip


def write_table(table: str, found: Found, out: Path, weights: str = "last_ema") -> tuple[str, list[Path]]:
    """table<N>.md and .csv in `out`; (the Markdown, the two files)."""
    made = make_table(table, found, weights)
    paths = [out / f"table{table}.md", out / f"table{table}.csv"]
    for path, text in zip(paths, (to_markdown(made), to_csv(made)), strict=True):
        path.write_text(text)
    return to_markdown(made), paths


@dataclasses.dataclass(frozen=True)
class Table:
    """The published part and, apart from it, runs under other settings."""

    name: str
    weights: str
    entries: list[Published]
    cells: Cells
    results: list[Result]  # behind the cells
    left_out: list[str]

    def value(self, row: RowKey, column: Column) -> float | None:
        """The published number of a cell."""
        return next((e.value for e in self.entries if (e.row, e.column) == (row, column)), None)

    def others(self) -> tuple[list[RowKey], list[Column]]:
        """Rows and columns of cells that the paper does not have."""
        known = {(e.row, e.column) for e in self.entries}
        keys = [key for key in self.cells if key not in known]
        columns = sorted({c for _, c in keys}, key=self._column_order)
        return sorted({r for r, _ in keys}, key=_row_order), columns

    def numbers(self) -> dict[str, int]:
        """The number of every note, in the order of the cells."""
        notes = dict.fromkeys(note for cell in self.cells.values() for note in cell.notes)
        return {note: i for i, note in enumerate(notes, 1)}

    def text(self, row: RowKey, column: Column) -> str:
        """A cell with the numbers of its notes: "5.43 (1) [1, 2]"."""
        cell = self.cells.get((row, column))
        if cell is None:
            return MISSING
        marks = ", ".join(str(self.numbers()[note]) for note in cell.notes)
        return cell.text() + (f" [{marks}]" if marks else "")

    def counterpart(self, row: RowKey, column: Column) -> float | None:
        """The paper's number of this upstream set and task under its own settings, where there is just one."""
        same = (row.upstream, column.dataset, column.metric)
        values = {e.value for e in self.entries if (e.row.upstream, e.column.dataset, e.column.metric) == same}
        return values.pop() if len(values) == 1 else None

    def _column_order(self, column: Column):
        known = [c.dataset for c in columns_of(self.entries)]
        return (known.index(column.dataset) if column.dataset in known else len(known), column)


def make_table(table: str, found: Found, weights: str = "last_ema") -> Table:
    """One of the paper's tables, filled with what was found."""
    entries = published(table)
    cells, passed = make_cells(found.results, weights)
    cells = {key: cell for key, cell in cells.items() if belongs(*key, entries)}
    folders = {folder for cell in cells.values() for folder in cell.runs}
    results = [r for r in found.results if r.folder in folders]
    return Table(table, weights, entries, cells, results, [*found.left_out, *passed])


def belongs(row: RowKey, column: Column, entries: list[Published]) -> bool:
    """Whether a cell is shown in the table of these entries.

    What the paper prints in another table (a backbone, a task) is shown there; what it does not print, everywhere.
    """
    everything = [e for t in TABLES for e in published(t)]
    for choose, own in ((lambda e: e.row.backbone, row.backbone),
                        (lambda e: (e.column.dataset, e.column.metric), (column.dataset, column.metric))):
        if own in {choose(e) for e in everything} and own not in {choose(e) for e in entries}:
            return False
    return True


def _row_order(row: RowKey):
    names = list(UPSTREAM.values())
    place = names.index(row.upstream) if row.upstream in names else len(names)
    known = row.budget is not None
    return (not known, row.budget or 0, row.n or 0, row.backbone, row.variant, place, row.upstream)


# --- text ---------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """The whole page."""
    title = f"# Table {table.name} of {SOURCE}\n\nTest errors of `{table.weights}`: mean ± sample standard "
    title += "deviation over seeds (number of seeds). `paper` is the published number, one seed; - is missing.\n"
    parts = [title, _published_part(table), _other_part(table), _notes_part(table), _runs_part(table)]
    return "\n".join(part for part in parts if part)


def _published_part(table: Table) -> str:
    columns = columns_of(table.entries)
    header = ["C", "N", "E", "upstream", "backbone"]
    header += [word for c in columns for word in (f"{_heading(c)}: paper", "ours")]
    lines = []
    for row in rows_of(table.entries):
        pairs = ((_number(table.value(row, c)), table.text(row, c)) for c in columns)
        lines.append([*_row_words(row), *(word for pair in pairs for word in pair)])
    return "## Published rows\n\n" + _grid(header, lines)


def _other_part(table: Table) -> str:
    rows, columns = table.others()
    if not rows:
        return ""
    header = ["C", "N", "E", "upstream", "backbone", "settings"]
    with_paper = [any(table.counterpart(r, c) is not None for r in rows) for c in columns]
    for column, paper in zip(columns, with_paper, strict=True):
        header += [_heading(column)] + ["paper, at its own budget"] * paper
    lines = []
    for row in rows:
        words = [*_row_words(row), row.variant or MISSING]
        for column, paper in zip(columns, with_paper, strict=True):
            words += [table.text(row, column)] + [_number(table.counterpart(row, column))] * paper
        lines.append(words)
    return "## Runs under other settings\n\n" + _grid(header, lines)


def _notes_part(table: Table) -> str:
    lines = [f"- [{number}] {note}" for note, number in table.numbers().items()]
    return "## Notes\n\n" + "\n".join(lines) + "\n" if lines else ""


def _runs_part(table: Table) -> str:
    lines = [f"- `{r.folder}`: {r.row.upstream} -> {r.column.dataset}, {_origin_words(r)}" for r in table.results]
    text = "## Runs\n\n" + ("\n".join(sorted(lines)) or "None found.") + "\n"
    if table.left_out:
        text += "\nLeft out:\n\n" + "\n".join(f"- {line}" for line in sorted(table.left_out)) + "\n"
    return text


def _origin_words(r: Result) -> str:
    pretrained = "" if r.pretrain_seed is None else f" (pretraining {r.pretrain_seed})"
    tested = f"{r.n_test:,} of {r.n_test_all:,} test structures"
    start = "".join(f", {note}" for note in r.notes if not note.startswith("tested"))
    return f"seed {r.seed}{pretrained}, commit {r.commit}, {r.device}, {r.precision}, {tested}{start}"


def _row_words(row: RowKey) -> list[str]:
    return [short_count(row.budget), short_count(row.n), "?" if row.epochs is None else str(row.epochs),
            row.upstream, row.backbone]


def _heading(column: Column) -> str:
    quantity = column.metric.removesuffix("mae").rstrip("_")
    words = [column.dataset, quantity if quantity != "y" else "", column.unit]
    return " ".join(filter(None, words)) + (f" ({column.recipe})" if column.recipe else "")


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(word.replace("|", "/") for word in row) + " |" for row in rows) + "\n"


def to_csv(table: Table) -> str:
    """One line per cell, published or measured."""
    keys = [(e.row, e.column) for e in table.entries]
    rows, columns = table.others()
    keys += [(r, c) for r in rows for c in columns if (r, c) in table.cells and (r, c) not in set(keys)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    writer.writerows(_csv_line(table, row, column) for row, column in keys)
    return text.getvalue()


def _csv_line(table: Table, row: RowKey, column: Column) -> list:
    cell, value = table.cells.get((row, column)), table.value(row, column)
    measured = ["", "", 0, "", "", "", ""] if cell is None else [
        cell.mean, cell.std, len(cell.seeds), " ".join(cell.seeds), " ".join(cell.commits), " ".join(cell.runs),
        "; ".join(cell.notes),
    ]  # fmt: skip
    blank = lambda v: "" if v is None else v  # noqa: E731
    return [table.name, blank(row.budget), blank(row.n), blank(row.epochs), row.upstream, row.backbone, row.variant,
            column.dataset, column.recipe, column.metric, column.unit, blank(value), *measured]

"""The paper's tables and figures, filled from run folders and printed beside the published numbers.

    python -m experiments.tables --table 1 --runs runs/ --out docs/tables
    python -m experiments.tables --figure 3 --runs runs/ --out docs/tables

Only finished runs count. Runs under other settings than the paper's (budget, network, recipe, precision) get rows and
columns of their own; what is missing is shown as "-"; partial budgets and partial tests are marked in the cell, [1].
"""

import dataclasses
from pathlib import Path

from experiments.report import figures
from experiments.report.results import WEIGHTS, find_results
from experiments.report.tables import TABLES, write_table
from jaxatoms.tools import cli
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """What to make; give a table, a figure, or both."""

    table: str | None = None
    """This table is made: 1 to 5."""
    figure: str | None = None
    """This figure is made: 1, 3, 4, 5, 6, 7, 8 or 9."""
    runs: str = "runs"
    """This folder is searched for run folders and csi.json files."""
    out: str = "docs/tables"
    """Files are written into this folder: table1.md and table1.csv, figure3.png and so on."""
    weights: str = "last_ema"
    """last_ema reports the averaged weights of the last step, as the paper does, and best_ema those that are best on
    validation."""
    extractor: str = "auto"
    """CSI figures take scores of this network: auto (the paper's), any, or the start of a name, such as gemnet_oc."""

    def __post_init__(self):
        if self.table is None and self.figure is None:
            raise InputError("give --table 1, 2, 3, 4 or 5, or --figure 1, 3, 4, 5, 6, 7, 8 or 9")
        if self.table is not None and self.table not in TABLES:
            raise InputError(f"--table must be {', '.join(TABLES)}, got {self.table!r}")
        if self.figure is not None and self.figure not in figures.FIGURES:
            raise InputError(f"--figure must be {', '.join(figures.FIGURES)}, got {self.figure!r}")
        cli.check_choices(self, {"weights": WEIGHTS})


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.tables`."""
    config = cli.parse(TablesConfig, argv, description=__doc__, prog="python -m experiments.tables")
    runs, out = Path(config.runs), cli.resolve_run_dir(config.out, "--out")
    if config.table is not None:
        text, paths = write_table(config.table, find_results(runs), out, config.weights)
        print(text)
        print("-> " + ", ".join(str(p) for p in paths))
    if config.figure is not None:
        print(f"-> {figures.draw(config.figure, runs, out, config.weights, config.extractor)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

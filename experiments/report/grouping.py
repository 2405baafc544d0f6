"""Results -> cells: mean and standard deviation over seeds, and the mean of MatBench's five folds."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.paper.published import Column, RowKey
from experiments.report.results import Result

_FOLD = "MatBench phonons fold{}"
_MEAN = "MatBench phonons mean"
Cells = dict[tuple[RowKey, Column], "Cell"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measured number.

    Attributes:
      mean, std: over seeds, in the column's unit; std is the sample's (divided by n - 1), 0 for one seed.
      seeds: fine-tuning/pretraining seed of each value, "0/1"; the first alone for runs from scratch.
      runs: folders.
      notes: what must be known to read the number: partial budgets and tests; see `Result.notes`.
    """

    mean: float
    std: float
    seeds: tuple[str, ...]
    runs: tuple[str, ...]
    commits: tuple[str, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """ "5.43 ± 0.12 (3)": mean, deviation and number of seeds; a single seed has no deviation."""
        digits = 2 if abs(self.mean) >= 0.1 else 4
        spread = f" ± {self.std:.{digits}f}" if len(self.seeds) > 1 else ""
        return f"{self.mean:.{digits}f}{spread} ({len(self.seeds)})"


def make_cells(results: Iterable[Result], weights: str = "last_ema") -> tuple[Cells, list[str]]:
    """(cells, what was passed over).

    A seed that ran twice counts once: by the run that starts from more of the pretraining, then by the newest.
    """
    kept: dict[tuple, Result] = {}
    passed = []
    for result in sorted(results, key=lambda r: (r.trained, r.finished_at, r.folder)):
        key = (result.row, result.column, seed_of(result))
        if key in kept:
            why = "longer pretrained" if kept[key].trained < result.trained else "newer"
            passed.append(f"{kept[key].folder}: same row, task and seed as the {why} {result.folder}")
        kept[key] = result
    groups = defaultdict(list)
    for result in kept.values():
        if weights in result.value:
            groups[result.row, result.column].append(result)
        else:
            passed.append(f"{result.folder}: test.json has no {weights}")
    cells = {key: make_cell(own, [r.value[weights] for r in own]) for key, own in groups.items()}
    return cells | fold_means(groups, weights), passed


def make_cell(results: Sequence[Result], values: Sequence[float]) -> Cell:
    """The cell of some runs, one value per seed; `results` may be more than `values` (folds)."""
    seeds = dict.fromkeys(seed_of(r) for r in results)
    return Cell(
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        seeds=tuple(sorted(seeds)),
        runs=tuple(sorted(r.folder for r in results)),
        commits=tuple(sorted({r.commit for r in results})),
        notes=tuple(dict.fromkeys(note for r in results for note in r.notes)),
    )


def seed_of(result: Result) -> str:
    """ "1/0": seeds of fine-tuning and of pretraining."""
    return str(result.seed) if result.pretrain_seed is None else f"{result.seed}/{result.pretrain_seed}"


def fold_means(groups: dict[tuple[RowKey, Column], list[Result]], weights: str) -> Cells:
    """The mean over the five folds of each seed that has them all, as cells of the column "mean"."""
    by_seed = defaultdict(dict)
    names = {_FOLD.format(i) for i in range(5)}
    for (row, column), own in groups.items():
        if column.dataset in names:
            for r in own:
                by_seed[row, column._replace(dataset=_MEAN), seed_of(r)][column.dataset] = r
    whole = defaultdict(list)
    for (row, column, _), folds in by_seed.items():
        if set(folds) == names:
            whole[row, column].append(list(folds.values()))
    return {
        key: make_cell([r for f in seeds for r in f], [float(np.mean([r.value[weights] for r in f])) for f in seeds])
        for key, seeds in whole.items()
    }

"""Standard deviations of the energies of a fine-tuned model, from the features of its last layer.

    python -m experiments.uncertainty --run runs/ft

Passes once over the run's training structures, calibrates two constants on its validation split, checks them on its
test split, and writes the result beside the weights, where experiments.predict and the ASE calculator find it. Figures
and a reliability plot are written into the run folder as uncertainty.json and uncertainty.png (docs/uncertainty.md).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.data.corpus import Corpus
from jaxatoms.data.downstream import ScalarData
from jaxatoms.data.mixture import short_names
from jaxatoms.data.subset import parse_count
from jaxatoms.inference import inputs
from jaxatoms.inference.evaluation import draw, result_name
from jaxatoms.inference.model import LoadedModel, restore_model
from jaxatoms.inference.uncertainty import (
    Rows,
    check_linear,
    energy_and_features,
    file_of,
    labelled,
    rows_of,
    together,
)
from jaxatoms.io import finite, write_json
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_data import Part, corpus_of, open_parts
from jaxatoms.runs.saved_run import read_run, resolved_init
from jaxatoms.tools import cli
from jaxatoms.tools.provenance import provenance
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.types import InputError
from jaxatoms.uncertainty import files, reliability
from jaxatoms.uncertainty.last_layer import LastLayer, calibrate, second_moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Which weights of which run, and from how many structures."""

    run: str
    """This is the folder of a finished run of experiments.finetune."""
    checkpoint: str = "best"
    """The standard deviations are those of the averaged weights of this checkpoint of the run: best or last."""
    samples: str = "5000"
    """This many labelled structures of each part of the split (random, seed 0) are used; `all` takes every one."""
    batch_edges: int = 4096
    """A batch has this many edge slots; a GPU takes more."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""

    def __post_init__(self):
        parse_count(self.samples)
        cli.check_positive(self, "batch_edges")
        cli.check_choices(self, {"checkpoint": ("best", "last")})


@dataclasses.dataclass(frozen=True)
class Pass:
    """The weights with the data sets of their run, ready to give features and errors."""

    model: LoadedModel
    corpus: Corpus
    parts: list[Part]
    forward: Callable
    config: UncertaintyConfig
    shapes: list = dataclasses.field(default_factory=list)

    def rows(self, index: int, split: str):
        """Features and errors of a part of the split of a data set, batch by batch."""
        part, record = self.parts[index], self.model.meta.tasks[index]
        records = draw(labelled(part.task, getattr(part.split, split)), parse_count(self.config.samples))
        return rows_of(self.forward, record, self.corpus, index, records, self.shapes, self.config.batch_edges)


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.uncertainty`."""
    config = cli.parse(UncertaintyConfig, argv, description=__doc__, prog="python -m experiments.uncertainty")
    prepare_process()
    run_dir = Path(config.run)
    settings = read_run(run_dir, data_root=config.data_root, cache_dir=config.cache_dir, tested=True)
    if not isinstance(settings, FinetuneConfig):
        raise InputError(f"{run_dir} is a pretraining run; give the folder of a run of experiments.finetune")
    model = restore_model(str(run_dir / "checkpoints" / config.checkpoint))
    check_linear(model)
    parts = open_parts(settings, model.config, resolved_init(settings), run_dir / "data")
    work = Pass(model, corpus_of(parts, model.config), parts, energy_and_features(model), config)
    fit_run(run_dir, work)
    return 0


def fit_run(run_dir: Path, work: Pass):
    """Fit every head that has energies to calibrate on; the file of the checkpoint is written when all are."""
    identity = inputs.weights(work.model.path)
    assert identity is not None
    heads: dict[int, LastLayer] = {}
    records: dict[int, dict[str, Any]] = {}
    for i in fitted_heads(run_dir, work):
        heads[i], records[i] = fit_head(run_dir, i, work)
        result = {"checkpoint": Path(work.model.path).name, "weights": identity, **records[i]}
        write_json(run_dir / result_name("uncertainty", i), finite(result | {"provenance": provenance()}))
        print(describe(records[i]))
    files.save(file_of(work.model), identity, heads, records)
    print(f"-> {file_of(work.model)}: experiments.predict and the ASE calculator give standard deviations from now on")


def fitted_heads(run_dir: Path, work: Pass) -> list[int]:
    """Numbers of the heads whose energies can be calibrated; says which others are left out.

    Raises:
      InputError: there is none.
    """
    found, tasks = [], work.model.meta.tasks
    for i, (part, record) in enumerate(zip(work.parts, tasks, strict=True)):
        each = [len(labelled(part.task, records)) for records in (part.split.train, part.split.val)]
        if record.energy_zero != "unknown" and min(each) > 0:
            found.append(i)
        elif len(tasks) > 1:
            print(f"{record.name}: left out, since its training or validation structures have no labels")
    if not found:
        raise InputError(
            f"{run_dir}: no energies to calibrate on, since the training or validation structures have none; "
            "fine-tune on data with energies (--targets energy,forces)"
        )
    return found


def fit_head(run_dir: Path, index: int, work: Pass) -> tuple[LastLayer, dict[str, Any]]:
    """The calibrated last layer of a head and its figures as JSON values; draws the plot."""
    moments, n_train = second_moments(rows.features for rows in work.rows(index, "train"))
    found = {split: together(work.rows(index, split)) for split in ("val", "test")}
    fitted = calibrate(moments, found["val"].features, found["val"].error)
    per_atom = work.model.meta.head.reduction == "sum"  # type: ignore[union-attr]
    pairs = {split: _compared(fitted, rows, per_atom) for split, rows in found.items()}
    constant = reliability.constant_std(pairs["val"][0])
    judged = {split: reliability.figures(*pair, constant) if len(pair[0]) else None for split, pair in pairs.items()}
    name, unit = work.model.meta.tasks[index].name, _unit(work.parts[index], per_atom)
    shown = "test" if judged["test"] else "val"
    plot = run_dir / result_name("uncertainty", index).replace(".json", ".png")
    title = f"{short_names([name])[0]}, {shown}, {Path(work.model.path).name}"
    reliability.plot_reliability(plot, *pairs[shown], unit, title)
    constants = {"alpha": fitted.alpha, "zeta": fitted.zeta}
    return fitted, {"name": name, "unit": unit, **constants, "n_train": n_train, **judged}


def _compared(fitted: LastLayer, rows: Rows, per_atom: bool) -> tuple[np.ndarray, np.ndarray]:
    """(errors, standard deviations) [n]; per atom where atoms' values are added, so that size does not rank them."""
    if len(rows.error) == 0:
        return np.zeros(0), np.zeros(0)
    divisor = rows.size if per_atom else np.ones(len(rows.size))
    return rows.error / divisor, fitted.std(rows.features) / divisor


def _unit(part: Part, per_atom: bool) -> str:
    facts = part.task.facts
    unit = facts.unit if isinstance(facts, ScalarData) else "eV"
    return f"{unit or '1'}/atom" if per_atom else unit


def describe(record: dict[str, Any]) -> str:
    """One line about a fitted head."""
    shown = "test" if record["test"] else "val"
    found = record[shown]
    rank = "undefined" if found["spearman"] is None else f"{found['spearman']:.2f}"
    return (
        f"{record['name']}: from {record['n_train']:,} training structures, calibrated on {record['val']['n']:,} of "
        f"validation; of {found['n']:,} {shown} structures {100 * found['coverage_1']:.1f} % lie within 1 standard "
        f"deviation (expected 68.3 %), {100 * found['coverage_2']:.1f} % within 2 (95.4 %), rank correlation with the "
        f"error {rank}, negative log likelihood {found['nll']:.3f} (one constant: {found['nll_constant']:.3f})"
    )


if __name__ == "__main__":
    raise SystemExit(main())

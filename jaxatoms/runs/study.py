"""A comparison of upstream sets under one budget, as a chain of resumable commands, and what its runs measured.

`experiments.study` runs it; nothing here starts JAX.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxatoms.csi.names import short_names
from jaxatoms.runs.chain import Step
from jaxatoms.tools import cli
from jaxatoms.types import InputError

MIXED, SCRATCH = "mixed", "scratch"
CONTROLS = ("none", "scales")
OWN = "scales-own"  # the control whose factors are fitted on the task itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is compared, and under which budget."""

    upstream: tuple[str, ...]
    """These are the candidates: NAME or LABEL=NAME (any data set that experiments.pretrain reads)."""
    downstream: tuple[str, ...]
    """These are the tasks: NAME or LABEL=NAME."""
    n: str = "1000"
    """Every pretraining run draws this many structures N."""
    epochs: int = 4
    """Every pretraining run passes this many times (E) over them; the budget is N x E for all."""
    model: str = "gemnet_oc_tiny"
    """Every run uses this network: a preset of experiments.pretrain or a JSON file of dimensions."""
    pretrain_batch: int = 20
    """Each pretraining step trains on this many structures."""
    pretrain_lr: float = 1e-3
    """The learning rate of pretraining peaks at this value."""
    pretrain_shapes: int = 2
    """Pretraining pads its batches to this many sizes; one compiles faster, and more leave fewer edge slots empty."""
    finetune_steps: int = 1000
    """Every fine-tuning run makes this many steps."""
    finetune_batch: int = 4
    """Each fine-tuning step trains on this many structures."""
    finetune_lr: float = 1e-3
    """The learning rate of the head peaks at this value in fine-tuning."""
    split: str = "auto"
    """This means the same as in experiments.pretrain, for every upstream set."""
    n_train: int | None = None
    """Every task is trained on this many structures (give --n-val too); the default is the task's split."""
    n_val: int | None = None
    """Every task is validated on this many structures (give --n-train too); the default is the task's split."""
    forces: str = "auto"
    """Fine-tuning predicts forces by the recipe's kind of head (auto), as a gradient (gradient) or directly
    (direct)."""
    test_samples: str = "500"
    """Every fine-tuned network is tested on this many structures; `all` takes every one."""
    csi: bool = True
    """Rank the candidates by CSI."""
    csi_n: str = "1000"
    """CSI takes this many structures of each set."""
    mix: str = "balanced"
    """This shares N among the sets of a candidate that names several (LABEL=NAME,NAME), and in the mixture."""
    cutoff: float | None = None
    """Edges reach this far in pretraining, in A; the default is that of the data set."""
    max_neighbors: int | None = None
    """The main graph of pretraining keeps this many neighbours K of each atom; the default is 30."""
    seeds: int = 1
    """The whole comparison is repeated with this many seeds, counted from 0."""
    mixed: bool = True
    """Also pretrain on the balanced mixture of the candidates."""
    scratch: bool = True
    """Also fine-tune without pretraining."""
    control: str = "none"
    """scales replaces pretraining by a fit of the scale factors on each set, and on the task, and computes no CSI; none
    runs the study itself."""
    jobs: int = 1
    """This many commands run at the same time, each on its share of the cores."""
    out: str = "runs/study"
    """The study writes all runs and results into this folder."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    quiet: bool = False
    """Pass --quiet to every command, so that only errors and results are printed."""

    def __post_init__(self):
        cli.check_positive(self, "epochs", "seeds", "finetune_steps", "pretrain_batch", "finetune_batch", "jobs")
        cli.check_choices(self, {"control": CONTROLS})
        for names in (self.upstream, self.downstream):
            labels = [label_of(name) for name in names]
            if len(set(labels)) < len(labels) or {MIXED, SCRATCH} & set(labels):
                raise InputError(f"labels must differ, and none may be {MIXED} or {SCRATCH}: {', '.join(labels)}")


def result_name(config: StudyConfig) -> str:
    """Of the files that a study writes, without their endings."""
    return "results" if config.control == "none" else f"results-{config.control}"


def label_of(name: str) -> str:
    """The label of `LABEL=NAME`, or a readable part of NAME."""
    label, found, _ = name.partition("=")
    return label if found else name.partition("@")[0].replace("demo:", "")


def _target(name: str) -> str:
    return name.partition("=")[2] or name


def candidates(config: StudyConfig) -> dict[str, str]:
    """Label -> what experiments.pretrain calls it; the mixture last. Labels of a control begin with its name."""
    found = {label_of(name): _target(name) for name in config.upstream}
    found |= {MIXED: ",".join(found.values())} if config.mixed and len(found) > 1 else {}
    return found if config.control == "none" else {f"{config.control}-{label}": name for label, name in found.items()}


def starts(config: StudyConfig) -> list[str]:
    """Labels of what is fine-tuned on every task."""
    own = [] if config.control == "none" else [OWN]
    return [*candidates(config), *own, *([SCRATCH] if config.scratch else [])]


def _ranks(config: StudyConfig) -> bool:
    """Whether the candidates are ranked by CSI."""
    return config.csi and config.control == "none"


def make_steps(config: StudyConfig, out: Path) -> list[Step]:
    """The whole chain."""
    places = tuple(
        word for name in ("data_root", "cache_dir") if getattr(config, name) is not None
        for word in (f"--{name.replace('_', '-')}", getattr(config, name))
    ) + (("--quiet",) if config.quiet else ())
    seeds, pools = range(config.seeds), candidates(config)
    first = [_pretrain(config, out, label, pools[label], seed, places) for seed in seeds for label in pools]
    csi = [_csi(config, out, places)] if _ranks(config) else []
    grid = itertools.product(seeds, config.downstream, starts(config))
    then = [_finetune(config, out, label, task, seed, places) for seed, task, label in grid]
    return first + csi + then


def _pretrain(config: StudyConfig, out: Path, label: str, upstream: str, seed: int, places) -> Step:
    run = out / "pretrain" / f"{label}-s{seed}"
    argv: tuple[str, ...] = (
        "experiments.pretrain", "--upstream", upstream, "--n", config.n, "--epochs", str(config.epochs),
        "--model", config.model, "--batch-size", str(config.pretrain_batch),
        "--batch-shapes", str(config.pretrain_shapes),
        "--lr", str(config.pretrain_lr), "--val-samples", "100", "--val-every", str(config.epochs),
        "--seed", str(seed), "--run-dir", str(run),
    )  # fmt: skip
    if config.split != "auto":
        argv += ("--split", config.split)
    if config.control != "none":
        argv += ("--max-steps", "0")
    for name in ("cutoff", "max_neighbors"):
        if getattr(config, name) is not None:
            argv += (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    if "," in upstream:
        argv += ("--mix", "balanced" if label.endswith(MIXED) else config.mix)
    name = f"pretrain {label} seed {seed}"
    return Step(name, argv, run / "summary.json", run / "config.json", ("--resume",), places, "pretrain")


def _csi(config: StudyConfig, out: Path, places) -> Step:
    extractor = MIXED if config.mixed and len(config.upstream) > 1 else label_of(config.upstream[0])
    argv = ("experiments.csi", "--upstream", *(_target(n) for n in config.upstream),
            "--downstream", *(_target(n) for n in config.downstream), "--n", config.csi_n,
            "--checkpoint", str(out / "pretrain" / f"{extractor}-s0"), "--out", str(out / "csi"))  # fmt: skip
    return Step("csi", argv, out / "csi" / "csi.json", places=places)


def _finetune(config: StudyConfig, out: Path, label: str, task: str, seed: int, places) -> Step:
    run = out / "finetune" / _slug(task) / f"{label}-s{seed}"
    source = next(iter(candidates(config))) if label == OWN else label  # all have the same untrained weights
    init = SCRATCH if label == SCRATCH else str(out / "pretrain" / f"{source}-s{seed}")
    argv = ["experiments.finetune", "--downstream", _target(task), "--init", init, "--model", config.model,
            "--budget", "small", "--max-steps", str(config.finetune_steps), "--batch-size",
            str(config.finetune_batch), "--lr", str(config.finetune_lr), "--forces", config.forces,
            "--batch-shapes", "1", "--val-samples", "50", "--test-samples", config.test_samples,
            "--seed", str(seed), "--run-dir", str(run)]  # fmt: skip
    if label == OWN:
        argv += ["--refit-scales"]
    if label == SCRATCH and _target(task).startswith("file:"):
        argv += ["--smooth-quadruplets", "no"]  # the others start from networks with the published function
    if config.n_train is not None:
        argv += ["--n-train", str(config.n_train), "--n-val", str(config.n_val)]
    name = f"fine-tune {label_of(task)} from {label} seed {seed}"
    return Step(name, tuple(argv), run / "test.json", run / "config.json", ("--resume",), places, "fine-tune")


def collect(config: StudyConfig, out: Path) -> dict:
    """Errors and CSI of every pair, from the runs' files."""
    tasks = {}
    for task in config.downstream:
        folder = out / "finetune" / _slug(task)
        reports = {
            label: [json.loads((folder / f"{label}-s{seed}" / "test.json").read_text())["last_ema"]
                    for seed in range(config.seeds)]
            for label in starts(config)
        }
        errors = {label: [_error(report, folder) for report in own] for label, own in reports.items()}
        first = next(iter(errors.values()))[0]
        tasks[label_of(task)] = {
            "unit": first.unit,
            "measure": first.measure,
            "mae": {label: [error.value for error in own] for label, own in errors.items()},
            "mean_baseline": first.baseline,
        }
    if _ranks(config):
        _add_csi(tasks, config, out)
    budget = {"n": config.n, "epochs": config.epochs, "finetune_steps": config.finetune_steps, "seeds": config.seeds}
    return {"budget": budget, "tasks": tasks, "spearman": rank_correlation(tasks) if _ranks(config) else None}


class _Error(NamedTuple):
    """Of one run: the mean absolute error, or the share that balanced accuracy lacks; lower is better."""

    value: float
    baseline: float  # of the mean of the labels, or of naming one class always
    unit: str
    measure: str = "MAE"


def _error(report: Mapping, folder: Path) -> _Error:
    if "balanced_accuracy" in report:
        return _Error(1 - report["balanced_accuracy"], 1 - 1 / len(report["recall"]), "1 - balanced accuracy", "error")
    if report["mae"] is None:
        raise InputError(f"{folder}: the test of a run has a prediction that is not finite; look at its test.json")
    return _Error(report["mae"], report["mean_baseline_mae"], report["unit"])


def _add_csi(tasks: dict, config: StudyConfig, out: Path) -> None:
    ranking = json.loads((out / "csi" / "csi.json").read_text())["ranking"]
    upstream = short_names([_target(name) for name in config.upstream])
    by_csi = {upstream[_target(name)]: label_of(name) for name in config.upstream}
    names = short_names([_target(name) for name in config.downstream])
    for task in config.downstream:
        order = ranking[names[_target(task)]]
        tasks[label_of(task)] |= {
            field: {by_csi[e["upstream"]]: e[field] for e in order} for field in ("csi", "probability_best")
        }


def _slug(task: str) -> str:
    return label_of(task).replace("/", "_").replace(":", "_")


def rank_correlation(tasks: dict, n_resample: int = 2000, seed: int = 0) -> dict | None:
    """Mean Spearman correlation over tasks of CSI with MAE, and a 95 % interval from resampling tasks and seeds."""
    from scipy.stats import spearmanr  # takes longer to import than all else here

    if min(len(t["csi"]) for t in tasks.values()) < 3:
        return None
    rng, names = np.random.default_rng(seed), list(tasks)

    def mean_of(chosen, draw) -> float:
        return float(np.mean([spearmanr(*_columns(tasks[name], draw)).statistic for name in chosen]))

    value = mean_of(names, lambda runs: np.mean(runs))
    samples = [
        mean_of(rng.choice(names, len(names)), lambda runs: np.mean(rng.choice(runs, len(runs))))
        for _ in range(n_resample)
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "tasks": len(names)}


def _columns(task: dict, draw):
    return [task["csi"][u] for u in task["csi"]], [draw(task["mae"][u]) for u in task["csi"]]

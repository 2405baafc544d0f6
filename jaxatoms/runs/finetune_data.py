"""The data sets of a fine-tuning run: those that it learns, and those of pretraining that it must not forget."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from jaxatoms.data.corpus import Corpus
from jaxatoms.data.downstream import Facts, ForceData, Graph, PropertiesData
from jaxatoms.data.downstream_task import (
    DownstreamTask,
    check_any_label,
    constants_record,
    family_of,
    open_downstream,
    with_constants,
)
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.mixing import split_names
from jaxatoms.data.mixture import task_folder
from jaxatoms.data.run_data import load_run_constants, load_run_split, save_run_data
from jaxatoms.data.splits import Split
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.data.task_split import task_split
from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.models.architecture import Config
from jaxatoms.models.registry import architecture_of
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.types import InputError

LOOKED_AT = 1000  # structures of a replayed set whose energies are compared with its head's
FAR = 100.0  # normalised labels are of the order of 1


@dataclasses.dataclass(frozen=True)
class Part:
    """One data set of a run, with a head of its own.

    Attributes:
      name: as it was given; of the head in the checkpoint.
      kept: number of the pretraining head that is kept, of a set that is replayed; None: the head is new.
    """

    name: str
    task: DownstreamTask
    split: Split
    kept: int | None = None


def corpus_of(parts: list[Part], model: Config) -> Corpus:
    """The data sets with the graphs that the model reads."""
    return Corpus(tuple(part.task for part in parts), architecture_of(model).graphs)


def open_parts(config: FinetuneConfig, model: Config, init: Path | None, saved: Path | None = None) -> list[Part]:
    """The data sets that a run's settings name, with the cutoff and neighbours that its model is given.

    Args:
      init: the checkpoint that the run starts from.
      saved: folder of the run's own splits and constants (`run_data`), which are taken where it is given.

    Raises:
      InputError: anything wrong with them, or data that have changed since the run began.
    """
    names = split_names(config.downstream, "--downstream")
    n = len(names) + (config.replay is not None)
    parts = [_own(config, name, model, task_folder(saved, i, n)) for i, name in enumerate(names)]
    _check_alike(parts)
    if config.replay is not None:
        parts.append(_replayed(config, parts, init, task_folder(saved, len(names), n)))
    return parts


def save_parts(folder: Path, parts: list[Part]):
    """Keep splits and constants with the run."""
    for i, part in enumerate(parts):
        own = task_folder(folder, i, len(parts))
        assert own is not None
        save_run_data(own, part.split, part.task.store, constants_record(part.task))


def _own(config: FinetuneConfig, name: str, model: Config, saved: Path | None) -> Part:
    sizes = None if config.n_train is None or config.n_val is None else (config.n_train, config.n_val)
    cutoff, max_neighbors = architecture_of(model).finetuning.graphs.get(family_of(name), (None, None))
    task, split = open_downstream(
        name,
        config.data_root,
        config.cache_dir,
        targets=config.targets,
        e0s=config.e0s if saved is None else "auto",  # what was taken is in `saved`
        rule=config.split,
        sizes=sizes,
        cutoff=config.cutoff or cutoff,
        max_neighbors=config.max_neighbors or max_neighbors,
        split=None if saved is None else functools.partial(load_run_split, saved),
    )
    for words, records in zip(("training", "validation", "test"), split, strict=True):
        if saved is None and len(records) == 0:
            raise InputError(f"{name}: the split leaves no {words} structures; give more, or another --split")
    return Part(name, _with_saved(task, saved), split)


def _with_saved(task: DownstreamTask, saved: Path | None) -> DownstreamTask:
    constants = None if saved is None else load_run_constants(saved)
    return task if constants is None else with_constants(task, constants)


def _check_alike(parts: list[Part]):
    """Heads of one kind: a model predicts potentials or scalars, and combines atoms in one way."""
    kinds = [_kind(part.task.facts) for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0] or (len(parts) > 1 and "classes" in kind):
            raise InputError(f"{part.name} needs another kind of head than {parts[0].name}; fine-tune on each alone")


def _kind(facts: Facts) -> tuple:
    """What decides which model learns a data set."""
    if isinstance(facts, ForceData):
        return "potential", facts.gradient_forces, facts.learnt
    if isinstance(facts, PropertiesData):
        return "properties", facts.learnt, facts.reductions, facts.weights
    return ("classes", facts.n_class) if facts.n_class else ("scalar", facts.reduction)


def _replayed(config: FinetuneConfig, own: list[Part], init: Path | None, saved: Path | None) -> Part:
    """The set of pretraining: as many of its structures as make up the share, with the constants of its head."""
    facts = own[0].task.facts
    if not isinstance(facts, ForceData):
        raise InputError("--replay mixes in energies and forces; leave it out where a scalar is learnt")
    assert config.replay is not None
    index, record = _head_of(config, init)
    spec, store = open_upstream(config.replay, config.data_root, config.cache_dir, "auto", must_validate=False)
    if saved is not None:
        split = load_run_split(saved, store)
    else:
        n_own = sum(len(part.split.train) for part in own)
        n = max(1, round(config.replay_share / (1 - config.replay_share) * n_own))
        split = _drawn(task_split(config.replay, spec, store, "auto"), n, len(own[0].split.val), config.seed)
    unit = record.force_std or record.energy_std
    kept = dataclasses.replace(
        facts,
        name=config.replay,
        graph=Graph(record.cutoff, record.max_neighbors, record.conditional),
        energy_mean=record.energy_mean,
        energy_std=unit,
        force_mean=0.0,
        force_std=unit,
        references={int(z): float(record.reference.coeff[z]) for z in record.elements},
        span=None if record.reference.span is None else record.reference.span.tolist(),
    )
    check_any_label(config.replay, kept, store, split.train)
    task = _with_saved(DownstreamTask(kept, store, record.energy_mean, unit), saved)
    _check_energies(task, split.train, config.replay)
    return Part(config.replay, task, split, index)


def _check_energies(task: DownstreamTask, train: np.ndarray, name: str):
    """Refuse energies whose zero is not that of the kept head: converted ones, and those of forces alone, know none."""
    assert isinstance(task.facts, ForceData)
    some = np.sort(train[:LOOKED_AT])
    labels = task.targets(task.store.take(some), some).energy
    labels = np.abs(labels[np.isfinite(labels)])
    if "energy" in task.facts.learnt and len(labels) and np.median(labels) > FAR:
        raise InputError(
            f"--replay {name}: its energies lie {np.median(labels) * task.std:,.0f} eV from those of the checkpoint's "
            "head, which knows no such reference energies; replay labels that the checkpoint made (experiments.label), "
            "or learn forces alone"
        )


def _head_of(config: FinetuneConfig, init: Path | None) -> tuple[int, TaskRecord]:
    """Number and record of the pretraining head of the set that is replayed.

    Raises:
      InputError: the checkpoint has no such head.
    """
    assert config.replay is not None
    meta = None if init is None else read_checkpoint_meta(init)
    tasks = () if meta is None or meta.head is not None else meta.tasks
    wanted = config.replay.partition("@")[0]
    for i, task in enumerate(tasks):
        if config.replay == task.name or wanted == task.name.partition("@")[0] != "file:":
            return i, task
    known = ", ".join(task.name for task in tasks) or "none"
    raise InputError(f"--replay {config.replay}: {config.init} was not pretrained on it; its sets: {known}")


def _drawn(split: Split, n_train: int, n_val: int, seed: int) -> Split:
    rng = np.random.default_rng([seed, 7])
    train = rng.permutation(split.train)[:n_train]
    # An official validation set is all that some sets hold out.
    return Split(train, np.sort(rng.permutation(split.val)[:n_val]), split.test if len(split.test) else split.val)

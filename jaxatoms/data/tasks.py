"""Named data sets -> training tasks: opened, split, drawn, referenced and normalised; saved with the run."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxatoms.data.corpus import Corpus, Samples, UpstreamTask, samples_of
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.labels import label_hint
from jaxatoms.data.references import LinearReference, Normalization, labels_in, make_normalization
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.run_data import load_run_constants, load_run_split, save_run_data
from jaxatoms.data.store import Store
from jaxatoms.data.subset import draw_subset
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.data.task_split import task_split
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.io import open_npz
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task with the records that train and validate it."""

    spec: DatasetSpec
    task: UpstreamTask
    train: np.ndarray  # record indices, in the order drawn
    val: np.ndarray
    test: np.ndarray


def prepare_task(
    name: str,
    n: int | str,
    seed: int,
    *,
    val_samples: int,
    data_root: str | None,
    cache_dir: str | None,
    cutoff: float | None = None,
    max_neighbors: int | None = None,
    subset: str | None = None,
    split_rule: str = "auto",
    save_to: Path | None = None,
    saved: Path | None = None,
) -> TaskData:
    """Open a data set, split it, draw `n` training records and fit references on them.

    The split depends on the data alone, so that runs of every seed share their validation set; `seed` draws the
    subset. The reference is fitted on the whole train split, as in the paper. `subset` names a file of
    experiments.select to draw from instead of the whole train split; `split_rule` is as in `task_split`. `saved` is
    the folder that `save_to` was when the run began: its split, references and constants are taken.

    Raises:
      InputError: anything wrong with the data or with n; data that are not those of `saved`.
    """
    spec, store = open_upstream(name, data_root, cache_dir, split_rule, must_validate=saved is None)
    split = task_split(name, spec, store, split_rule) if saved is None else load_run_split(saved, store)
    if len(split.train) == 0 or len(split.val) == 0:
        raise InputError(f"{name}: {len(store)} structures give an empty train or validation split; use more data")
    pool = split.train if subset is None else load_subset(Path(subset), store, split.train)
    try:
        train = pool[draw_subset(len(pool), n, seed)]
    except InputError as error:
        raise InputError(f"{name}: {error} (validation and test structures are held out)") from None
    n_val = min(val_samples, len(split.val))
    val = np.sort(np.random.RandomState(0).choice(split.val, n_val, replace=False))
    labels = _labels(name, store, split.train)
    reference, normalization = _constants(spec, store, split.train, labels, saved)
    if save_to is not None:
        save_run_data(save_to, split, store, dataclasses.asdict(normalization))
        reference.save(save_to / "linref.npz")
    task = UpstreamTask(
        name=name,
        store=store,
        reference=reference,
        normalization=normalization,
        cutoff=cutoff or spec.cutoff,
        max_neighbors=max_neighbors or spec.max_neighbors,
        labels=labels,
    )
    return TaskData(spec, task, train, val, split.test)


def _labels(name: str, store: Store, train: np.ndarray) -> tuple[str, ...]:
    """What can be learnt: "energy", "forces" or both."""
    found = tuple(np.array(["energy", "forces"])[list(labels_in(store, train))].tolist())
    if not found:
        remedy = label_hint(store) or "compute them, or fine-tune on a scalar with --targets"
        raise InputError(f"{name}: no training structure has an energy or forces; {remedy}")
    return found


def _constants(
    spec: DatasetSpec, store: Store, train: np.ndarray, labels: tuple[str, ...], saved: Path | None
) -> tuple[LinearReference, Normalization]:
    kept = None if saved is None else load_run_constants(saved)
    if saved is not None and kept is not None:
        return LinearReference.load(saved / "linref.npz"), Normalization(**kept)
    fit = LinearReference.fit if "energy" in labels else LinearReference.none
    reference = fit(store, train)
    return reference, make_normalization(spec, store, train, reference)


def load_subset(path: Path, store: Store, train: np.ndarray) -> np.ndarray:
    """The records that experiments.select chose.

    Raises:
      InputError: not such a file, chosen from other data, or not within the train split.
    """
    with open_npz(path, "is not a subset file", "write one with experiments.select") as archive:
        records, fingerprint = archive["records"], str(archive["fingerprint"])
    if fingerprint != store.fingerprint:
        raise InputError(f"{path} was chosen from other data than {store.path}; run experiments.select again")
    if not np.isin(records, train).all():
        raise InputError(f"{path} holds structures outside the train split; run experiments.select again")
    return records


def make_corpus(data: list[TaskData], graphs: GraphSpec = GEMNET_GRAPHS) -> tuple[Corpus, Samples, Samples]:
    """The tasks together: (corpus, training samples, validation samples)."""
    train = [samples_of(i, d.train) for i, d in enumerate(data)]
    val = [samples_of(i, d.val) for i, d in enumerate(data)]
    train_all, val_all = (
        Samples(*(np.concatenate(part) for part in zip(*group, strict=True))) for group in (train, val)
    )
    return Corpus(tuple(d.task for d in data), graphs), train_all, val_all


def task_record(task: UpstreamTask) -> TaskRecord:
    """What prediction needs of a task."""
    return TaskRecord(
        name=task.name,
        energy_std=task.normalization.energy_std,
        force_std=task.normalization.force_std,
        reference=task.reference,
        cutoff=task.cutoff,
        max_neighbors=task.max_neighbors,
        labels=task.labels,
    )

"""Named data sets -> training tasks: opened, split, drawn, referenced and normalised; saved with the run."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxatoms.data.corpus import Corpus, Samples, Task, samples_of
from jaxatoms.data.labels import require_labels
from jaxatoms.data.references import LinearReference, make_normalization
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.splits import make_split, save_split
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.data.subset import draw_subset
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task with the records that train and validate it."""

    spec: DatasetSpec
    task: Task
    train: np.ndarray  # record indices, in the order drawn
    val: np.ndarray


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
    split_rule: str | None = None,
    save_to: Path | None = None,
) -> TaskData:
    """Open a data set, split it, draw `n` training records and fit references on them.

    The split depends on the data alone (seed 0), so that runs of every seed share their validation set; `seed`
    draws the subset. The reference is fitted on the whole train split, as in the paper. `subset` names a file of
    experiments.select to draw from instead of the whole train split; `split_rule` replaces the data set's.

    Raises:
      InputError: anything wrong with the data or with n.
    """
    spec, store = open_dataset(name, data_root, cache_dir)
    require_labels(store)
    split = make_split(store, split_rule or spec.split_rule, seed=0, held_out=spec.held_out)
    if len(split.train) == 0 or len(split.val) == 0:
        raise InputError(f"{name}: {len(store)} structures give an empty train or validation split; use more data")
    pool = split.train if subset is None else load_subset(Path(subset), store, split.train)
    try:
        train = pool[draw_subset(len(pool), n, seed)]
    except InputError as error:
        raise InputError(f"{name}: {error} (validation and test structures are held out)") from None
    n_val = min(val_samples, len(split.val))
    val = np.sort(np.random.RandomState(0).choice(split.val, n_val, replace=False))
    reference = LinearReference.fit(store, split.train)
    normalization = make_normalization(spec, store, split.train, reference)
    if save_to is not None:
        save_to.mkdir(parents=True, exist_ok=True)
        save_split(save_to / "split.npz", split, store)
        reference.save(save_to / "linref.npz")
    task = Task(
        name=name,
        store=store,
        reference=reference,
        normalization=normalization,
        cutoff=cutoff or spec.cutoff,
        max_neighbors=max_neighbors or spec.max_neighbors,
    )
    return TaskData(spec, task, train, val)


def load_subset(path: Path, store: Store, train: np.ndarray) -> np.ndarray:
    """The records that experiments.select chose.

    Raises:
      InputError: not such a file, chosen from other data, or not within the train split.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            records, fingerprint = archive["records"], str(archive["fingerprint"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a subset file ({error}); write one with experiments.select") from None
    if fingerprint != store.fingerprint:
        raise InputError(f"{path} was chosen from other data than {store.path}; run experiments.select again")
    if not np.isin(records, train).all():
        raise InputError(f"{path} holds structures outside the train split; run experiments.select again")
    return records


def make_corpus(data: list[TaskData], nearest: bool = False) -> tuple[Corpus, Samples, Samples]:
    """The tasks together: (corpus, training samples, validation samples)."""
    train = [samples_of(i, d.train) for i, d in enumerate(data)]
    val = [samples_of(i, d.val) for i, d in enumerate(data)]
    join = [Samples(*(np.concatenate(part) for part in zip(*group, strict=True))) for group in (train, val)]
    return Corpus(tuple(d.task for d in data), nearest), *join


def task_record(task: Task) -> dict:
    """What prediction needs of a task, as JSON values (`task_constants` reads it back)."""
    seen = np.flatnonzero(task.reference.seen)
    return {
        "name": task.name,
        "energy_std": task.normalization.energy_std,
        "force_std": task.normalization.force_std,
        "reference": {str(z): float(task.reference.coeff[z]) for z in seen},
        "cutoff": task.cutoff,
        "max_neighbors": task.max_neighbors,
    }


def reference_from_record(record: dict) -> LinearReference:
    """The linear reference of a `task_record`."""
    coeff, seen = np.zeros(121), np.zeros(121, bool)
    for z, value in record["reference"].items():
        coeff[int(z)], seen[int(z)] = value, True
    return LinearReference(coeff, seen)

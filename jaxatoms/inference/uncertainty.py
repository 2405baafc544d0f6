"""The uncertainty of a checkpoint's last layer: features and errors to fit it with, and the fitted one beside it.

Errors are those of the energies (or the scalar) as `predict` gives them: after reference energies and the fitted zero.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import plan_pass
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference import inputs
from jaxatoms.inference.model import LoadedModel
from jaxatoms.types import InputError
from jaxatoms.uncertainty.files import FILE, load
from jaxatoms.uncertainty.last_layer import LastLayer


class Rows(NamedTuple):
    """Structures with a label, one row each."""

    features: np.ndarray  # [n, d] float32, what the energy is linear in
    error: np.ndarray  # [n] float64 prediction less label, eV or the scalar's unit
    size: np.ndarray  # [n] atoms


def file_of(model: LoadedModel) -> Path:
    """Where the fitted uncertainty of a checkpoint lies."""
    return Path(model.path) / FILE


def fitted_uncertainty(model: LoadedModel, head: int) -> LastLayer | None:
    """What was fitted for a head of the averaged weights; None where nothing was, and for raw weights.

    Raises:
      InputError: a damaged file, or one that was fitted for other weights.
    """
    path = file_of(model)
    if model.raw_weights or not path.exists():
        return None
    saved = load(path)
    if saved.weights != inputs.weights(model.path):
        raise InputError(
            f"{path} was fitted for other weights than those beside it; run experiments.uncertainty again, or remove it"
        )
    return saved.heads.get(head)


def check_linear(model: LoadedModel) -> None:
    """Refuse a model without an energy, or a scalar, that is linear in what its last layer reads.

    Raises:
      InputError: naming what it predicts instead, and the remedy.
    """
    head, why = model.meta.head, None
    if head is None:
        why = "has the heads of pretraining; fine-tune it first"
    elif head.kind == "direct" and not head.energy:
        why = "predicts forces alone; fine-tune with --targets energy,forces"
    elif head.n_class:
        why = "predicts classes, whose probabilities it gives already; leave the uncertainty out"
    elif head.kind == "properties":
        why = "predicts several properties, which have no uncertainty of this kind; use several checkpoints"
    elif head.reduction == "max":
        why = "predicts the largest value of the atoms, which is not linear in features; use several checkpoints"
    elif not hasattr(model.module, "energy_features"):
        why = f"is a {model.architecture.name} that does not give its last features; use several checkpoints"
    if why is not None:
        raise InputError(f"{model.path} {why} (docs/uncertainty.md)")


def energy_and_features(model: LoadedModel) -> Callable:
    """batch -> (normalised energy [n_graph], features [n_graph, d]), jitted."""
    graphdef, state = nnx.split(model.module)

    @jax.jit
    def run(state, batch):
        module = nnx.merge(graphdef, state)
        return module(batch).energy, module.energy_features(batch)

    return lambda batch: run(state, batch)


def labelled(task: DownstreamTask, records: np.ndarray) -> np.ndarray:
    """Those of the records that have a label: an energy, or the scalar."""
    return records[np.isfinite(labels_of(task, records))]


def labels_of(task: DownstreamTask, records: np.ndarray) -> np.ndarray:
    """[n] float64 labels, eV or the scalar's unit; NaN where there is none."""
    column = "energy" if isinstance(task.facts, ForceData) else task.facts.column
    return np.asarray(task.store.column(column)[records], np.float64)


def rows_of(
    forward: Callable, record: TaskRecord, corpus: Corpus, index: int, records: np.ndarray, shapes: list,
    batch_edges: int,
) -> Iterator[Rows]:
    """Features and errors of the labelled structures among `records`, batch by batch.

    Left out are structures without a label, those whose energy the training does not fix, and those whose features are
    all zero.

    Args:
      forward: of `energy_and_features`.
      record: of the head, in the checkpoint.
      corpus: the data sets of the run; index: number of the one whose records they are, and of its head.
      shapes: budgets that were compiled for, to be used again; grows.

    Raises:
      InputError: a head of several columns.
    """  # fmt: skip
    task = corpus.tasks[index]
    assert isinstance(task, DownstreamTask)
    records = labelled(task, records)
    if len(records) == 0:
        return
    plan = plan_pass(corpus, samples_of(index, records), batch_edges, shapes)
    for group, batch in zip(plan.groups, plan.batches(), strict=True):
        energy, features = (np.asarray(a)[: len(group)] for a in jax.device_get(forward(batch)))
        if energy.ndim != 1:
            raise InputError(f"{record.name} has a head of several columns; fine-tune on one of them (--targets)")
        own = plan.samples.record[group]
        known = record.knows_energy(task.store.take(own)) & features.any(axis=1)
        if known.any():
            systems = task.store.take(own[known])
            error = record.energies(energy[known], systems) - labels_of(task, own[known])
            yield Rows(features[known], error, np.asarray(systems.n_node))


def together(parts: Iterator[Rows]) -> Rows:
    """All rows; none where there are no parts."""
    found = list(parts)
    if not found:
        return Rows(np.zeros((0, 0), np.float32), np.zeros(0), np.zeros(0, int))
    return Rows(*(np.concatenate(column) for column in zip(*found, strict=True)))

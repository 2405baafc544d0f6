"""The zero of the energy of a potential that learnt forces alone: constants per element, fitted to energies."""

from collections.abc import Callable

import numpy as np

from jaxatoms.data.classes import compositions
from jaxatoms.data.corpus import Corpus, Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import Pass, plan_pass
from jaxatoms.data.references import LinearReference
from jaxatoms.inference.evaluation import BATCH_EDGES

ENERGY_PROBE = 512  # training structures that fix the zero of a potential's energy


def energy_probe(corpus: Corpus, index: int, train: np.ndarray, seed: int, shapes: list) -> Pass | None:
    """The training structures whose energies fix the zero of a potential's: all compositions alike, at most 512.

    Args:
      corpus: the data sets of a run; index: number of the one that is meant.
      train: its training records.
      shapes: budgets of validation batches, which they take where they can; grows.

    Returns:
      None where the energy has its zero from training, or no structure has an energy.
    """
    task = corpus.tasks[index]
    assert isinstance(task, DownstreamTask)
    store, train = task.store, train[np.isfinite(task.store.energy[train])]
    if not isinstance(task.facts, ForceData) or task.facts.learns_energy or len(train) == 0:
        return None
    _, composition = np.unique(compositions(store, train), return_inverse=True)
    drawn = draw_over_tasks(Samples(composition.astype(np.int32), train), ENERGY_PROBE, seed)
    return plan_pass(corpus, samples_of(index, np.sort(drawn.record)), BATCH_EDGES, shapes)


def fit_energy_zero(probe: Pass, predict: Callable) -> LinearReference:
    """Energies per element, eV, that are least squares of what the labels are above the potential.

    Args:
      probe: of `energy_probe`.
      predict: batch -> ModelOutput.

    A potential trained on forces is right up to a constant of each composition. Constants per element fit those of
    the training compositions, and say which others they fix (`LinearReference.determines`).
    """
    task, counts, rest = probe.corpus.tasks[probe.samples.task[0]], [], []
    assert isinstance(task, DownstreamTask) and isinstance(task.facts, ForceData)
    for group, batch in zip(probe.groups, probe.batches(), strict=True):
        records = probe.samples.record[group]
        energy = np.asarray(predict(batch).energy, np.float64)[: len(records)] * task.facts.force_std
        counts.append(task.store.element_counts(records))
        rest.append(task.store.energy[records] - energy)
    return LinearReference.solve(np.concatenate(counts).astype(np.float64), np.concatenate(rest))

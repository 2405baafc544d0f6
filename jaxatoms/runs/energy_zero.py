"""The zero of a potential's energy: constants per element, fitted to training energies at every validation.

A potential that learnt forces alone is right up to a constant of each composition. One that learnt energies too begins
with an arbitrary constant, which a few hundred steps do not remove: forces outweigh it in the loss, and it is the same
for every structure. Either way the constants are linear in the composition, so that least squares finds them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.data.classes import compositions
from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.corpus import Corpus, Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import Pass, plan_pass
from jaxatoms.data.references import LinearReference
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.inference.evaluation import BATCH_EDGES
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.reductions import reduce_atoms

ENERGY_PROBE = 512  # training structures that fix the zero of a potential's energy


def energy_probe(corpus: Corpus, index: int, train: np.ndarray, seed: int, shapes: list) -> Pass | None:
    """The training structures whose energies fix the zero of a potential's: all compositions alike, at most 512.

    Args:
      corpus: the data sets of a run; index: number of the one that is meant.
      train: its training records.
      shapes: budgets of validation batches, which they take where they can; grows.

    Returns:
      None where no structure has an energy, or no potential is learnt.
    """
    task = corpus.tasks[index]
    assert isinstance(task, DownstreamTask)
    store, train = task.store, train[np.isfinite(task.store.energy[train])]
    if not isinstance(task.facts, ForceData) or len(train) == 0:
        return None
    _, composition = np.unique(compositions(store, train), return_inverse=True)
    drawn = draw_over_tasks(Samples(composition.astype(np.int32), train), ENERGY_PROBE, seed)
    return plan_pass(corpus, samples_of(index, np.sort(drawn.record)), BATCH_EDGES, shapes)


def fit_energy_zero(probe: Pass, predict: Callable) -> LinearReference:
    """Energies per element, eV, that are least squares of what the labels are above the potential.

    Args:
      probe: of `energy_probe`.
      predict: batch -> ModelOutput.

    Constants per element fit those of the training compositions, and say which others they fix
    (`LinearReference.determines`). Where the data have reference energies, the shortest change of these is taken.
    """
    task, counts, rest = probe.corpus.tasks[probe.samples.task[0]], [], []
    assert isinstance(task, DownstreamTask) and isinstance(task.facts, ForceData)
    for group, batch in zip(probe.groups, probe.batches(), strict=True):
        records = probe.samples.record[group]
        energy = np.asarray(predict(batch).energy, np.float64)[: len(records)] * task.facts.force_std
        counts.append(task.store.element_counts(records))
        rest.append(task.store.energy[records] - energy)
    known = reference_of(task.facts)
    all_counts = np.concatenate(counts).astype(np.float64)
    fitted = LinearReference.solve(all_counts, np.concatenate(rest) - all_counts @ known)
    # Elements outside the probe keep the reference energies of the data.
    return LinearReference(fitted.coeff + known, fitted.seen, fitted.span)


def reference_of(facts: ForceData) -> np.ndarray:
    """[121] eV, what is subtracted from the labels before they are learnt."""
    coeff = np.zeros(N_ELEMENT)
    coeff[list(facts.references)] = list(facts.references.values())
    return coeff


def learns_energy(task: DownstreamTask) -> bool:
    """Whether energies of a potential are learnt, which have reference energies of the data then."""
    return isinstance(task.facts, ForceData) and task.facts.learns_energy


def shift_of(task: DownstreamTask, fitted: LinearReference | None) -> np.ndarray:
    """[121] what a fitted zero adds to each atom's energy as the model gives it; zero where no energies are learnt."""
    facts = task.facts
    if fitted is None or not isinstance(facts, ForceData) or not learns_energy(task):
        return np.zeros(N_ELEMENT, np.float32)
    return ((fitted.coeff - reference_of(facts)) / facts.force_std).astype(np.float32)


def shifted(out: ModelOutput, batch: GraphBatch, shift: jax.Array) -> ModelOutput:
    """The output with the atoms' shifts [121] added to the energies; without energies as it is."""
    if out.energy is None or out.energy.ndim > 1:
        return out
    per_atom = jnp.where(batch.node_mask, jnp.asarray(shift)[batch.atomic_numbers], 0)
    return out._replace(energy=out.energy + reduce_atoms(per_atom, batch, "sum"))


def with_shift(forward: Callable, params, constants, shift: np.ndarray) -> Callable:
    """batch -> the model's output with `shifted` energies."""
    return lambda batch: shifted(forward(params, constants, batch), batch, shift)

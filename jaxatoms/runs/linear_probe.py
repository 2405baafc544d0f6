"""What a linear function of the starting network's features reaches: ridge regression on those of training structures.

A fine-tuned network that is no better has learnt nothing that its checkpoint did not know. Energies, scalars and
properties are sums over atoms that such a function can give; forces and stress are derivatives, and are left out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import Facts, ForceData, PropertiesData, ScalarData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import plan_pass
from jaxatoms.data.properties import property_values
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.graphs.properties import ATOM, DIPOLE, places
from jaxatoms.inference import evaluation
from jaxatoms.models.common.reductions import dipoles, reduce_property

TRAINED_ON = 1000  # structures at most
LOOKED_AT = 20_000  # training structures among which those with a label are sought
ROWS = 4000  # labels at most of each part of the split, drawn at random; a dipole has three
RIDGES = 10.0 ** np.arange(-12, 1)  # of the largest squared singular value


class Rows(NamedTuple):
    """Labels of one quantity and what a linear function of features makes them from."""

    design: np.ndarray  # [n, d] float32
    label: np.ndarray  # [n] normalised
    size: np.ndarray  # [n] what errors are divided by: atoms of the structure for energies, else 1

    def at(self, index) -> "Rows":
        """Some of the rows."""
        return Rows(*(column[index] for column in self))


def probed(facts: Facts) -> dict[str, str]:
    """{quantity: how it follows from a number per atom} of what a linear function can give."""
    if isinstance(facts, ForceData):
        return {"energy": "sum"} if facts.learns_energy else {}
    if isinstance(facts, PropertiesData):
        return {name: r for name, r in zip(facts.learnt, facts.reductions, strict=True) if r != "max"}
    return {} if facts.n_class or facts.reduction == "max" else {"value": facts.reduction}


@dataclasses.dataclass(frozen=True)
class Probe:
    """A starting network and the data sets of its run.

    Attributes:
      node_features: (*weights, batch) -> [n_node, d] that do not turn with the structure; zero for padding.
      weights: of the network; arguments of the compiled function, so that no program holds them.
      val: validation batches of the run, of all of its data sets.
      shapes: budgets of batches, which are used again; grows.
    """

    node_features: Callable[..., jax.Array]
    weights: tuple[Any, ...]
    corpus: Corpus
    val: Sequence[GraphBatch]
    shapes: list

    def errors(self, index: int, train: np.ndarray, test: np.ndarray) -> dict[str, dict[str, float]]:
        """{quantity: {"validation": mean absolute error, "test": the same, "n_train": labels}} in units of the tables.

        The ridge is that with the smallest validation error.

        Args:
          index: number of the data set whose records `train` and `test` are.
        """
        task = self.corpus.tasks[index]
        assert isinstance(task, DownstreamTask)
        wanted = probed(task.facts)
        if not wanted:
            return {}
        designs = jax.jit(lambda weights, batch: _designs(self.node_features(*weights, batch), batch, wanted.values()))
        collect = _Collector(lambda batch: designs(self.weights, batch), task, index, wanted)
        drawn = _with_labels(task, wanted, train)
        sources = (self._batches(index, drawn), self.val, self._batches(index, test))
        parts, out = [collect.rows(batches) for batches in sources], {}
        for quantity in wanted:
            fitted, chosen, tested = (part[quantity] for part in parts)
            if min(len(rows.label) for rows in (fitted, chosen, tested)):
                errors = _errors(fitted, chosen, tested) * _unit(task, quantity)
                out[quantity] = {"validation": float(errors[0]), "test": float(errors[1]), "n_train": len(fitted.label)}
        return out

    def _batches(self, index: int, records: np.ndarray) -> Iterable[GraphBatch]:
        return plan_pass(self.corpus, samples_of(index, records), evaluation.BATCH_EDGES, self.shapes).batches()


def _with_labels(task: DownstreamTask, wanted: dict[str, str], train: np.ndarray) -> np.ndarray:
    """Training structures that have a label: of every quantity an equal share of `TRAINED_ON`."""
    train = evaluation.draw(train, LOOKED_AT)
    each = [evaluation.draw(train[_labelled(task, quantity, train)], TRAINED_ON // len(wanted)) for quantity in wanted]
    return np.unique(np.concatenate(each))


def _labelled(task: DownstreamTask, quantity: str, records: np.ndarray) -> np.ndarray:
    """[n] bool: which structures have a label of the quantity."""
    store, facts = task.store, task.facts
    if not isinstance(facts, PropertiesData):
        values = store.energy if isinstance(facts, ForceData) else store.column(facts.column)
        return np.isfinite(np.asarray(values[records], np.float64))
    part = facts.part(quantity)
    if part.reduction == ATOM:
        known = np.isfinite(property_values(part, store, store.take(records[:0]), records))
        first = np.cumsum(store.n_node[records]) - store.n_node[records]
        return np.logical_or.reduceat(known, first) if len(records) else np.zeros(0, bool)
    return np.isfinite(store.column(part.column)[records]).reshape(len(records), -1).all(axis=1)


def _designs(features: jax.Array, batch: GraphBatch, reductions: Iterable[str]) -> dict[str, jax.Array]:
    """By reduction, the features and a constant combined over atoms: [n_graph or n_node, d], of dipoles [.., d, 3]."""
    known = jnp.concatenate([features, batch.node_mask[:, None].astype(features.dtype)], axis=1)
    combine = {ATOM: lambda: known, DIPOLE: lambda: dipoles(known, batch)}
    return {r: combine.get(r, lambda r=r: reduce_property(known, batch, r))() for r in sorted(set(reductions))}


@dataclasses.dataclass(frozen=True)
class _Collector:
    """What a data set's labels are made from, batch by batch."""

    designs: Callable[[GraphBatch], dict[str, jax.Array]]
    task: DownstreamTask
    index: int
    wanted: dict[str, str]

    def rows(self, batches: Iterable[GraphBatch]) -> dict[str, Rows]:
        """At most `ROWS` rows of each quantity; every label is as likely to be among them as any other."""
        found: dict[str, Rows] = {}
        ranks: dict[str, np.ndarray] = {}
        rng = np.random.default_rng(0)
        for batch in batches:
            arrays = jax.device_get(self.designs(batch))
            for quantity in self.wanted:
                new = self._of_batch(quantity, arrays, batch)
                rank = rng.random(len(new.label))
                if quantity in found:
                    new = Rows(*map(np.concatenate, zip(found[quantity], new, strict=True)))
                    rank = np.concatenate([ranks[quantity], rank])
                kept = np.sort(np.argsort(rank)[:ROWS])
                found[quantity], ranks[quantity] = new.at(kept), rank[kept]
        return found

    def _of_batch(self, quantity: str, arrays: dict[str, np.ndarray], batch: GraphBatch) -> Rows:
        reduction = self.wanted[quantity]
        label, known = _labels(self.task.facts, quantity, batch)
        own = np.asarray(batch.task == self.index)
        known = known & (own[batch.node_graph] if reduction == ATOM else own)
        design = np.asarray(arrays[reduction], np.float32)[known]
        if reduction == DIPOLE:
            design = np.moveaxis(design, 1, 2).reshape(-1, design.shape[1])
        size = (batch.node_table < len(batch.atomic_numbers)).sum(axis=1)
        sizes = size[known] if quantity == "energy" else np.ones(len(design), int)
        return Rows(design, np.asarray(label[known], np.float64).ravel(), sizes)


def _labels(facts: Facts, quantity: str, batch: GraphBatch) -> tuple[np.ndarray, np.ndarray]:
    """Normalised labels [n] or [n, 3] of a quantity, and which rows have one."""
    if not isinstance(facts, PropertiesData):
        return batch.energy, batch.energy_mask
    place = places(facts.reductions)[facts.learnt.index(quantity)]
    name = "atom_properties" if place.per_atom else "properties"
    return getattr(batch, name)[:, place.columns], getattr(batch, f"{name}_mask")[:, place.columns].all(axis=1)


def _errors(fitted: Rows, chosen: Rows, tested: Rows) -> np.ndarray:
    """[2] normalised mean absolute errors on `chosen`, by which the ridge is taken, and on `tested`."""
    design = np.asarray(fitted.design, np.float64)
    scale = np.sqrt(np.mean(design**2, axis=0))
    scale = np.where(scale > 0, scale, 1)
    left, size, right = np.linalg.svd(design / scale, full_matrices=False)
    projected = left.T @ fitted.label
    errors = []
    for ridge in RIDGES * size.max() ** 2:
        weights = right.T @ (size / (size**2 + ridge) * projected) / scale
        errors.append([np.mean(np.abs(rows.design @ weights - rows.label) / rows.size) for rows in (chosen, tested)])
    return np.array(min(errors))


def _unit(task: DownstreamTask, quantity: str) -> float:
    """What turns a normalised error into the unit of the tables."""
    facts = task.facts
    std = facts.part(quantity).std if isinstance(facts, PropertiesData) else task.std
    assert std is not None
    return std * evaluation.unit_of(facts, "" if isinstance(facts, ScalarData) else quantity)[1]

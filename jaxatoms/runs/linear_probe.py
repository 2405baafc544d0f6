"""What a linear function of the starting network's features reaches: ridge regression on those of training structures.

A fine-tuned network that is no better has learnt nothing that its checkpoint did not know. Energies, scalars and
properties are sums over atoms that such a function can give; forces and stress are derivatives, and are left out.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import Facts, ForceData, PropertiesData, ScalarData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import plan_pass
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.graphs.properties import ATOM, DIPOLE, places
from jaxatoms.inference import evaluation
from jaxatoms.models.common.reductions import dipoles, reduce_property

TRAINED_ON = 1000  # structures at most
ROWS = 4000  # labels at most that a function is fitted to: structures have one, dipoles three, atoms one each
RIDGES = 10.0 ** np.arange(-12, 1)  # of the largest squared singular value


class Rows(NamedTuple):
    """Labels of one quantity and what a linear function of features makes them from."""

    design: np.ndarray  # [n, d]
    label: np.ndarray  # [n] normalised
    size: np.ndarray  # [n] what errors are divided by: atoms of the structure for energies, else 1


def probed(facts: Facts) -> dict[str, str]:
    """{quantity: how it follows from a number per atom} of what a linear function can give."""
    if isinstance(facts, ForceData):
        return {"energy": "sum"} if facts.learns_energy else {}
    if isinstance(facts, PropertiesData):
        return {name: r for name, r in zip(facts.learnt, facts.reductions, strict=True) if r != "max"}
    return {} if facts.n_class or facts.reduction == "max" else {"value": facts.reduction}


def linear_probe(
    node_features: Callable, corpus: Corpus, index: int, train: np.ndarray, val: Iterable[GraphBatch],
    test: np.ndarray, shapes: list,
) -> dict[str, dict[str, float]]:
    """{quantity: {"validation": mean absolute error, "test": the same}} in the units of the tables.

    The ridge is that with the smallest validation error.

    Args:
      node_features: batch -> [n_node, d] of the starting network; zero for padding.
      corpus: the data sets of the run; index: number of the one whose records `train` and `test` are.
      val: validation batches of the run, of all of its data sets.
      shapes: budgets of batches, which are used again; grows.
    """  # fmt: skip
    task = corpus.tasks[index]
    assert isinstance(task, DownstreamTask)
    wanted = probed(task.facts)
    if not wanted:
        return {}
    designs = jax.jit(lambda batch: _designs(node_features(batch), batch, set(wanted.values())))
    passes = [plan_pass(corpus, samples_of(index, own), evaluation.BATCH_EDGES, shapes).batches()
              for own in (evaluation.draw(train, TRAINED_ON), test)]  # fmt: skip
    parts = [_rows(designs, batches, task, index, wanted) for batches in (passes[0], val, passes[1])]
    out = {}
    for quantity in wanted:
        fitted, chosen, tested = (part[quantity] for part in parts)
        if min(len(rows.label) for rows in (fitted, chosen, tested)):
            errors = _errors(fitted, chosen, tested) * _unit(task, quantity)
            out[quantity] = {"validation": float(errors[0]), "test": float(errors[1])}
    return out


def _designs(features: jax.Array, batch: GraphBatch, reductions: set[str]) -> dict[str, jax.Array]:
    """By reduction, the features and a constant combined over atoms: [n_graph or n_node, d], of dipoles [.., d, 3]."""
    known = jnp.concatenate([features, batch.node_mask[:, None].astype(features.dtype)], axis=1)
    combine = {ATOM: lambda: known, DIPOLE: lambda: dipoles(known, batch)}
    return {r: combine.get(r, lambda r=r: reduce_property(known, batch, r))() for r in sorted(reductions)}


def _rows(
    designs: Callable, batches: Iterable[GraphBatch], task: DownstreamTask, index: int, wanted: Mapping[str, str]
) -> dict[str, Rows]:
    found: dict[str, list[Rows]] = {quantity: [] for quantity in wanted}
    for batch in batches:
        arrays = jax.device_get(designs(batch))
        size = np.maximum((batch.node_table < len(batch.atomic_numbers)).sum(axis=1), 1)
        for quantity, reduction in wanted.items():
            label, known = _labels(task.facts, quantity, batch)
            own = np.asarray(batch.task == index)
            known = known & (own[batch.node_graph] if reduction == ATOM else own)
            design = np.asarray(arrays[reduction], np.float64)[known]
            if reduction == DIPOLE:
                design = np.moveaxis(design, 1, 2).reshape(-1, design.shape[1])
            sizes = size[known] if quantity == "energy" else np.ones(len(design))
            found[quantity].append(Rows(design, np.asarray(label[known], np.float64).ravel(), sizes))
    return {name: Rows(*map(np.concatenate, zip(*rows, strict=True))) for name, rows in found.items()}


def _labels(facts: Facts, quantity: str, batch: GraphBatch) -> tuple[np.ndarray, np.ndarray]:
    """Normalised labels [n] or [n, 3] of a quantity, and which rows have one."""
    if not isinstance(facts, PropertiesData):
        return batch.energy, batch.energy_mask
    place = places(facts.reductions)[facts.learnt.index(quantity)]
    name = "atom_properties" if place.per_atom else "properties"
    return getattr(batch, name)[:, place.columns], getattr(batch, f"{name}_mask")[:, place.columns].all(axis=1)


def _errors(fitted: Rows, chosen: Rows, tested: Rows) -> np.ndarray:
    """[2] normalised mean absolute errors on `chosen`, by which the ridge is taken, and on `tested`."""
    some = np.random.default_rng(0).permutation(len(fitted.label))[:ROWS]
    scale = np.sqrt(np.mean(fitted.design[some] ** 2, axis=0))
    scale = np.where(scale > 0, scale, 1)
    left, size, right = np.linalg.svd(fitted.design[some] / scale, full_matrices=False)
    projected = left.T @ fitted.label[some]
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

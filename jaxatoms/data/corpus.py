"""Labelled structures of one or several tasks -> concatenated structures, graphs and normalised targets.

A task is one data set with its own normalisation, cutoff and head: upstream (`UpstreamTask` here), downstream
(`downstream_task.DownstreamTask`) or structures without labels (`inference.prediction`). A sample is a (task, record)
pair; a batch may mix tasks freely.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxatoms.data.downstream import Graph
from jaxatoms.data.references import LinearReference, Normalization
from jaxatoms.data.store import Store
from jaxatoms.graphs.batch import Labels, Targets, empty_structures
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.graphs.properties import widths
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.types import Graphs, SystemBatch, naming


class Task(Protocol):
    """One data set, and what is learnt of it.

    Attributes:
      store: a `Store`, or anything with its `n_node`, `take`, `where` and `column`.
      graph: cutoff and rule of neighbours.
    """

    @property
    def store(self) -> Any: ...

    @property
    def graph(self) -> Graph: ...

    def targets(self, systems: SystemBatch, records: np.ndarray) -> Labels:
        """Normalised labels of `records`."""
        ...


@dataclasses.dataclass(frozen=True)
class UpstreamTask:
    """One data set to pretrain on."""

    name: str
    store: Store
    reference: LinearReference
    normalization: Normalization
    cutoff: float  # A
    max_neighbors: int = 30  # K of the main graph; the other graphs follow in fixed proportions
    labels: tuple[str, ...] = ("energy", "forces")  # kinds that any training structure has; the others are not learnt

    @property
    def graph(self) -> Graph:
        """Cutoff and rule of neighbours."""
        return Graph(self.cutoff, self.max_neighbors)

    def targets(self, systems: SystemBatch, records: np.ndarray) -> Labels:
        """Normalised energies, less their reference, and forces.

        Raises:
          UnusableStructure: an element without a reference energy.
        """
        # float64 until the reference is subtracted: total energies near -1e4 eV would lose 1e-3 eV in float32.
        residual = self.reference.subtract(systems.energy, systems.atomic_numbers, systems.n_node)
        energy = (residual / self.normalization.energy_std).astype(np.float32)
        return Labels(energy, systems.forces / np.float32(self.normalization.force_std))


class Samples(NamedTuple):
    """Which structures: parallel arrays."""

    task: np.ndarray  # [n] int32 index into the corpus
    record: np.ndarray  # [n] int64 index into the task's store

    def at(self, index) -> "Samples":
        """The samples at `index`."""
        return Samples(self.task[index], self.record[index])


def samples_of(task: int, records: np.ndarray) -> Samples:
    """All `records` of one task."""
    return Samples(np.full(len(records), task, np.int32), np.asarray(records, np.int64))


def draw_over_tasks(samples: Samples, n: int, seed: int) -> Samples:
    """At most `n` of the samples at random, every task with an equal share where it has as many, in random order."""
    rng = np.random.default_rng([seed, 4])
    order = rng.permutation(len(samples.task))
    # The rank of a sample within its task: the first of every task come before the second of any.
    rank = np.empty(len(order), np.int64)
    for task in np.unique(samples.task):
        own = order[samples.task[order] == task]
        rank[own] = np.arange(len(own))
    chosen = order[np.argsort(rank[order], kind="stable")][:n]
    return samples.at(rng.permutation(chosen))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The tasks of a run, and how their structures become model input."""

    tasks: tuple[Task, ...]
    graphs: GraphSpec = GEMNET_GRAPHS  # of the backbone

    def nothing(self) -> tuple[SystemBatch, Graphs, Targets]:
        """No structures, with every kind of label that batches of this corpus hold."""
        facts = [getattr(task, "facts", None) for task in self.tasks]
        stress = any(getattr(one, "learns_stress", False) for one in facts)
        reductions = getattr(facts[0], "reductions", None)
        return empty_structures(stress, None if reductions is None else widths(reductions))

    def n_node(self, samples: Samples) -> np.ndarray:
        """[n] atoms of each sample."""
        out = np.zeros(len(samples.task), np.int64)
        for i, task in enumerate(self.tasks):
            own = samples.task == i
            out[own] = task.store.n_node[samples.record[own]]
        return out

    def cells(self, samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cell [n, 3, 3] A, periodicity [n, 3] and cutoff [n] A of each sample."""
        out = np.zeros((len(samples.task), 3, 3)), np.zeros((len(samples.task), 3), bool)
        for i, task in enumerate(self.tasks):
            own = samples.task == i
            for values, name in zip(out, ("cell", "pbc"), strict=True):
                values[own] = task.store.column(name)[samples.record[own]]
        return *out, np.array([task.graph.cutoff for task in self.tasks])[samples.task]

    def place(self, samples: Samples, i: int) -> str:
        """File and number of the i-th sample."""
        return self.tasks[samples.task[i]].store.where(int(samples.record[i]))

    def build(self, samples: Samples, rng=None, edge_dropout: float = 0.0) -> tuple[SystemBatch, Graphs, Targets]:
        """Structures, graphs and targets of some samples, ordered by task.

        Args:
          rng: NumPy generator of the edge dropout.
          edge_dropout: rate at which directed edges are removed before the graphs are cut (training only).

        Raises:
          InputError: a structure that no model takes, by file and record.
        """
        parts = [self._take(i, samples.record[samples.task == i]) for i in np.unique(samples.task)]
        systems = SystemBatch(*(np.concatenate(column) for column in zip(*(p[0] for p in parts), strict=True)))
        targets = _joined([p[1] for p in parts])
        cutoff = np.array([task.graph.cutoff for task in self.tasks])[targets.task]
        neighbors = [task.graph.neighbors(systems.n_node) for task in self.tasks]
        max_neighbors = np.stack(neighbors)[targets.task, np.arange(len(targets.task))]
        ordered = samples.at(np.argsort(samples.task, kind="stable"))
        with naming(lambda i: self.place(ordered, i)):
            graphs = self.graphs.build_batch(systems, cutoff, max_neighbors, rng, edge_dropout)
        return systems, graphs, targets

    def _take(self, index: int, records: np.ndarray) -> tuple[SystemBatch, Targets]:
        task = self.tasks[index]
        systems = task.store.take(records)
        with naming(lambda i: task.store.where(int(records[i]))):
            energy, forces, *more = task.targets(systems, records)
        return systems, Targets(energy, forces, np.full(len(records), index, np.int32), *more)


def _joined(parts: list[Targets]) -> Targets:
    """Targets of several tasks, one after another; stress is missing in tasks that do not learn it.

    Properties are learnt of all of them or of none.
    """
    stress = None
    if any(part.stress is not None for part in parts):
        missing = lambda part: np.full((len(part.energy), 3, 3), np.nan, np.float32)  # noqa: E731
        stress = np.concatenate([missing(part) if part.stress is None else part.stress for part in parts])
    energy, forces, task = (np.concatenate([part[i] for part in parts]) for i in range(3))
    properties: list[np.ndarray | None] = [None, None]
    if parts[0].properties is not None:
        properties = [np.concatenate([part[i] for part in parts]) for i in (4, 5)]
    return Targets(energy, forces, task, stress, *properties)

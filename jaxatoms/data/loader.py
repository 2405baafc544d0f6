"""Builds the padded batch of each step. Its content is a pure function of (seed, step), so a run resumes exactly.

`TrainBatches` describes a whole run, and `batch(step)` builds the arrays of one step. `prefetch` builds batches ahead
of the device, in a thread or in worker processes that use no device.
"""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

import numpy as np

from jaxatoms.data import packing, workers
from jaxatoms.data.corpus import Corpus, Samples
from jaxatoms.graphs.batch import (
    BatchBudget,
    BudgetOverflow,
    GraphBatch,
    Targets,
    budget_of,
    check_atoms,
    collate,
    empty_structures,
)
from jaxatoms.graphs.dropout import structure_keys
from jaxatoms.graphs.neighbors import may_reach_far
from jaxatoms.types import Graphs, InputError, SystemBatch, naming

Built = tuple[SystemBatch, Graphs, Targets]
SAMPLE = 2048  # structures whose graphs are measured to choose budgets


@dataclasses.dataclass
class TrainBatches:
    """The batches of a run of `epochs` passes over `samples`.

    In fixed mode each batch has `batch_size` structures, and the run has n // batch_size * epochs steps. The structures
    of all epochs form one stream, with a new permutation for each epoch, so none is dropped between epochs. With
    `round_up` an epoch ends with its structures instead, in a batch that may hold fewer.
    In packed mode (`weights` is given) batches hold at most `budgets[0].n_main` expected edges and are packed anew for
    each epoch.
    """

    corpus: Corpus
    samples: Samples
    budgets: list[BatchBudget]
    epochs: int
    seed: int
    edge_dropout: float
    batch_size: int = 0  # structures per batch; unused in packed mode
    weights: np.ndarray | None = None  # [n] expected main edges per sample: packed mode
    round_up: bool = False  # fixed mode: ceil(n / batch_size) steps per epoch, of which the last may be short
    _packed: tuple[int, list[np.ndarray]] = dataclasses.field(default=(-1, []), init=False, repr=False)

    def __post_init__(self):
        n = len(self.samples.record)
        if self.weights is None and self.batch_size > n:
            raise InputError(f"batch of {self.batch_size} is larger than the {n} structures; lower --batch-size")
        if self.weights is None:
            per_epoch = (n + (self.batch_size - 1) * self.round_up) // self.batch_size
            self._ends = np.cumsum([per_epoch] * self.epochs)
        else:
            self._ends = np.cumsum([len(self._bins(epoch)) for epoch in range(self.epochs)])

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return int(self._ends[-1])

    def indices(self, step: int) -> np.ndarray:
        """Positions in `samples` that step number `step` (from 0) trains on."""
        if self.weights is not None:
            epoch = int(np.searchsorted(self._ends, step, side="right"))
            first = self._ends[epoch - 1] if epoch else 0
            return self._bins(epoch)[step - first]
        n = len(self.samples.record)
        if self.round_up:
            epoch, first = divmod(step, -(-n // self.batch_size))
            return _permutation(self.seed, epoch, n)[first * self.batch_size :][: self.batch_size]
        place = step * self.batch_size + np.arange(self.batch_size)
        epochs = place // n
        return np.array([_permutation(self.seed, e, n)[i] for e, i in zip(epochs.tolist(), (place % n).tolist())])

    def batch(self, step: int) -> GraphBatch:
        """Builds the padded batch of a step in the smallest budget that holds it."""
        return self.alike([step])[0]

    def alike(self, steps: Sequence[int]) -> list[GraphBatch]:
        """Builds the padded batches of some steps, all in the smallest budget that holds every one.

        A batch that exceeds every budget, which is rare by design, gets a budget of its own: that step is slow because
        it is compiled, and the run goes on.
        """
        built = [self.build(step, self.indices(step)) for step in steps]
        return collate_alike(built, self.budgets, f"step {steps[0]}")

    def build(self, step: int, index: np.ndarray) -> Built:
        """Builds (systems, graphs, targets) of some structures of a step; none depends on which others are built."""
        index = index[np.argsort(self.samples.task[index], kind="stable")]  # the order of Corpus.build
        keys = structure_keys(self.seed, step, index)
        return self.corpus.build(self.samples.at(index), keys, self.edge_dropout)

    def _bins(self, epoch: int) -> list[np.ndarray]:
        if self._packed[0] != epoch:
            assert self.weights is not None
            # Expected edges fluctuate under edge dropout; a reserve of 2 % makes overflow into the larger budget rare.
            capacity = int(self.budgets[0].n_main * (0.98 if self.edge_dropout else 1.0))
            order = _permutation(self.seed, epoch, len(self.weights))
            self._packed = epoch, [order[group] for group in packing.pack(self.weights[order], capacity)]
        return self._packed[1]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


def collate_smallest(systems, graphs, targets, budgets: Sequence[BatchBudget]) -> GraphBatch:
    """Calls `collate` with the first (smallest) of the ascending budgets that holds the batch.

    Raises:
      BudgetOverflow: none holds it.
    """
    return collate_alike([(systems, graphs, targets)], budgets, "", grow=False)[0]


def collate_alike(built: Sequence[Built], budgets: Sequence[BatchBudget], what: str, grow: bool = True):
    """Calls `collate` for each batch, all with the first of the ascending budgets that holds every one.

    Args:
      what: names the batches in messages.
      grow: whether to make a larger budget, with a warning, where none holds them; one more shape is then compiled.

    Raises:
      BudgetOverflow: none holds them, and `grow` is off.
    """
    for budget in budgets:
        try:
            return [collate(*parts, budget) for parts in built]
        except BudgetOverflow as overflow:
            error = overflow
    if not grow:
        raise error
    warnings.warn(f"{what}: {error.name}={error.need}, over {error.have}; one more shape is compiled", stacklevel=3)
    sizes = [packing.whole_size(*parts[:2]) for parts in built if len(parts[0].n_node)]
    need = {name: max(size[name] for size in sizes) for name in sizes[0]}
    return [collate(*parts, packing.grown_budget(need, budgets[-1])) for parts in built]


def largest_structure(corpus: Corpus, samples: Samples) -> int:
    """Returns the number of atoms of the largest sample; all are checked, so that no run fails on one later.

    Raises:
      InputError: a sample is too large for a batch, or its cell is too flat; the message names file and record.
    """
    n_node = corpus.n_node(samples)
    with naming(lambda i: corpus.place(samples, i)):
        check_atoms(n_node)
    for i in np.flatnonzero(may_reach_far(*corpus.cells(samples))):
        corpus.build(samples.at([i]))
    return int(n_node.max(initial=0))


def measure(corpus: Corpus, samples: Samples, edge_dropout: float, seed: int = 0, limit: int | None = SAMPLE):
    """Returns `structure_sizes` of the samples, or of `limit` random ones, with graphs built as in training."""
    n = len(samples.record)
    rng = np.random.default_rng([seed, 2])
    chosen = np.arange(n) if limit is None or n <= limit else rng.choice(n, limit, replace=False)
    parts = []
    for chunk in np.array_split(chosen, max(1, len(chosen) // 128)):
        systems, graphs, _ = corpus.build(samples.at(np.sort(chunk)), rng, edge_dropout)
        parts.append(packing.structure_sizes(systems, graphs))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def eval_batches(corpus: Corpus, samples: Samples, batch_size: int) -> list[GraphBatch]:
    """Builds batches of one shape from all samples in order, without edge dropout; they stay on the host."""
    n = len(samples.record)
    largest_structure(corpus, samples)
    groups = np.array_split(np.arange(n), -(-n // batch_size)) if n else []
    built = [corpus.build(samples.at(g)) for g in groups]
    budget = packing.exact_budget([packing.whole_size(*parts[:2]) for parts in built])
    return [collate(*parts, budget) for parts in built]


def grouped(batches: Sequence[GraphBatch], n_part: int, own: Sequence[int]) -> list[list[GraphBatch]]:
    """Groups batches of one shape by `n_part`, pads the last group with empty ones, and returns the parts `own`."""
    blank = collate(*empty_structures(), budget_of(batches[0]))
    groups = [batches[i : i + n_part] for i in range(0, len(batches), n_part)]
    return [[group[i] if i < len(group) else blank for i in own] for group in groups]


def occupancy(batch: GraphBatch) -> tuple[int, int]:
    """Counts (real, padded) main edges of a batch, or of a stack of batches."""
    return int((batch.main.in_table < batch.swap.shape[-1]).sum()), batch.swap.size


_worker: Callable[[Any], Any] | None = None


def _set_worker(build: Callable[[Any], Any]):
    global _worker
    _worker = build
    workers.leave_signals_to_parent()
    workers.end_with_parent()


def _work(step: Any) -> Any:
    assert _worker is not None
    return _worker(step)


def prefetch(build: Callable[[Any], Any], steps: Iterable, n_worker: int = 0) -> Iterator[Any]:
    """Yields build(step) of the steps in order; a thread (n_worker=0) or several processes build them ahead.

    An exception in a worker is raised here, at the step that it belongs to.

    Raises:
      InputError: a worker process was killed.
    """
    others = multiprocessing.active_children()
    if n_worker:
        # forkserver: forking a process that runs JAX's threads can deadlock.
        context = multiprocessing.get_context("forkserver")
        make_pool = concurrent.futures.ProcessPoolExecutor
        pool: concurrent.futures.Executor = make_pool(n_worker, context, _set_worker, (build,))
        submit, depth = (lambda step: pool.submit(_work, step)), 2 * n_worker + 2
    else:
        pool = concurrent.futures.ThreadPoolExecutor(1, "batches")
        submit, depth = (lambda step: pool.submit(build, step)), 3
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for step in steps:
            pending.append(submit(step))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        # The pool ends the other workers with SIGTERM, which they ignore, and waits for them.
        for child in set(multiprocessing.active_children()).difference(others):
            child.kill()
        problem = "a process that builds batches was killed (out of memory?)"
        raise InputError(f"{problem}; give fewer --workers, and go on with --resume") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

"""One step's structures cut into parts that cost about the same and share one padded shape.

There is a part per device, or several which it works on one after another, adding up their gradients.

Who gets which structure is a pure function of the step's indices, so every process cuts alike and builds only the
parts of its own devices. The step itself (which structures, which edges are dropped) does not depend on the cut.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxatoms.data import packing
from jaxatoms.data.loader import Built, TrainBatches, collate_alike
from jaxatoms.graphs.batch import BatchBudget, BudgetOverflow, GraphBatch, stack
from jaxatoms.types import InputError

SIMULATED = 1000  # batches drawn to choose the budgets of parts


def balanced_parts(weights: np.ndarray, n_part: int) -> list[np.ndarray]:
    """Positions [n] of items cut into `n_part` parts of nearly equal weight, ascending within each part.

    Largest first into the lightest part (Graham 1969, doi 10.1137/0117039): no part exceeds the mean by more than
    one item. With at least `n_part` items no part is empty.
    """
    if n_part == 1:
        return [np.arange(len(weights))]
    parts: list[list[int]] = [[] for _ in range(n_part)]
    loads = [(0, i) for i in range(n_part)]
    for item in np.argsort(-np.asarray(weights), kind="stable").tolist():
        load, i = loads[0]
        parts[i].append(item)
        heapq.heapreplace(loads, (load + int(weights[item]) + 1, i))  # + 1: an atom without edges is work too
    return [np.sort(np.array(part, np.int64)) for part in parts]


def expected_edges(sizes: Mapping[str, np.ndarray], n_node: np.ndarray) -> np.ndarray:
    """[n] main edges of structures of `n_node` atoms, interpolated between the means of a sample's `sizes`."""
    atoms, which = np.unique(sizes["n_node"], return_inverse=True)
    mean = np.bincount(which, sizes["n_main"]) / np.bincount(which)
    return np.rint(np.interp(n_node, atoms, mean) * n_node / np.clip(n_node, atoms[0], atoms[-1])).astype(np.int64)


def part_budgets(
    sizes: Mapping[str, np.ndarray],
    groups: Iterable[np.ndarray],
    n_part: int,
    largest: int,
    shapes: int,
    headroom: float = packing.HEADROOM,
    alike: int = 1,
) -> list[BatchBudget]:
    """Budgets, ascending, that hold every part of batches like `groups`; each must suit all parts of a step.

    Args:
      sizes: `structure_sizes` of a sample; groups: index arrays into it.
      largest: atoms of the largest structure of the whole set.
      shapes: how many, 1 to 4.
      headroom: of the last budget over the largest part seen.
      alike: as in `packing.fixed_budgets`.
    """
    steps = [packing.group_sizes(sizes, _cut(group, sizes["n_main"], n_part)) for group in groups]
    need = {name: np.array([step[name].max() for step in steps]) for name in steps[0]}
    last = {name: np.ceil(values.max() * headroom) for name, values in need.items()}
    last |= {"n_graph": last["n_graph"] + 1, "n_per_graph": largest}
    return packing.level_budgets(packing.largest_of(need, alike), last, shapes)


def _cut(group: np.ndarray, weights: np.ndarray, n_part: int) -> list[np.ndarray]:
    return [group[part] for part in balanced_parts(weights[group], n_part) if len(part)]


def drawn_groups(sizes: Mapping[str, np.ndarray], batch_size: int, capacity: int | None, seed: int = 0):
    """Random batches from a sample: of `batch_size` structures, or filled to `capacity` main edges."""
    rng, n = np.random.default_rng([seed, 3]), len(sizes["n_main"])
    if capacity is None:
        return list(rng.integers(n, size=(SIMULATED, batch_size)))
    per_batch = max(1, int(capacity / max(sizes["n_main"].mean(), 1)))
    drawn = rng.integers(n, size=max(n, min(50 * per_batch, 2_000_000)))
    groups = [drawn[group] for group in packing.pack(sizes["n_main"][drawn], capacity)]
    return groups[: max(1, len(groups) - packing.OPEN_BINS)]


@dataclasses.dataclass
class ShardedBatches:
    """The batches of a run, each a list over this process's devices, all of one shape.

    A device gets one part, or `accumulate` of them stacked along a leading axis.
    With several processes there is one budget only, since none knows what the others' parts need.
    """

    whole: TrainBatches
    edges: np.ndarray  # [n] expected main edges per sample
    budgets: list[BatchBudget]  # of one part
    n_part: int  # devices
    own: Sequence[int]  # devices whose parts are built here
    accumulate: int = 1  # parts of each device

    def __post_init__(self):
        if not self.alone:
            self.budgets = self.budgets[-1:]

    @property
    def alone(self) -> bool:
        """Whether this process builds every part."""
        return len(self.own) == self.n_part

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.whole.total_steps

    def indices(self, step: int) -> np.ndarray:
        """Positions in the samples that step number `step` trains on, over all devices."""
        return self.whole.indices(step)

    def parts(self, step: int) -> list[np.ndarray]:
        """The same, cut into `n_part * accumulate` parts, those of a device one after another."""
        index = self.indices(step)
        return [index[part] for part in balanced_parts(self.edges[index], self.n_part * self.accumulate)]

    def batch(self, step: int) -> list[GraphBatch]:
        """This process's parts of a step, in the smallest budget that holds all of them.

        Raises:
          InputError: a part outgrows every budget and other processes could not know.
        """
        return self.alike([step])[0]

    def alike(self, steps: Sequence[int]) -> list[list[GraphBatch]]:
        """The same for some steps, all in the smallest budget that holds every part of every step."""
        built = [part for step in steps for part in self._build(step)]
        try:
            flat = collate_alike(built, self.budgets, f"step {steps[0]}", grow=self.alone)
        except BudgetOverflow as error:
            raise InputError(f"step {steps[0]}: {error}; resume with a larger --part-headroom") from error
        m, n = self.accumulate, len(self.own)
        devices = flat if m == 1 else [stack(flat[i : i + m]) for i in range(0, len(flat), m)]
        return [devices[i : i + n] for i in range(0, len(devices), n)]

    def _build(self, step: int) -> list[Built]:
        parts, m = self.parts(step), self.accumulate
        mine = [part for device in self.own for part in parts[m * device : m * (device + 1)]]
        empty = self.whole.corpus.nothing()
        return [self.whole.build(step, part) if len(part) else empty for part in mine]

"""Chooses the sizes of padded batches, and which structures share one.

There are two modes. In fixed mode every batch has the paper's number of structures, and a few budgets cover the range
of their sizes. In packed mode (throughput mode) batches are filled up to a number of edges. Budgets are measured on a
sample of graphs that are built as in training, edge dropout included.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxatoms.graphs.batch import BatchBudget
from jaxatoms.types import Edges, Graphs, InputError, SystemBatch

ADDITIVE = ("n_node", "n_main", "n_a2ee2a", "n_qint", "n_a2a")
MAXIMA = ("n_per_graph", "k_main", "k_main_out", "k_a2ee2a", "k_a2ee2a_out", "k_qint", "k_qint_out")
STEPS = {"n_node": 8, "n_main": 64, "n_a2ee2a": 64, "n_qint": 64, "n_a2a": 64}  # counts are multiples of these
MAX_SHAPES = 4
BATCHES = 4000  # random batches drawn to choose fixed budgets
OVERFLOW = 1e-3  # bounds the expected number of batches of a run that exceed the largest fixed budget
HEADROOM = 1.08  # factor on the largest degree of the sample, because other structures may have larger ones
OPEN_BINS = 16
GRID = 2**0.5  # ratio of neighbouring sizes of budgets that are meant to be used again
LEAST_WORK = 256  # main edges; below it the size of a batch hardly matters


def structure_sizes(systems: SystemBatch, graphs: Graphs) -> dict[str, np.ndarray]:
    """Returns the sizes of every structure, [n_graph] each, under the names of `BatchBudget`."""
    node_graph = np.repeat(np.arange(len(systems.n_node)), systems.n_node)
    n_graph, n_node = len(systems.n_node), len(node_graph)

    def count(edges: Edges) -> np.ndarray:
        return np.bincount(node_graph[edges.receivers], minlength=n_graph)

    def degree(nodes: np.ndarray) -> np.ndarray:
        out = np.zeros(n_graph, np.int64)
        np.maximum.at(out, node_graph, np.bincount(nodes, minlength=n_node))
        return out

    return {
        "n_node": systems.n_node.astype(np.int64),
        "n_main": count(graphs.main),
        "n_a2ee2a": count(graphs.a2ee2a),
        "n_qint": count(graphs.qint),
        "n_a2a": count(graphs.a2a),
        "n_per_graph": systems.n_node.astype(np.int64),
        "k_main": degree(graphs.main.receivers),
        # A symmetrised graph needs no table of leaving edges: its `swap` gives them.
        "k_main_out": degree(graphs.main.senders) * (len(graphs.swap) == 0),
        "k_a2ee2a": degree(graphs.a2ee2a.receivers),
        "k_a2ee2a_out": degree(graphs.a2ee2a.senders),
        "k_qint": degree(graphs.qint.receivers),
        "k_qint_out": degree(graphs.qint.senders),
    }


def group_sizes(sizes: Mapping[str, np.ndarray], groups: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the sizes of batches of the given structures, [n_batch] each: counts are summed, degrees maximised."""
    out = {name: np.array([sizes[name][g].sum() for g in groups]) for name in ADDITIVE}
    out |= {name: np.array([sizes[name][g].max() for g in groups]) for name in MAXIMA}
    return out | {"n_graph": np.array([len(g) for g in groups])}


def round_up(value: float, step: int) -> int:
    """Returns the smallest positive multiple of `step` that is at least `value`."""
    return max(step, int(-(-value // step)) * step)


def make_budget(sizes: Mapping[str, float]) -> BatchBudget:
    """Returns a budget for real content of these sizes: it adds a graph and a node of padding and rounds counts up."""
    values = {name: round_up(sizes[name] + (name == "n_node"), STEPS.get(name, 1)) for name in (*ADDITIVE, *MAXIMA)}
    values["k_main_out"] = int(np.ceil(sizes["k_main_out"]))
    return BatchBudget(n_graph=int(sizes["n_graph"]) + 1, **values)


def whole_size(systems: SystemBatch, graphs: Graphs) -> dict[str, int]:
    """Returns the sizes of one batch of all the given structures, under the names of `BatchBudget`."""
    sizes = group_sizes(structure_sizes(systems, graphs), [np.arange(len(systems.n_node))])
    return {name: int(values[0]) for name, values in sizes.items()}


def exact_budget(batches: Sequence[Mapping[str, int]]) -> BatchBudget:
    """Returns the smallest budget that holds every batch of these `whole_size`s."""
    return make_budget({name: max(batch[name] for batch in batches) for name in batches[0]})


def fixed_budgets(
    sizes: Mapping[str, np.ndarray],
    batch_size: int,
    largest: int,
    steps: int,
    seed: int = 0,
    shapes: int = MAX_SHAPES,
    alike: int = 1,
) -> list[BatchBudget]:
    """Returns budgets, ascending, for `steps` random batches of `batch_size` structures.

    The last one is exceeded in about one run of some hundred, as far as the sample represents the set. The others are
    placed such that the fewest edge slots stay empty.

    Args:
      sizes: `structure_sizes` of a sample.
      largest: number of atoms of the largest structure of the whole set, which the sample may have missed.
      shapes: number of budgets, 1 to 4; each is compiled once, and more of them leave fewer edge slots empty.
      alike: number of consecutive batches that must share a budget.
    """
    rng = np.random.default_rng(seed)
    groups = rng.integers(len(sizes["n_node"]), size=(BATCHES, batch_size))
    batches = group_sizes(sizes, groups)
    last = {name: sum_bound(sizes[name], batch_size, OVERFLOW / steps) for name in ADDITIVE}
    last |= {name: np.ceil(sizes[name].max() * HEADROOM) + 2 * (sizes[name].max() > 0) for name in MAXIMA}
    last |= {"n_graph": batch_size, "n_per_graph": largest}
    return level_budgets(largest_of(batches, alike), last, shapes)


def shapes_worth_compiling(steps: int) -> int:
    """Returns how many shapes, 1 to 4, make a run of this many steps faster.

    A shape saves about a twentieth of the steps' time; compiling it takes as long as 50 to 100 steps.
    """
    return min(1 + steps // 1000, MAX_SHAPES)


def largest_of(batches: Mapping[str, np.ndarray], alike: int) -> dict[str, np.ndarray]:
    """Returns the sizes that hold each `alike` consecutive batches of these sizes ([n_batch] each)."""
    whole = {name: values[: max(len(values) // alike, 1) * alike] for name, values in batches.items()}
    return {name: values.reshape(-1, min(alike, len(values))).max(1) for name, values in whole.items()}


def level_budgets(batches: Mapping[str, np.ndarray], last: Mapping[str, float], shapes: int) -> list[BatchBudget]:
    """Returns ascending budgets up to `last` with the fewest empty slots for batches of these sizes ([n_batch])."""
    levels = cheapest_levels(batches["n_main"], last["n_main"], shapes)
    budgets = [make_budget({n: min(v, last[n]) for n, v in of.items()}) for of in _below(batches, levels)]
    return list(dict.fromkeys([*budgets, make_budget(last)]))


def sum_bound(values: np.ndarray, n: int, chance: float) -> int:
    """Returns a bound that the sum of `n` random draws from `values` exceeds with probability < `chance` (Chernoff)."""
    if values.min() == values.max():
        return int(n * values.max())
    rates = np.geomspace(1e-2, 1e2, 400)[:, None] / np.ptp(values)
    over = (values - values.max())[None]  # <= 0, so that exp cannot overflow
    moments = np.log(np.exp(rates * over).mean(1)) + rates[:, 0] * values.max()
    bound = ((n * moments - np.log(chance)) / rates[:, 0]).min()
    return int(np.ceil(min(bound, n * values.max())))


def cheapest_levels(values: np.ndarray, last: int, shapes: int, grid: int = 60) -> tuple[int, ...]:
    """Returns the `shapes` - 1 capacities below `last` that leave the fewest slots empty for batches of these sizes."""
    quantiles = np.quantile(values, np.linspace(0.02, 1, grid), method="higher")
    candidates = sorted({round_up(q, STEPS["n_main"]) for q in quantiles})
    reach = {c: int((values <= c).sum()) for c in candidates}

    def slots(levels):
        total, placed = 0, 0
        for level in levels:
            total, placed = total + (reach[level] - placed) * level, reach[level]
        return total + (len(values) - placed) * last

    return min(itertools.combinations(reach, min(shapes - 1, len(reach))), key=slots)


def _below(batches: Mapping[str, np.ndarray], levels: Sequence[int]) -> Iterator[dict[str, float]]:
    """Yields, for batches between two levels of main edges, the other sizes that nearly all of them need."""
    floor = -1
    for level in levels:
        own = (batches["n_main"] > floor) & (batches["n_main"] <= level)
        need = {name: np.quantile(values[own], 0.998, method="higher") for name, values in batches.items()}
        yield need | {"n_main": level}
        floor = level


def grown_budget(sizes: Mapping[str, float], last: BatchBudget) -> BatchBudget:
    """Returns a budget for a batch that exceeds `last`; each size that is too small grows in steps of a quarter."""
    need, have = dataclasses.asdict(make_budget(sizes)), dataclasses.asdict(last)
    for name in need:
        while have[name] < need[name]:
            have[name] = round_up(have[name] * 1.25, STEPS.get(name, 1))
    return BatchBudget(**have)


def shared_budget(need: BatchBudget, known: list[BatchBudget]) -> BatchBudget:
    """Returns a budget of `known` that holds `need` without much waste, or else a new one, which is added to `known`.

    Main edges determine what a step costs, so they must nearly agree; other sizes may be up to four times as large. A
    new budget has a quarter more of the other sizes than `need`.
    """
    want = dataclasses.asdict(need)
    for budget in known:
        have = dataclasses.asdict(budget)
        if have["n_main"] <= 1.1 * want["n_main"] and all(want[k] <= have[k] <= 4 * want[k] for k in want):
            return budget
    roomy = {k: v if k == "n_main" or v == 0 else round_up(v * 1.25, STEPS.get(k, 1)) for k, v in want.items()}
    known.append(BatchBudget(**roomy))
    return known[-1]


def reused_budget(need: BatchBudget, known: Sequence[BatchBudget], batch_edges: int = 0) -> BatchBudget:
    """Returns the cheapest budget of `known` that holds `need` at no more than twice its work, or else a new one.

    A new budget has sizes on a coarse geometric grid, with a reserve. It also covers known budgets where that takes no
    more than twice the work. Structures that arrive one by one, with sizes unknown beforehand, therefore share few
    shapes.

    Args:
      batch_edges: number of main edges up to which batches are filled. A full batch is never too much work, and its
        main edges need no reserve.
    """
    bound = 2 * max(work(need), LEAST_WORK, 1.5 * batch_edges)  # the tables of a full batch come to its edges
    fitting = [budget for budget in known if _covers(budget, need) and work(budget) <= bound]
    if fitting:
        return min(fitting, key=work)
    grid = {name: _on_grid(name, value) for name, value in dataclasses.asdict(need).items()}
    new = BatchBudget(**grid | ({"n_main": need.n_main} if batch_edges else {}))
    for budget in sorted(known, key=work):
        both = BatchBudget(**{name: max(n, getattr(budget, name)) for name, n in dataclasses.asdict(new).items()})
        new = both if work(both) <= bound else new
    return new


def work(budget: BatchBudget) -> float:
    """Estimates what a step costs, in units of main edges.

    Source: operations and bytes of GemNet-OC-S's compiled forward pass, each size doubled in turn; the sizes that
    are left out matter by a few per cent.
    """
    return budget.n_main + budget.n_node * budget.k_main / 8 + budget.n_a2a / 400


def _covers(budget: BatchBudget, need: BatchBudget) -> bool:
    return all(getattr(budget, name) >= value for name, value in dataclasses.asdict(need).items())


def _on_grid(name: str, value: int) -> int:
    """Returns a power of the grid's ratio, with a reserve (larger where it costs little); 0 (no table) stays 0."""
    if value == 0:
        return 0
    roomy = value * (1.1 if name in ("n_main", "n_node", "n_graph", "n_per_graph") else 1.8)
    power = np.ceil(np.log(roomy) / np.log(GRID) - 1e-9)
    return round_up(round(GRID**power, 6), STEPS.get(name, 1))


def packed_budgets(
    sizes: Mapping[str, np.ndarray], n_main: int, largest: int, weights: np.ndarray
) -> list[BatchBudget]:
    """Returns two budgets for batches filled to `n_main` edges: the usual one, and a larger one for exceptions.

    Args:
      sizes: `structure_sizes` of a sample.
      largest: atoms of the largest structure of the whole set.
      weights: [n] main edges of every structure of the set.

    Raises:
      InputError: a single structure is larger than the batch.
    """
    biggest = int(weights.max())
    if biggest > n_main:
        raise InputError(f"a structure has {biggest} edges, over the batch of {n_main}; raise --batch-edges")
    groups = pack(sizes["n_main"], n_main)
    batches = group_sizes(sizes, groups[:-1] or groups)
    usual = {n: np.ceil(v.max() * 1.02) for n, v in batches.items()} | {"n_main": n_main}
    usual["n_graph"] = batches["n_graph"].max() * 1.05 + 1
    spare = {n: np.ceil(v * HEADROOM) for n, v in usual.items()} | {"n_per_graph": largest}
    return [make_budget(usual), make_budget(spare)]


def pack(weights: np.ndarray, capacity: int, open_bins: int = OPEN_BINS) -> list[np.ndarray]:
    """Puts items, in order, into the fullest open bin that has room, and closes the fullest bin when none has room.

    Args:
      weights: [n] integers, each <= capacity.

    Returns:
      Index arrays into `weights`, every item in exactly one.
    """
    done: list[list[int]] = []
    contents: list[list[int]] = []
    room: list[int] = []
    for item, weight in enumerate(weights.tolist()):
        fits = [(left, b) for b, left in enumerate(room) if left >= weight]
        if fits:
            _, b = min(fits)
        elif len(room) < open_bins:
            contents.append([])
            room.append(capacity)
            b = len(room) - 1
        else:
            b = room.index(min(room))
            done.append(contents[b])
            contents[b], room[b] = [], capacity
        contents[b].append(item)
        room[b] -= weight
    return [np.array(items) for items in done + contents]

"""How large padded batches must be, and which structures share one.

Two modes. "Fixed": every batch has the paper's number of structures; a few budgets cover the spread of their
sizes. "Packed": batches are filled up to a number of edges (throughput mode). Budgets are measured on a sample
of the very graphs that training sees, edge dropout included.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxatoms.graphs.batch import BatchBudget
from jaxatoms.types import Edges, Graphs, InputError, SystemBatch

ADDITIVE = ("n_node", "n_main", "n_a2ee2a", "n_qint", "n_a2a")
MAXIMA = ("n_per_graph", "k_main", "k_main_out", "k_a2ee2a", "k_a2ee2a_out", "k_qint", "k_qint_out")
LEVELS = {1: (1.0,), 2: (0.7, 1.0), 3: (0.5, 0.9, 1.0), 4: (0.4, 0.75, 0.95, 1.0)}  # quantiles of batch sizes
HEADROOM = 1.08  # over the largest batch seen in the sample, for those not seen
OPEN_BINS = 16


def structure_sizes(systems: SystemBatch, graphs: Graphs) -> dict[str, np.ndarray]:
    """Sizes of every structure, [n_graph] each, under the names of `BatchBudget`."""
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
    """Sizes of batches made of the given structures: sums of the counts, maxima of the degrees; [n_batch] each."""
    out = {name: np.array([sizes[name][g].sum() for g in groups]) for name in ADDITIVE}
    out |= {name: np.array([sizes[name][g].max() for g in groups]) for name in MAXIMA}
    return out | {"n_graph": np.array([len(g) for g in groups])}


def round_up(value: float, step: int) -> int:
    """The multiple of `step` at or above `value`, at least `step`."""
    return max(step, int(-(-value // step)) * step)


def make_budget(sizes: Mapping[str, float]) -> BatchBudget:
    """A budget that holds sizes of real content: one graph and node more for padding, counts rounded up."""
    steps = {"n_node": 8, "n_main": 64, "n_a2ee2a": 64, "n_qint": 64, "n_a2a": 64}
    values = {name: round_up(sizes[name] + (name == "n_node"), steps.get(name, 1)) for name in (*ADDITIVE, *MAXIMA)}
    values["k_main_out"] = int(np.ceil(sizes["k_main_out"]))
    return BatchBudget(n_graph=int(sizes["n_graph"]) + 1, **values)


def exact_budget(batches: Mapping[str, np.ndarray]) -> BatchBudget:
    """The smallest budget that holds every one of these batches."""
    return make_budget({name: values.max() for name, values in batches.items()})


def fixed_budgets(
    sizes: Mapping[str, np.ndarray], batch_size: int, largest: int, seed: int = 0, shapes: int = 4
) -> list[BatchBudget]:
    """Budgets, ascending, for random batches of `batch_size` structures.

    Args:
      sizes: `structure_sizes` of a sample.
      largest: atoms of the largest structure of the whole set, which the sample may have missed.
      shapes: how many, 1 to 4; each is compiled once, more of them waste fewer edge slots.
    """
    rng = np.random.default_rng(seed)
    groups = [rng.integers(len(sizes["n_node"]), size=batch_size) for _ in range(1000)]
    return _levels(group_sizes(sizes, groups), LEVELS[shapes], largest)


def _levels(batches: dict[str, np.ndarray], levels: Sequence[float], largest: int) -> list[BatchBudget]:
    """One budget per quantile of the heavy sizes (edges, atoms); light sizes get more slack, the last headroom."""
    budgets = []
    for level in levels:
        light = 1 - (1 - level) / 8
        quantile = {n: np.quantile(v, level if n in ("n_main", "n_node") else light) for n, v in batches.items()}
        if level == 1:
            grown = {n: v if n == "n_graph" else np.ceil(v * HEADROOM) for n, v in quantile.items()}
            quantile = grown | {"n_per_graph": largest}
        budgets.append(make_budget(quantile))
    return list(dict.fromkeys(budgets))


def packed_budgets(sizes: Mapping[str, np.ndarray], n_main: int, largest: int) -> list[BatchBudget]:
    """Two budgets for batches filled to `n_main` edges: the usual one and one with headroom.

    Raises:
      InputError: a single structure of the sample is larger than the batch.
    """
    biggest = int(sizes["n_main"].max())
    if biggest > n_main:
        raise InputError(f"a structure has {biggest} edges, over the batch of {n_main}; raise --batch-edges")
    groups = pack(sizes["n_main"], n_main)
    batches = group_sizes(sizes, groups[:-1] or groups)
    usual = {n: np.ceil(v.max() * 1.02) for n, v in batches.items()} | {"n_main": n_main}
    usual["n_graph"] = batches["n_graph"].max() * 1.05 + 1
    spare = {n: np.ceil(v * HEADROOM) for n, v in usual.items()} | {"n_per_graph": largest}
    return [make_budget(usual), make_budget(spare)]


def pack(weights: np.ndarray, capacity: int, open_bins: int = OPEN_BINS) -> list[np.ndarray]:
    """Put items, in order, into the fullest of a few open bins that still has room; close the fullest when none has.

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

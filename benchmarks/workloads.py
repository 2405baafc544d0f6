"""The named structures that every benchmark uses (`workloads.npz`), as arrays and as padded training batches.

mol20: 20 small molecules; slab2: two Pt(111) slabs with an adsorbate, periodic; aspirin4: 4 aspirin molecules with
a high neighbour limit. Cutoffs and neighbour limits belong to the workload.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxatoms.data.packing import exact_budget, whole_size
from jaxatoms.graphs.batch import BatchBudget, GraphBatch, Targets, collate
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS, count_edges
from jaxatoms.types import SystemBatch

FILE = Path(__file__).with_name("workloads.npz")
NAMES = ("mol20", "slab2", "aspirin4")
PER_ATOM = ("atomic_numbers", "positions", "tags")
PER_STRUCTURE = ("natoms", "cell", "pbc", "cutoff", "max_neighbors")
JITTER = 0.02  # A, displacement of the atoms of further copies, so that no two copies are equal


class Workload(NamedTuple):
    """A training batch of named structures and what it cost to make."""

    batch: GraphBatch
    budget: BatchBudget  # the smallest that holds the batch
    n_node: int  # real atoms
    n_graph: int  # real structures
    n_edge: dict[str, int]  # real edges of the four graphs
    graph_s: float  # seconds to build the graphs and pad them, on one core, outside the training step


def load_structures(name: str, copies: int = 1, file: Path = FILE) -> dict[str, np.ndarray]:
    """Arrays of a workload, `copies` times: `PER_ATOM` [sum natoms, ...] and `PER_STRUCTURE` [n_graph, ...]."""
    with np.load(file) as data:
        one = {key: data[f"{name}/{key}"] for key in (*PER_ATOM, *PER_STRUCTURE)}
    out = {key: np.concatenate([value] * copies) for key, value in one.items()}
    n, rng = len(one["positions"]), np.random.default_rng(0)
    out["positions"][n:] += rng.uniform(-JITTER, JITTER, out["positions"][n:].shape)
    return out


def to_systems(structures: dict[str, np.ndarray]) -> SystemBatch:
    """The same structures as the store hands them out, without labels."""
    n_node, periodic = structures["natoms"].astype(np.int32), structures["pbc"].astype(bool)
    total = int(n_node.sum())
    return SystemBatch(
        n_node=n_node,
        atomic_numbers=structures["atomic_numbers"].astype(np.uint8),
        positions=structures["positions"].astype(np.float32),
        forces=np.full((total, 3), np.nan, np.float32),
        tags=structures["tags"].astype(np.uint8),
        fixed=np.zeros(total, bool),
        energy=np.full(len(n_node), np.nan),
        cell=np.where(periodic[:, None, None], structures["cell"], 0).astype(np.float32),
        pbc=np.repeat(periodic[:, None], 3, axis=1),
    )


def make_workload(structures: dict[str, np.ndarray], seed: int = 0) -> Workload:
    """Graphs, random normal targets of one task, and the smallest budget, as one padded batch."""
    systems, rng = to_systems(structures), np.random.default_rng(seed)
    n_graph, n_node = len(systems.n_node), len(systems.positions)
    targets = Targets(
        energy=rng.standard_normal(n_graph).astype(np.float32),
        forces=rng.standard_normal((n_node, 3)).astype(np.float32),
        task=np.zeros(n_graph, np.int32),
    )
    graphs, build_s = _timed(
        lambda: GEMNET_GRAPHS.build(
            systems.positions,
            systems.n_node,
            systems.cell,
            systems.pbc,
            systems.tags,
            structures["cutoff"],
            structures["max_neighbors"],
        )
    )
    budget = exact_budget([whole_size(systems, graphs)])
    batch, pad_s = _timed(lambda: collate(systems, graphs, targets, budget))
    n_edge = {graph: int(counts.sum()) for graph, counts in count_edges(graphs, systems.n_node).items()}
    return Workload(batch, budget, n_node, n_graph, n_edge, build_s + pad_s)


def _timed(run):
    """(result, seconds) of the second of two calls: the first one also loads code."""
    run()
    began = time.perf_counter()
    return run(), time.perf_counter() - began

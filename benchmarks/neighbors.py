"""Rates of the neighbour code: `python benchmarks/neighbors.py benchmarks/workloads.npz`.

Prints one JSON line per workload: graphs and edges per second on one core, and milliseconds per stage.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import vesin

from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS, neighbor_limits
from jaxatoms.graphs.neighbors import candidate_edges

SIZES = {"mol20": 512, "slab2": 32}  # structures per batch


def load_batch(file: str, name: str, n_graph: int) -> dict[str, np.ndarray]:
    """The named workload tiled to `n_graph` structures, as arguments of `GEMNET_GRAPHS.build`."""
    with np.load(file) as data:
        part = {
            key: data[f"{name}/{key}"] for key in ("positions", "natoms", "cell", "pbc", "tags", "cutoff")
        }
    index = np.arange(n_graph) % len(part["natoms"])
    start = np.cumsum(part["natoms"]) - part["natoms"]
    atoms = np.concatenate([start[i] + np.arange(part["natoms"][i]) for i in index])
    return {
        "positions": part["positions"][atoms].astype(np.float32),
        "n_node": part["natoms"][index].astype(np.int32),
        "cell": part["cell"][index].astype(np.float32),
        "pbc": np.repeat(part["pbc"][index][:, None], 3, axis=1),
        "tags": part["tags"][atoms].astype(np.uint8),
        "cutoff": part["cutoff"][index],
    }


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median CPU time of `run`, which is single-threaded: other jobs on the machine disturb it less."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def vesin_alone(batch: dict[str, np.ndarray]) -> None:
    """Only vesin's full list per structure: what a candidate search with it would cost at least."""
    starts = np.cumsum(batch["n_node"]) - batch["n_node"]
    for g, (start, n) in enumerate(zip(starts, batch["n_node"], strict=True)):
        search = vesin.NeighborList(cutoff=float(batch["cutoff"][g]), full_list=True, n_threads=1)
        points, cell = batch["positions"][start : start + n], batch["cell"][g]
        search.compute(points.astype(float), cell.astype(float), batch["pbc"][g], "PS", copy=False)


def measure(name: str, batch: dict[str, np.ndarray], k: int, repeats: int) -> dict[str, object]:
    """Rates and stage times of one workload."""
    n_graph = len(batch["n_node"])
    limits = np.tile(neighbor_limits(k), (n_graph, 1))
    search = {key: value for key, value in batch.items() if key != "tags"}
    rng = np.random.default_rng(0)
    total = milliseconds(lambda: GEMNET_GRAPHS.build(**batch, limits=limits), repeats)
    dropout = milliseconds(
        lambda: GEMNET_GRAPHS.build(**batch, limits=limits, rng=rng, edge_dropout=0.1), repeats
    )
    candidates = milliseconds(lambda: candidate_edges(**search), repeats)
    n_edge = len(candidate_edges(**search)[1])
    return {
        "workload": name,
        "n_graph": n_graph,
        "n_node": int(batch["n_node"].sum()),
        "candidates": n_edge,
        "graphs_per_s": round(1e3 * n_graph / total),
        "graphs_per_s_with_dropout": round(1e3 * n_graph / dropout),
        "candidates_per_s": round(1e3 * n_edge / total),
        "ms": {
            "total": round(total, 2),
            "candidate_edges": round(candidates, 2),
            "cuts": round(total - candidates, 2),
            "vesin_alone": round(milliseconds(lambda: vesin_alone(batch), repeats), 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", help="npz file with the workloads mol20 and slab2")
    parser.add_argument("--k", type=int, default=30, help="neighbour limit of the main graph")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for name, n_graph in SIZES.items():
        batch = load_batch(arguments.workloads, name, n_graph)
        print(json.dumps(measure(name, batch, arguments.k, arguments.repeats)), flush=True)


if __name__ == "__main__":
    main()

"""Rates and memory of the data pipeline: conversion, random reads, neighbour search.

    python -m benchmarks.data_pipeline --structures 1e6 --out benchmarks/results/data_pipeline.jsonl

Writes an ANI-1x-like HDF5 file of that many structures (15 atoms on average) and OC20-like slabs (73 atoms) into a
temporary folder, converts, reads back in random order, and searches neighbours at the paper's cutoffs. Conversions run
in processes of their own, so that peak memory is theirs; a tenth of the file is converted as well, to show that memory
does not grow with it. Graph rates are of one core. Needs an idle machine for numbers worth keeping.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from benchmarks.records import about, append
from jaxatoms.data.convert import available_cores
from jaxatoms.data.store import Store, open_dataset, write_store
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS, neighbor_limits
from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.types import System

TARGETS = {  # structures per second
    "convert_ani1x": 3000,
    "read_ani1x": 20_000,
    "read_oc20": 3000,
    "neighbors_ani1x": 20_000,
    "neighbors_oc20": 500,
}
FRAMES_PER_FORMULA = 2000
FREE_ATOM = {1: -0.5, 6: -37.8, 7: -54.6, 8: -75.0}  # Hartree


def write_ani_file(path: Path, n: int, seed: int = 0) -> None:
    """A file of the ANI-1x layout with n structures of 4 to 26 atoms, spread over formulas."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for i, first in enumerate(range(0, n, FRAMES_PER_FORMULA)):
            m = min(FRAMES_PER_FORMULA, n - first)
            numbers = rng.choice([1, 1, 1, 6, 6, 7, 8], rng.integers(4, 27)).astype(np.uint8)
            grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[: len(numbers)] * 1.4
            group = file.create_group(f"F{i:05d}")
            group["atomic_numbers"] = numbers
            group["coordinates"] = (grid + 0.1 * rng.normal(size=(m, len(numbers), 3))).astype(np.float32)
            energy = sum(FREE_ATOM[z] for z in numbers.tolist())
            group["wb97x_dz.energy"] = energy + 0.1 * rng.normal(size=m)
            group["wb97x_dz.forces"] = (0.05 * rng.normal(size=(m, len(numbers), 3))).astype(np.float32)


def slabs(n: int, seed: int = 0) -> Iterator[System]:
    """Copper slabs of 4 x 4 x 4 atoms with a nine-atom adsorbate under 15 A of vacuum."""
    rng = np.random.default_rng(seed)
    layer = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) * 2.55
    adsorbate = np.stack(np.meshgrid(*[np.arange(3)] * 2, [0]), -1).reshape(-1, 3) * 1.5 + [2, 2, 10]
    positions = np.concatenate([layer, adsorbate])
    numbers = np.array([29] * 64 + [6, 1, 8] * 3, np.uint8)
    tags = np.where(np.arange(73) >= 64, 2, positions[:, 2] > 4).astype(np.uint8)
    cell = np.diag([10.2, 10.2, 25.0])
    for i in range(n):
        moved = positions + 0.05 * rng.normal(size=positions.shape)
        yield System(numbers, moved, cell, (True,) * 3, -200.0, rng.normal(size=(73, 3)), tags, tags == 0, f"s{i % 50}")


def convert_apart(name: str, cache: Path, workers: int) -> dict:
    """Structures per second of a conversion in a process of its own, and its peak memory with that of its workers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) if workers == 1 else _Here() as pool:
        return pool.apply(_convert, (name, cache, workers))


class _Here:
    """Stands for a pool where the conversion starts processes itself (pool workers may not)."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def apply(self, function, arguments):
        """Call it here."""
        return function(*arguments)


def _convert(name: str, cache: Path, workers: int) -> dict:
    began = time.perf_counter()
    _, store = open_dataset(name, cache_dir=cache, workers=workers)
    seconds = time.perf_counter() - began
    who = resource.RUSAGE_SELF if workers == 1 else resource.RUSAGE_CHILDREN
    peak = resource.getrusage(who).ru_maxrss / 2**20
    return {"rate": len(store) / seconds, "peak_gib": peak, "path": str(store.path), "n": len(store)}


def read_rate(store: Store, batch: int, seconds: float = 3.0) -> float:
    """Structures per second of `take` in random order."""
    rng, n, began = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        n += len(store.take(rng.integers(0, len(store), batch)).n_node)
    return n / (time.perf_counter() - began)


def graph_rates(store: Store, cutoff: float, batch: int, seconds: float = 3.0) -> dict[str, float]:
    """Graphs per second and core: the neighbour search alone, and all four graphs built from it."""
    systems = store.take(np.random.default_rng(0).integers(0, len(store), batch))
    cutoffs, limits = np.full(batch, cutoff), np.array([neighbor_limits(30)] * batch)
    place = (systems.positions, systems.n_node, systems.cell, systems.pbc)
    return {
        "search": _rate(lambda: candidate_edges(*place, cutoffs), batch, seconds),
        "graphs": _rate(lambda: GEMNET_GRAPHS.build(*place, systems.tags, cutoffs, limits), batch, seconds),
    }


def _rate(run, batch: int, seconds: float) -> float:
    run()
    began, n = time.process_time(), 0
    while time.process_time() - began < seconds:
        run()
        n += batch
    return n / (time.process_time() - began)


def measure(n: int, folder: Path) -> dict:
    """All numbers, by name."""
    for size in (n // 10, n):
        write_ani_file(folder / f"{size}.h5", size)
    name = f"ani1x@{folder / str(n)}.h5"
    small = convert_apart(f"ani1x@{folder / str(n // 10)}.h5", folder / "small", 1)
    one = convert_apart(name, folder / "one", 1)
    every = convert_apart(name, folder / "every", available_cores())
    ani = Store.open(one["path"])
    oc = write_store(slabs(min(n, 20_000)), folder / "oc", {})
    mol_graphs, slab_graphs = graph_rates(ani, 8.0, 512), graph_rates(oc, 12.0, 32)
    return {
        "n": n,
        "convert_ani1x": one["rate"],
        "convert_ani1x_all_cores": every["rate"],
        "cores": available_cores(),
        "peak_gib": one["peak_gib"],
        "peak_gib_of_a_tenth": small["peak_gib"],
        "read_ani1x": read_rate(ani, 512),
        "read_ani1x_by_20": read_rate(ani, 20),
        "read_oc20": read_rate(oc, 512),
        "read_oc20_by_20": read_rate(oc, 20),
        "neighbors_ani1x": mol_graphs["search"],
        "neighbors_oc20": slab_graphs["search"],
        "graphs_ani1x": mol_graphs["graphs"],
        "graphs_oc20": slab_graphs["graphs"],
    }


def main() -> None:
    """Measure, print beside the targets, append to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=float, default=1e6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where temporary files go (3 GB for 1e6 structures)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(int(args.structures), Path(folder))
    for name, value in result.items():
        target = f"   target {TARGETS[name]:,}" if name in TARGETS else ""
        print(f"{name:26s} {value:12,.2f}{target}")
    append([about("data_pipeline") | {"what": f"{result.pop('n'):,} ANI-like structures", "figures": result}], args.out)


if __name__ == "__main__":
    main()

"""How many training batches a second the loader builds, with 0 (one thread) to 16 worker processes.

    python -m benchmarks.feed_rate --workers 0 1 2 4 8 16 --out benchmarks/results/feed_rate.jsonl

ANI-1x-like molecules (8 A) and OC20-like slabs (12 A) as `benchmarks.data_pipeline` makes them, batches of 20 as the
recipe takes them or filled with `--batch-edges`: read from the store, edge dropout, four graphs, padding, and the way
from the worker to the training process. Nothing is trained, so this is the rate above which a step would wait for its
input. More workers than cores cannot help; they are measured to see what they cost.
"""

import argparse
import contextlib
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import records
from benchmarks.data_pipeline import slabs, write_ani_file
from jaxatoms.data import loader, packing
from jaxatoms.data.corpus import Corpus, UpstreamTask, samples_of
from jaxatoms.data.references import LinearReference, Normalization
from jaxatoms.data.store import Store, open_dataset, write_store

KINDS = {"ani1x": 8.0, "oc20": 12.0}  # cutoff, A
EDGE_DROPOUT, BATCH_SIZE, EPOCHS = 0.1, 20, 1000


def make_store(kind: str, n: int, folder: Path) -> Store:
    """n structures of a kind, converted."""
    if kind == "oc20":
        return write_store(slabs(n), folder / "oc20", {})
    write_ani_file(folder / "ani.h5", n)
    return open_dataset(f"ani1x@{folder / 'ani.h5'}", cache_dir=folder / "cache")[1]


def make_batches(store: Store, cutoff: float, batch_edges: int | None) -> loader.TrainBatches:
    """Batches of 20 structures, or filled with edges, for more steps than are measured."""
    everything = np.arange(len(store))
    task = UpstreamTask("bench", store, LinearReference.fit(store, everything), Normalization(1.0, 1.0), cutoff)
    corpus, samples = Corpus((task,)), samples_of(0, everything)
    sizes = loader.measure(corpus, samples, EDGE_DROPOUT)
    args = dict(corpus=corpus, samples=samples, epochs=EPOCHS, seed=0, edge_dropout=EDGE_DROPOUT)
    largest = int(store.n_node.max())
    if batch_edges is None:
        budgets = packing.fixed_budgets(sizes, BATCH_SIZE, largest, len(store) * EPOCHS // BATCH_SIZE)
        return loader.TrainBatches(budgets=budgets, batch_size=BATCH_SIZE, **args)
    weights = loader.measure(corpus, samples, EDGE_DROPOUT, limit=None)["n_main"]
    budgets = packing.packed_budgets(sizes, batch_edges, largest, weights)
    return loader.TrainBatches(budgets=budgets, weights=weights, **(args | {"epochs": 20}))


def feed_rate(batches: loader.TrainBatches, workers: int, seconds: float) -> dict[str, float]:
    """Batches and structures per second that arrive here, after the workers have started; bytes of one batch."""
    structures = edges = n = 0
    with contextlib.closing(loader.prefetch(batches.batch, range(batches.total_steps), workers)) as stream:
        for _ in itertools.islice(stream, 2 * workers + 4):  # the first of each worker, and what was built meanwhile
            pass
        began = time.perf_counter()
        for batch in stream:
            structures += int(batch.graph_mask.sum())
            edges += loader.occupancy(batch)[0]
            n += 1
            if time.perf_counter() - began > seconds:
                break
        passed = time.perf_counter() - began
    return {
        "batches_per_s": n / passed,
        "structures_per_s": structures / passed,
        "edges_per_s": edges / passed,
        "batch_mib": _bytes(batch) / 2**20,
    }


def _bytes(values) -> int:
    if isinstance(values, tuple):
        return sum(map(_bytes, values))
    return 0 if values is None else values.nbytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--structures", type=float, default=20_000)
    parser.add_argument("--batch-edges", type=int, help="fill batches instead of counting 20 structures")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    args = parser.parse_args()
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            batches = make_batches(make_store(kind, int(args.structures), Path(folder)), KINDS[kind], args.batch_edges)
            for workers in args.workers:
                line = {
                    **{"case": kind, "workers": workers, "batch_size": BATCH_SIZE, "batch_edges": args.batch_edges},
                    **feed_rate(batches, workers, args.seconds),
                    **records.about("feed_rate"),
                }
                print(f"{kind:6} {workers:2} workers  {line['batches_per_s']:8.1f} batches/s  "
                      f"{line['structures_per_s']:9.0f} structures/s  {line['batch_mib']:.2f} MiB each", flush=True)
                records.append([line], args.out)


if __name__ == "__main__":
    main()

"""Rates and errors of the CSI library: `python -m benchmarks.csi_throughput [suite ...] --out FILE.jsonl`.

Prints the figures of every measurement. The sizes are the paper's (256 and 3200 features) unless stated.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks import turns
from benchmarks.records import about, append
from jaxatoms.csi.frechet import frechet_distances
from jaxatoms.csi.moments import covariance, empty_moments, moments_of_rows, to_host, update
from jaxatoms.csi.sampling import sample_balanced
from jaxatoms.csi.selection import distance_of, prepare_candidates, select_structures
from jaxatoms.data.corpus import samples_of
from jaxatoms.data.passes import plan_pass
from jaxatoms.features.extraction import Request, draw_sample, extract
from jaxatoms.features.extractors import Extractor
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.registry import architecture_of, find_config, make_model, split_model


def moments_against_numpy(n_row: int, mean: float) -> Iterator[dict]:
    """Rows per second of `moments_of_rows` and its error against numpy.cov in float64, 256 features."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n_row, 256), np.float32) * np.geomspace(0.1, 10, 256, dtype=np.float32) + mean
    rows = rows.astype(np.float32)
    moments_of_rows(rows[:40_000])
    start = time.perf_counter()
    got = moments_of_rows(rows)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    expected = np.cov(rows, rowvar=False, dtype=np.float64)
    numpy_seconds = time.perf_counter() - start
    std = np.sqrt(np.diag(expected))
    error = np.max(np.abs(covariance(got) - expected) / np.outer(std, std))
    yield {
        "what": "moments",
        "rows": n_row,
        "width": 256,
        "mean": mean,
        "rows_per_s": round(n_row / seconds),
        "numpy_rows_per_s": round(n_row / numpy_seconds),
        "relative_error": float(error),
    }


def moments_rates() -> Iterator[dict]:
    """Rows per second of the update alone, by width and arithmetic, batches on the device."""
    for width, matmul in ((256, "float64"), (256, "slices"), (3200, "float64")):
        rows = jax.numpy.asarray(np.random.default_rng(0).standard_normal((4096, width), np.float32))
        total = update(empty_moments(width), rows, None, matmul)
        jax.block_until_ready(total)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            total = update(total, rows, None, matmul)
            jax.block_until_ready(total)
            times.append(time.perf_counter() - start)
        yield {
            "what": "update",
            "width": width,
            "matmul": matmul,
            "rows_per_s": round(4096 / np.median(times)),
        }


def frechet_pairs(width: int, n_up: int, n_down: int) -> Iterator[dict]:
    """Seconds of an n_up x n_down table of full-rank covariances."""
    rng = np.random.default_rng(0)
    covs = []
    for _ in range(n_up + n_down):
        rows = rng.standard_normal((width + width // 4, width))
        covs.append(rows.T @ rows / len(rows))
    means = np.zeros((n_up + n_down, width))
    start, cpu = time.perf_counter(), time.process_time()
    table = frechet_distances(means[:n_up], covs[:n_up], means[n_up:], covs[n_up:])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert np.isfinite(table).all()
    yield {
        "what": "frechet",
        "width": width,
        "pairs": [n_up, n_down],
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
    }


def selection_against_random(n_structure: int, n: int) -> Iterator[dict]:
    """Seconds to choose n of n_structure (9 atoms, 64 features) and distances beside 20 random choices."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 20, n_structure)
    centres, scales = rng.standard_normal((20, 64)) * 0.7, rng.uniform(0.5, 2, 20)
    structure = np.repeat(np.arange(n_structure), 9)
    rows = rng.standard_normal((len(structure), 64), np.float32) * scales[kind][structure, None]
    rows = (rows + centres[kind][structure]).astype(np.float32)
    task = moments_of_rows((rng.standard_normal((20_000, 64)) * 0.9 + centres[3] * 0.5).astype(np.float32))
    upstream = moments_of_rows(rows)
    start = time.perf_counter()
    candidates = prepare_candidates(rows, structure, upstream, task)
    prepared = time.perf_counter()
    got = select_structures(candidates, n)
    done = time.perf_counter()
    random = [distance_of(candidates, rng.choice(n_structure, n, replace=False)) for _ in range(20)]

    def full(ids: np.ndarray) -> float:
        chosen = to_host(moments_of_rows(rows[np.isin(structure, ids)]))
        return float(
            frechet_distances([chosen.mean], [covariance(chosen)], [task.mean], [covariance(task)])[0, 0]
        )

    yield {
        "what": "selection",
        "structures": n_structure,
        "chosen": n,
        "prepare_s": round(prepared - start, 1),
        "select_s": round(done - prepared, 1),
        "distance": got.distance,
        "relaxed": got.relaxed,
        "random_min": min(random),
        "full_distance": full(got.structure),
        "full_random": full(rng.choice(n_structure, n, replace=False)),
    }


def sampling_rate(n_row: int) -> Iterator[dict]:
    """Seconds of the balanced sampler on an OC20-sized table (8478 classes)."""
    classes = np.char.add("C", np.random.default_rng(0).integers(0, 8478, n_row).astype(str))
    start = time.perf_counter()
    sample_balanced(classes, 10_000)
    yield {"what": "balanced", "rows": n_row, "seconds": round(time.perf_counter() - start, 2)}


def extraction_against_forward(dataset: str, n: int, model: str = "gemnet_oc_s") -> Iterator[dict]:
    """Rate of feature extraction, from store to moments, as a fraction of the forward pass alone."""
    dimensions = find_config(model)
    pure = split_model(make_model(dimensions, 1, 0, Precision()))
    params, constants = jax.device_put((pure.params, pure.constants))
    compiled = jax.jit(pure.node_features)
    extractor = Extractor("random weights", architecture_of(dimensions).feature_width(dimensions), 120,
                          lambda batch: compiled(params, constants, batch), [])  # fmt: skip
    request, batch_edges = Request(dataset=dataset, n=str(n)), 4096
    extract(draw_sample(request, extractor, batch_edges), extractor, keep=False, quiet=True)  # compiles, converts
    start = time.perf_counter()
    sample = draw_sample(request, extractor, batch_edges)
    info = extract(sample, extractor, keep=False, quiet=True).info
    seconds = time.perf_counter() - start

    stream = plan_pass(sample.corpus, samples_of(0, sample.records), batch_edges, extractor.shapes)
    batches = [jax.device_put(stream.batch(step)) for step in range(len(stream.groups))]
    jax.block_until_ready(extractor.features(batches[0]))
    start = time.perf_counter()
    jax.block_until_ready([extractor.features(batch) for batch in batches])
    forward = time.perf_counter() - start
    yield {
        "what": "extraction",
        "dataset": dataset,
        "model": model,
        "structures": info["n_structure"],
        "atoms": info["n_atom"],
        "atoms_per_s": round(info["n_atom"] / seconds, 1),
        "forward_s": round(forward, 2),
        "extraction_s": round(seconds, 2),
        "fraction_of_forward": round(forward / seconds, 3),
    }


SUITES: dict[str, Callable[[], Iterator[dict]]] = {
    "moments": lambda: moments_against_numpy(1_000_000, 0.0),
    "moments_far": lambda: moments_against_numpy(1_000_000, 1e4),
    "update": moments_rates,
    "frechet": lambda: frechet_pairs(256, 4, 6),
    "frechet_3200": lambda: frechet_pairs(3200, 4, 6),
    "selection": lambda: selection_against_random(100_000, 10_000),
    "extraction_molecules": lambda: extraction_against_forward("demo:organic", 400),
    "extraction_slabs": lambda: extraction_against_forward("demo:slab", 100),
    "sampling": lambda: sampling_rate(2_000_000),
}


def main() -> None:
    """Runs the named suites (all by default)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    args = parser.parse_args()
    turns.wait_to_measure()  # its programs are small: they are compiled within the turn
    for name in args.suites or SUITES:
        for figures in SUITES[name]():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            what, figures = figures.pop("what"), figures | {"peak_gib": round(peak, 2)}
            print(what, json.dumps(figures), flush=True)
            append([about("csi_throughput") | {"what": f"{name}: {what}", "figures": figures}], args.out)


if __name__ == "__main__":
    main()

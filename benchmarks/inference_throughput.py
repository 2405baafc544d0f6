"""Seconds and memory of one prediction of energies and forces on named structures, from the averaged weights alone.

    python -m benchmarks.inference_throughput --cases mol20 slab2 --out benchmarks/results/inference_throughput.jsonl

A forward pass of the compiled model with direct forces (`--grad`: forces as the gradient of the energy), weights fixed,
random initialisation. Graphs and padding are made on the host before it (`graph_s`, one core) and are not in `step_s`;
`with_graphs` adds them, without overlap. Peak memory is that of the process, compilation included: one case per process
for memory worth keeping. Needs an idle machine.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import records, turns
from benchmarks.train_throughput import direct_model, gradient_model
from benchmarks.workloads import NAMES, load_structures, make_workload
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.registry import count_params, find_config
from jaxatoms.tools.provenance import peak_memory_gib
from jaxatoms.tools.runtime import prepare_process


def measure(case: str, forces: str, args: argparse.Namespace) -> dict:
    """The JSON line of one case."""
    turns.set_up()
    work = make_workload(load_structures(case, args.copies))
    make = gradient_model if forces == "gradient" else direct_model
    model = make(find_config(args.model), Precision(matmul=args.precision))
    batch = jax.device_put(work.batch)
    run = jax.jit(lambda params, constants, batch: model.apply(params, constants, batch, 0.0))
    began = time.perf_counter()
    compiled = run.lower(model.params, model.constants, batch).compile()
    compile_s, times = time.perf_counter() - began, []
    turns.wait_to_measure()
    for _ in range(args.warmup + args.reps):
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(model.params, model.constants, batch))
        times.append(time.perf_counter() - began)
    if not np.isfinite(np.asarray(out.energy)).all():
        raise FloatingPointError(f"{case} {forces}: energies are not finite")
    times = times[args.warmup :]
    step_s, analysis = float(np.median(times)), compiled.memory_analysis()
    return {
        **{"case": case, "forces": forces, "model": args.model, "precision": args.precision},
        **{"structures": work.n_graph, "atoms": work.n_node, "edges": work.n_edge},
        "budget": dataclasses.asdict(work.budget),
        "parameters": count_params(model.params),
        **{"step_s": step_s, "step_s_all": [round(t, 4) for t in times]},
        **{"graph_s": work.graph_s, "compile_s": compile_s},
        "structures_per_s": work.n_graph / step_s,
        "structures_per_s_with_graphs": work.n_graph / (step_s + work.graph_s),
        "atoms_per_s": work.n_node / step_s,
        "gflop": records.flops(compiled) / 1e9,
        "temporary_gib": analysis.temp_size_in_bytes / 2**30,
        "peak_gib": peak_memory_gib(),
        **records.about("inference_throughput"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=NAMES, default=["mol20", "slab2"], help="with direct forces")
    parser.add_argument("--grad", nargs="*", choices=NAMES, default=[], help="with gradient forces")
    parser.add_argument("--reps", type=int, default=5, help="timed passes")
    parser.add_argument("--warmup", type=int, default=2, help="passes before them")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--copies", type=int, default=1, help="repeat the structures, for larger batches")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    args = parser.parse_args()
    prepare_process()  # the allocator of the predict command
    for case, forces in [(c, "direct") for c in args.cases] + [(c, "gradient") for c in args.grad]:
        line = measure(case, forces, args)
        print(f"{case:9} {forces:8} {line['step_s']:.4f} s  {line['structures_per_s']:.1f} structures/s, "
              f"{line['structures_per_s_with_graphs']:.1f} with graphs  {line['peak_gib']['host']:.2f} GiB", flush=True)
        records.append([line], args.out)


if __name__ == "__main__":
    main()

"""Time, arithmetic and bytes of the parts of a training step, beside the device's own limits.

    python -m benchmarks.profile_step --cases mol20 slab2 --grad aspirin4 --out benchmarks/results/profile_step.jsonl

The step is the real one, compiled once: the profiler's trace says how long each of its operations took, the compiled
program how many bytes the operation reads and writes and what it multiplies, and the model's named scopes which part
of the step it belongs to. The bound of a part is the larger of its products over the rate of one large matmul
measured here and its bytes over the rate of one large copy measured here. Operations that run side by side count in
full: the parts' times may add up to more than the step. `input` (graphs and padding, one core of the host) overlaps
with the step in training. The body of a loop counts once (`--remat` is therefore not offered).
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import records, turns
from benchmarks.traces import trace
from benchmarks.train_throughput import make_step
from benchmarks.workloads import NAMES, load_structures, make_workload
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.registry import find_config
from jaxatoms.runs.plan import matmul_rate
from jaxatoms.tools import hlo
from jaxatoms.tools.runtime import keep_freed_memory

MATMUL_ROWS = 16384
COPY_FLOATS = 2**26
NESTED = {"while", "conditional", "call"}  # their time is that of the operations inside


def copy_rate() -> float:
    """Bytes per second, read and written, of one large elementwise operation on the default device."""
    add, x = jax.jit(lambda x: x + 1), jnp.ones(COPY_FLOATS, jnp.float32)
    add(x).block_until_ready()
    return 2 * x.nbytes / _median_seconds(lambda: add(x).block_until_ready(), 5)


def profile(case: str, forces: str, args) -> dict:
    """The record of one case."""
    turns.set_up()
    work = make_workload(load_structures(case, args.copies))
    step, state, constants = make_step(forces, find_config(args.model), Precision(matmul=args.precision))
    rest = constants, jax.device_put(work.batch)
    turns.note("state built")
    compiled = step.lower(state, *rest).compile()

    def call():
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, *rest))

    turns.wait_to_measure()
    call()
    step_s = _median_seconds(call, args.reps)
    traced = trace(call)
    limits = {"matmul_flops": matmul_rate(args.precision, MATMUL_ROWS), "copy_bytes": copy_rate()}
    return {
        **{"case": case, "forces": forces, "copies": args.copies, "structures": work.n_graph, "edges": work.n_edge},
        **{"model": args.model, "precision": args.precision, "edge_slots": work.budget.n_main},
        **{"step_s": step_s, "input_s": work.graph_s, "limits": limits},
        "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "compiler": {name: (compiled.cost_analysis() or {}).get(name) for name in ("flops", "bytes accessed")},
        "parts": parts(hlo.operations(compiled.as_text()), traced.seconds),
        **({"launches": traced.launches, "kernels": traced.kernels} if traced.launches else {}),
        **records.about("profile_step"),
    }


def parts(operations: list[hlo.Operation], seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """{part: forward and backward seconds, bytes, flops}, slowest first."""
    names = ("forward_s", "backward_s", "bytes", "flops")
    total: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(names, 0))
    for operation in operations:
        part = total[operation.part]
        part["bytes"] += operation.bytes
        part["flops"] += operation.flops
        if operation.kind not in NESTED:
            part["backward_s" if operation.backward else "forward_s"] += seconds.get(operation.name, 0.0)
    return dict(sorted(total.items(), key=lambda item: -item[1]["forward_s"] - item[1]["backward_s"]))


def bound(part: dict[str, float], limits: dict[str, float]) -> tuple[float, str]:
    """(seconds, "matmul" or "memory") that a part takes at least."""
    return max((part["flops"] / limits["matmul_flops"], "matmul"), (part["bytes"] / limits["copy_bytes"], "memory"))


def _median_seconds(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def table(record: dict) -> str:
    """A record for the screen."""
    lines = [f"{record['case']}, {record['forces']} forces: {record['step_s']:.4f} s a step"]
    for name, part in record["parts"].items():
        at_least, by = bound(part, record["limits"])
        times = f"{part['forward_s']:8.4f} + {part['backward_s']:8.4f} s"
        work = f"{part['flops'] / 1e9:8.1f} GFLOP {part['bytes'] / 1e9:7.2f} GB"
        lines.append(f"  {name:26} {times} {work}  bound {at_least:6.4f} s ({by})")
    if launches := record.get("launches"):
        lines.append("  launches: " + ", ".join(f"{name} {value:.4g}" for name, value in launches.items()))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=NAMES, default=["mol20"], help="with direct forces")
    parser.add_argument("--grad", nargs="*", choices=NAMES, default=[], help="with gradient forces")
    parser.add_argument("--copies", type=int, default=1, help="repeat the structures, for larger batches")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--reps", type=int, default=5, help="timed steps, before the traced ones")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the records to this file")
    args = parser.parse_args()
    keep_freed_memory()  # as every command does
    for case, forces in [(c, "direct") for c in args.cases] + [(c, "gradient") for c in args.grad]:
        record = profile(case, forces, args)
        print(table(record), flush=True)
        records.append([record], args.out)


if __name__ == "__main__":
    main()

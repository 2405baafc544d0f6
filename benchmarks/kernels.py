"""Each kernel beside XLA's own code for the same thing, on whatever device there is: seconds and largest difference.

    python -m benchmarks.kernels --out benchmarks/results/kernels.jsonl
    python -m benchmarks.kernels --compile-for v5e:2x2    # no TPU needed: what the compiler says of both sides

Forward alone, and forward with gradients as training takes them. A kernel that the device cannot compile is
interpreted, on at most `--rows` rows: its line says so, and its time means nothing but that it ran. A kernel stays in
use only where it is more than 15 % faster than XLA on a named workload on hardware.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import records
from jaxatoms.models.common.precision import Precision
from jaxatoms.ops.residual import residual_pair
from jaxatoms.ops.target import compiling_for
from jaxatoms.tools import chips
from jaxatoms.tools.targets import find_target
from kernels.fused_residual import CASES, Case, fused_residual


def both_sides(kind: str, interpret: bool) -> dict[str, Callable]:
    """The jitted functions of (x, w1, w2); `kind` is forward or gradient."""
    wrap = gradient if kind == "gradient" else jax.jit
    return {
        "kernel": wrap(lambda x, w1, w2: fused_residual(x, w1, w2, interpret)),
        "xla": wrap(partial(residual_pair, Precision(matmul="bfloat16"))),
    }


def measure(case: Case, kind: str, interpret: bool, reps: int) -> dict:
    """Both sides of one case, timed."""
    arrays = case.arrays()
    results = {name: timed(function, arrays, reps) for name, function in both_sides(kind, interpret).items()}
    (ours, kernel_s), (xla, xla_s) = results["kernel"], results["xla"]
    return {
        "kernel": "fused_residual",
        "case": case.name,
        **{"n": case.n, "c": case.c, "dtype": jnp.dtype(case.dtype).name, "pass": kind, "interpreted": interpret},
        "kernel_s": kernel_s,
        "xla_s": xla_s,
        "ratio": kernel_s / xla_s,
        "largest_difference": max(map(difference, jax.tree.leaves(ours), jax.tree.leaves(xla))),
        **records.about("kernels"),
    }


def compile_case(case: Case, kind: str, topology: str) -> list[dict]:
    """Both sides of one case compiled for one chip of a TPU topology: arithmetic, traffic, memory, seconds."""
    mesh = jax.sharding.Mesh(np.array(find_target(topology).devices[:1]), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((case.n, case.c), case.dtype, sharding=whole)
    w = jax.ShapeDtypeStruct((case.c, case.c), jnp.float32, sharding=whole)
    return [
        {
            **{"case": case.name, "n": case.n, "c": case.c, "dtype": jnp.dtype(case.dtype).name, "pass": kind},
            **{"kernel": "fused_residual", "side": side, "topology": topology, **compiled(function, x, w)},
            **records.about("kernels"),
            "benchmark": "kernel_compilation",
        }
        for side, function in both_sides(kind, False).items()
    ]


def compiled(function: Callable, x, w) -> dict:
    """What the compiler says of function(x, w, w)."""
    with compiling_for("tpu"):
        lowered = function.lower(x, w, w)
    began, cpu = time.perf_counter(), time.process_time()
    program = lowered.compile()
    seconds = {"compile_s": time.perf_counter() - began, "compile_cpu_s": time.process_time() - cpu}
    cost, memory = program.cost_analysis(), program.memory_analysis()
    return seconds | {
        "gflop": cost["flops"] / 1e9,
        "gbyte": cost["bytes accessed"] / 1e9,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
    }


def gradient(function: Callable) -> Callable:
    """Gradients of the sum of squares in all arguments, jitted."""
    loss = lambda *arrays: jnp.sum(function(*arrays).astype(jnp.float32) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def timed(function: Callable, arrays: tuple, reps: int):
    """(result, median seconds) after one call that compiles."""
    out, times = jax.block_until_ready(function(*arrays)), []
    for _ in range(reps):
        began = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append(time.perf_counter() - began)
    return out, float(np.median(times))


def difference(one: jax.Array, two: jax.Array) -> float:
    """Largest difference, relative to the largest value."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    return float(np.abs(one - two).max() / np.abs(two).max())


def compile_all(topology: str, out: Path | None):
    """Every case, compiled and printed."""
    for case, kind in itertools.product(CASES, ("forward", "gradient")):
        lines = compile_case(case, kind, topology)
        for line in lines:
            cost = f"{line['gflop']:7.1f} GFLOP {line['gbyte']:6.3f} GB {line['temporary_mib']:6.1f} MiB"
            print(f"{case.name:32} {kind:8} {line['side']:6} {cost}  {line['compile_cpu_s']:.1f} CPU s", flush=True)
        records.append(lines, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024, help="at most so many where the kernel is interpreted")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    parser.add_argument("--compile-for", metavar="TOPOLOGY", help="compile for TPU chips such as v5e:2x2; time nothing")
    args = parser.parse_args()
    if args.compile_for:
        if args.compile_for.split(":")[0] not in chips.names("tpu"):
            parser.error(f"--compile-for {args.compile_for}: the kernels are for TPUs: {', '.join(chips.names('tpu'))}")
        compile_all(args.compile_for, args.out)
        return
    interpret = jax.default_backend() != "tpu"
    cases = [case._replace(n=min(case.n, args.rows)) for case in CASES] if interpret else CASES
    for case in dict.fromkeys(cases):
        for kind in ("forward", "gradient"):
            line = measure(case, kind, interpret, args.reps)
            note = "INTERPRETED, says nothing about speed" if interpret else f"ratio {line['ratio']:.2f}"
            print(f"{case.name:32} {case.n:6} x {case.c:4} {line['dtype']:8} {kind:8} kernel {line['kernel_s']:.5f} s  "
                  f"XLA {line['xla_s']:.5f} s  differ by {line['largest_difference']:.1e}  {note}", flush=True)
            records.append([line], args.out)


if __name__ == "__main__":
    main()

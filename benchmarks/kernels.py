"""Each kernel beside XLA's own code for the same thing, on whatever device there is: seconds and largest difference.

    python -m benchmarks.kernels --out benchmarks/results/kernels.jsonl
    python -m benchmarks.kernels --compile-for v5e:2x2    # no device needed: what the compiler says of both sides
    python -m benchmarks.kernels --compile-for h200

Forward alone, and forward with gradients as training takes them. On TPUs these are the kernels for TPUs, on an H100 or
H200 those for GPUs, in the cases that they take. Elsewhere the kernel for TPUs is interpreted, on at most `--rows`
rows: its line says so, and its time means nothing but that it ran. A kernel stays in use only where it is more than
15 % faster than XLA on a named workload on hardware.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import records, turns
from jaxatoms.models.common.precision import Precision
from jaxatoms.ops.residual import residual_pair
from jaxatoms.ops.target import compiling_for
from jaxatoms.tools import chips, hlo
from jaxatoms.tools.runtime import HOPPER, without_accelerators
from jaxatoms.tools.targets import Target, find_target
from kernels.residual_pair import gpu, tpu
from kernels.residual_pair.arguments import CASES, GPU_WIDTHS, Case


class Kernel(NamedTuple):
    """An implementation of the residual pair to measure."""

    name: str  # of `--kernels`
    function: Callable  # of (x, w1, w2)
    takes: Callable[[Case], bool]
    interpreted: bool = False


ON_TPU = Kernel("pallas_tpu", tpu.residual_pair, lambda case: True)
ON_GPU = Kernel("mosaic_gpu", gpu.residual_pair, lambda case: case.dtype == jnp.bfloat16 and case.c in GPU_WIDTHS)
INTERPRETED = Kernel("pallas_tpu", partial(tpu.residual_pair, interpret=True), lambda case: True, True)


def kernel_here() -> Kernel:
    """The kernel that this machine can run."""
    if jax.default_backend() == "tpu":
        return ON_TPU
    return ON_GPU if getattr(jax.devices()[0], "compute_capability", None) == HOPPER else INTERPRETED


def both_sides(kind: str, kernel: Kernel) -> dict[str, Callable]:
    """The jitted functions of (x, w1, w2); `kind` is forward or gradient."""
    wrap = gradient if kind == "gradient" else jax.jit
    return {
        "kernel": wrap(kernel.function),
        "xla": wrap(partial(residual_pair, Precision(matmul="bfloat16"))),
    }


def about(case: Case, kind: str, kernel: Kernel) -> dict:
    """What a line says of its case."""
    shape = {"n": case.n, "c": case.c, "dtype": jnp.dtype(case.dtype).name}
    return {"kernel": f"residual_pair, {kernel.name}", "case": case.name, **shape, "pass": kind}


def measure(case: Case, kind: str, kernel: Kernel, reps: int) -> dict:
    """Both sides of one case, timed."""
    turns.set_up()
    arrays = case.arrays()
    results = {name: timed(function, arrays, reps) for name, function in both_sides(kind, kernel).items()}
    (ours, kernel_s), (xla, xla_s) = results["kernel"], results["xla"]
    return {
        **about(case, kind, kernel),
        "interpreted": kernel.interpreted,
        "kernel_s": kernel_s,
        "xla_s": xla_s,
        "ratio": kernel_s / xla_s,
        "largest_difference": max(map(difference, jax.tree.leaves(ours), jax.tree.leaves(xla))),
        **records.about("kernels"),
    }


def compile_case(case: Case, kind: str, kernel: Kernel, target: Target) -> list[dict]:
    """Both sides of one case compiled for one device of a target: arithmetic, traffic, memory, seconds."""
    mesh = jax.sharding.Mesh(np.array(target.devices[:1]), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((case.n, case.c), case.dtype, sharding=whole)
    w = jax.ShapeDtypeStruct((case.c, case.c), jnp.float32, sharding=whole)
    return [
        {
            **about(case, kind, kernel),
            **{"side": side, "topology": target.name, **compiled(function, target, x, w)},
            **records.about("kernels"),
            "benchmark": "kernel_compilation",
        }
        for side, function in both_sides(kind, kernel).items()
    ]


def compiled(function: Callable, target: Target, x, w) -> dict:
    """What the compiler says of function(x, w, w); of a GPU's program what its text says."""
    with compiling_for(target.chip.platform, target.device_kind):
        lowered = function.lower(x, w, w)
    began, cpu = time.perf_counter(), time.process_time()
    program = lowered.compile(compiler_options=target.options)
    seconds = {"compile_s": time.perf_counter() - began, "compile_cpu_s": time.process_time() - cpu}
    memory = {"temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20}
    if target.chip.platform == "gpu":
        launched = hlo.launches(program.as_text())
        n_flop, n_byte = (sum(getattr(one, name) for one in launched) for name in ("flops", "bytes"))
        return seconds | {"gflop": n_flop / 1e9, "gbyte": n_byte / 1e9, "launches": len(launched)} | memory
    cost = program.cost_analysis()
    return seconds | {"gflop": cost["flops"] / 1e9, "gbyte": cost["bytes accessed"] / 1e9} | memory


def gradient(function: Callable) -> Callable:
    """Gradients of the sum of squares in all arguments, jitted."""
    loss = lambda *arrays: jnp.sum(function(*arrays).astype(jnp.float32) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def timed(function: Callable, arrays: tuple, reps: int):
    """(result, median seconds) after one call that compiles."""
    out, times = jax.block_until_ready(function(*arrays)), []
    turns.wait_to_measure()
    for _ in range(reps):
        began = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append(time.perf_counter() - began)
    return out, float(np.median(times))


def difference(one: jax.Array, two: jax.Array) -> float:
    """Largest difference, relative to the largest value."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    return float(np.abs(one - two).max() / np.abs(two).max())


def compile_all(target: Target, out: Path | None):
    """Every case that the kernel takes, compiled and printed."""
    kernel = ON_TPU if target.chip.platform == "tpu" else ON_GPU
    for case, kind in itertools.product(filter(kernel.takes, CASES), ("forward", "gradient")):
        lines = compile_case(case, kind, kernel, target)
        for line in lines:
            cost = f"{line['gflop']:7.1f} GFLOP {line['gbyte']:6.3f} GB {line['temporary_mib']:6.1f} MiB"
            cost += f" {line['launches']:3} launches" if "launches" in line else ""
            print(f"{case.name:32} {kind:8} {line['side']:6} {cost}  {line['compile_cpu_s']:.1f} CPU s", flush=True)
        records.append(lines, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024, help="at most so many where the kernel is interpreted")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    parser.add_argument("--compile-for", metavar="TARGET", help="compile for v5e:2x2, h200 or the like; time nothing")
    args = parser.parse_args()
    if args.compile_for:
        if args.compile_for.split(":")[0] not in (*chips.names("tpu"), "h100", "h200"):
            parser.error(f"--compile-for {args.compile_for}: there are kernels for h100, h200 and TPUs: "
                         f"{', '.join(chips.names('tpu'))}")  # fmt: skip
        if args.compile_for.startswith("h"):
            without_accelerators()
        compile_all(find_target(args.compile_for), args.out)
        return
    kernel = kernel_here()
    cases = [case._replace(n=min(case.n, args.rows)) if kernel.interpreted else case for case in CASES]
    for case in dict.fromkeys(filter(kernel.takes, cases)):
        for kind in ("forward", "gradient"):
            line = measure(case, kind, kernel, args.reps)
            note = "INTERPRETED, says nothing about speed" if kernel.interpreted else f"ratio {line['ratio']:.2f}"
            print(f"{case.name:32} {case.n:6} x {case.c:4} {line['dtype']:8} {kind:8} kernel {line['kernel_s']:.5f} s  "
                  f"XLA {line['xla_s']:.5f} s  differ by {line['largest_difference']:.1e}  {note}", flush=True)
            records.append([line], args.out)


if __name__ == "__main__":
    main()

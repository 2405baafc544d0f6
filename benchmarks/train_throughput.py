"""Seconds, arithmetic and memory of one full training step on named structures, beside a PyTorch peer if asked.

    python -m benchmarks.train_throughput --cases mol20 slab2 --grad aspirin4 mol20 --out benchmarks/results.jsonl
    python -m benchmarks.train_throughput --peer /path/to/peer/bin/python --out benchmarks/results.jsonl

A step = forward, loss (energy L1 + 10 x force L2), backward, clipping, AdamW, moving average, state donated. Cases of
`--grad` take forces as the gradient of the energy. Both sides leave scale factors unfitted, and predict one task. Every
case runs in a process of its own, so that peak memory is its own (compilation included). Needs an idle machine.

The peer (peers/README.md) runs the same structures before and after ours, once with the allocator's defaults and
once tuned as ours; its better time and its smaller memory count. Ratios below 1 are in our favour. `time` takes the
peer's graph building off its step, `time_with_graphs` adds ours to our step instead.

Timings are wall times; `cpu_s` is the processor time of one step, which other jobs on the machine disturb less.
"""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks import turns
from benchmarks.records import cpu_name, flops
from benchmarks.workloads import NAMES, load_structures, make_workload
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.model import GradientModel
from jaxatoms.models.registry import PureModel, find_config, make_model, split_model
from jaxatoms.ops import dispatch
from jaxatoms.runs.plan import matmul_rate
from jaxatoms.tools.provenance import peak_memory_gib, provenance
from jaxatoms.tools.runtime import check_kernels, return_compiler_memory
from jaxatoms.training.flat import flattened
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_train_step

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "benchmarks/peers/fairchem_gemnet_oc.py"
# glibc returns large blocks to the system and faults their pages in again at every step (XLA's temporary buffer is
# one block of gigabytes). Keep them, in huge pages.
MALLOC_TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
GEMM_ROWS = 2984  # x [512, 512]: the edges of mol20 times a dense layer of variant S
FORCE_WEIGHT = 10.0
EDGE_TOLERANCE = 0.01  # ties at the neighbour limit are cut differently


class ChildError(RuntimeError):
    """A measuring process failed."""


def direct_model(config, precision: Precision) -> PureModel:
    """The pretraining model with one task."""
    return split_model(make_model(config, 1, 0, precision))


def gradient_model(config, precision: Precision) -> PureModel:
    """A model with gradient forces under the interface of the multi-task models, as one task."""
    config = dataclasses.replace(config, direct_forces=False)
    model = nnx.jit(lambda: GradientModel(config, nnx.Rngs(0), precision))()
    pure = split_model(model)

    def apply(*args):
        out = pure.apply(*args)
        return ModelOutput(out.energy[:, None], out.forces[..., None])

    return pure._replace(apply=apply)


def make_step(forces: str, config, precision: Precision):
    """(training step, its first state, the model's constants) of a benchmark: one task, the recipe's optimiser."""
    model = flattened(gradient_model(config, precision) if forces == "gradient" else direct_model(config, precision))
    optim = OptimConfig()
    optimizer = make_optimizer(optim, max_steps=100_000)
    scales = LossScales(energy=jax.numpy.ones(1), forces=jax.numpy.full(1, FORCE_WEIGHT))
    step = make_train_step(model.apply, optimizer, pretraining_terms(scales), ema_decay=optim.ema_decay)
    return step, init_state(model.params, optimizer), model.constants


def measure(case: str, forces: str, args: argparse.Namespace) -> dict:
    """Everything the JSON line of one case holds."""
    turns.set_up()
    origin, load = provenance(), os.getloadavg()[0]
    return_compiler_memory()  # as every command does
    memory = {"start": peak_memory_gib()["host"]}
    config = dataclasses.replace(find_config(args.model), remat=args.remat)
    precision = Precision(matmul=args.precision)
    work = make_workload(load_structures(case, args.copies))
    (step, state, constants), batch = make_step(forces, config, precision), jax.device_put(work.batch)
    n_params = state.params.layout.ends[-1]
    turns.note("state built")
    began = time.perf_counter()
    lowered = step.lower(state, constants, batch)
    turns.note("traced")
    trace_s, began = time.perf_counter() - began, time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - began
    turns.note("compiled")
    memory["compiled"] = peak_memory_gib()["host"]
    analysis, gflop = compiled.memory_analysis(), flops(compiled) / 1e9
    del lowered, compiled
    turns.wait_to_measure()
    gemm = [matmul_rate(args.precision, GEMM_ROWS) / 1e9 for _ in range(3)]

    losses, times, cpu_times = [], [], []
    for _ in range(args.warmup + args.reps):
        began, cpu_began = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(step(state, constants, batch))
        times.append(time.perf_counter() - began)
        cpu_times.append(time.process_time() - cpu_began)
        losses.append(float(metrics["loss"]))
    memory |= {f"peak_{key}": value for key, value in peak_memory_gib().items()}
    gemm += [matmul_rate(args.precision, GEMM_ROWS) / 1e9 for _ in range(3)]
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"{case} {forces}: losses {losses} are not finite")

    step_s = float(np.median(times[args.warmup :]))
    return {
        "who": "jaxatoms",
        "case": case,
        "forces": forces,
        "model": args.model,
        "remat": args.remat,
        "precision": args.precision,
        "kernels": args.kernels,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "atoms": work.n_node,
        "structures": work.n_graph,
        "edges": work.n_edge,
        "budget": dataclasses.asdict(work.budget),
        "parameters": n_params,
        "step_s": step_s,
        "step_s_all": [round(t, 4) for t in times[args.warmup :]],
        "warmup_s": [round(t, 4) for t in times[: args.warmup]],
        "cpu_s": float(np.median(cpu_times[args.warmup :])),
        "graph_s": work.graph_s,
        "trace_s": trace_s,
        "compile_s": compile_s,
        "compilations": step._cache_size(),
        "atoms_per_s": work.n_node / step_s,
        "padded_atoms_per_s": work.budget.n_node / step_s,
        "structures_per_s": work.n_graph / step_s,
        "gemm_gflop_per_s": max(gemm),
        # The compiler counts the body of a loop once, so it does not know the arithmetic of a step with --remat.
        **({} if args.remat else arithmetic(gflop, step_s, max(gemm))),
        "peak_gib": {key.removeprefix("peak_"): memory[key] for key in memory if key.startswith("peak_")},
        "memory_gib": memory
        | {"xla_temp": analysis.temp_size_in_bytes / 2**30, "xla_arguments": analysis.argument_size_in_bytes / 2**30},
        "loss": losses[-1],
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load": round(load, 2)},
        **origin,
    }


def arithmetic(gflop: float, step_s: float, gemm: float) -> dict[str, float]:
    """A step's work and its rate, also beside that of one large matmul (GFLOP/s)."""
    return {"gflop": gflop, "gflop_per_s": gflop / step_s, "gemm_fraction": gflop / step_s / gemm}


def compare(case: str, forces: str, args: argparse.Namespace) -> list[dict]:
    """Lines of one case: ours, with its ratios to the peer, then the two of the peer if there is one."""
    ours_command = [sys.executable, "-m", "benchmarks.train_throughput", "--one", f"{case}:{forces}", *_forwarded(args)]
    if not args.peer:
        return [_run(ours_command, args.malloc_tuned)]
    with tempfile.TemporaryDirectory() as folder:
        structures = Path(folder) / "structures.npz"
        np.savez(structures, **{f"{case}/{key}": value for key, value in load_structures(case, args.copies).items()})
        peer_command = [
            *(args.peer, str(PEER), str(structures), "--case", case, "--forces", forces),
            *("--precision", args.precision, "--dimensions", json.dumps(dataclasses.asdict(find_config(args.model)))),
            *("--reps", str(args.reps), "--warmup", str(args.warmup)),
            *("--device", args.peer_device, "--threads", str(len(os.sched_getaffinity(0)))),
        ]
        if turns.VARIABLE in os.environ:  # both set up side by side and measure in turn, whatever the allocator
            with ThreadPoolExecutor() as pool:
                peer = pool.submit(_run_peer, peer_command, tuned=False)
                ours, before, after = _run(ours_command, args.malloc_tuned), peer.result(), None
        else:
            before = _run_peer(peer_command, tuned=False)
            ours = _run(ours_command, args.malloc_tuned)
            after = _run_peer(peer_command, tuned=True)
    beside = {"model": args.model, "remat": args.remat, "machine": ours["machine"]}
    peers = [line | beside for line in (before, after) if line]
    if not peers:
        return [ours]
    return [ours | {"ratios": ratios(ours, peers), "same_edges": same_edges(ours, peers[0])}, *peers]


def ratios(ours: dict, peers: list[dict]) -> dict[str, float]:
    """Ours over the best of the peer; below 1 is in our favour."""
    kind = "device" if "device" in ours["peak_gib"] and "device" in peers[0]["peak_gib"] else "host"
    return {
        "time": ours["step_s"] / min(p["step_s"] - p["graph_s"] for p in peers),
        "time_with_graphs": (ours["step_s"] + ours["graph_s"]) / min(p["step_s"] for p in peers),
        "cpu": ours["cpu_s"] / min(p["cpu_s"] for p in peers),
        "memory": ours["peak_gib"][kind] / min(p["peak_gib"][kind] for p in peers),
    }


def same_edges(ours: dict, peer: dict) -> bool:
    """Whether both sides worked on the same number of edges in all four graphs."""
    return all(abs(peer["edges"][name] - n) <= EDGE_TOLERANCE * n for name, n in ours["edges"].items())


def _forwarded(args: argparse.Namespace) -> list[str]:
    names = ("reps", "warmup", "model", "precision", "copies", "kernels")
    words = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    return words + (["--remat"] if args.remat else [])


def _run(command: list[str], tuned: bool) -> dict:
    """The JSON line that the command prints last."""
    env = {key: value for key, value in os.environ.items() if key not in MALLOC_TUNED} | (MALLOC_TUNED if tuned else {})
    if command[0] == sys.executable:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    else:
        env.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ChildError(f"exit {done.returncode} from: {shlex.join(command)}")
    return json.loads(done.stdout.splitlines()[-1]) | {"malloc_tuned": tuned}


def _run_peer(command: list[str], tuned: bool) -> dict | None:
    """As `_run`; a peer that fails (out of memory, say) is reported and does not cost our own result."""
    try:
        return _run(command, tuned)
    except ChildError as error:
        print(f"PEER FAILED ({'tuned' if tuned else 'default'} malloc): {error}", file=sys.stderr, flush=True)
        return None


def summary(line: dict) -> str:
    """One line for the screen."""
    memory = ", ".join(f"{value:.2f} GiB {kind}" for kind, value in line["peak_gib"].items())
    text = f"{line['case']:9} {line['forces']:8} {line['who']:13} {line['step_s']:8.3f} s/step"
    text += f" {line['atoms_per_s']:8.1f} atoms/s  {memory}"
    if line["who"] != "jaxatoms":
        return text + (" (tuned malloc)" if line["malloc_tuned"] else " (default malloc)")
    if "gflop" in line:
        text += f"  {line['gflop_per_s']:.0f} GFLOP/s = {line['gemm_fraction']:.0%} of GEMM"
    if line["compilations"] != 1:
        text += f"  RECOMPILED: {line['compilations']} programs"
    if "ratios" in line:
        text += "  ours/peer: " + ", ".join(f"{name} {value:.2f}" for name, value in line["ratios"].items())
        text += "" if line["same_edges"] else "  EDGES DIFFER"
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=NAMES, default=["mol20", "slab2"], help="with direct forces")
    parser.add_argument("--grad", nargs="*", choices=NAMES, default=["aspirin4", "mol20"], help="with gradient forces")
    parser.add_argument("--reps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--remat", action="store_true", help="ours recomputes blocks in the backward pass")
    parser.add_argument(
        "--kernels", choices=("auto", "xla", "pallas_tpu", "mosaic_gpu"), default="auto", help="as of pretrain"
    )
    parser.add_argument("--copies", type=int, default=1, help="repeat the structures, for larger batches")
    parser.add_argument(
        "--malloc-tuned",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run ours with " + " ".join(f"{key}={value}" for key, value in MALLOC_TUNED.items()),
    )
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of the peer's environment")
    parser.add_argument("--peer-device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the lines to this file")
    parser.add_argument("--one", metavar="CASE:FORCES", help="measure one case in this very process, print its JSON")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    if args.kernels in ("pallas_tpu", "mosaic_gpu") and (args.precision != "bfloat16" or args.grad):
        raise SystemExit(f"--kernels {args.kernels} needs --precision bfloat16 and no gradient forces (--grad alone)")
    if args.one:
        check_kernels(args.kernels)
        with dispatch.using_kernels(args.kernels):
            print(json.dumps(measure(*args.one.split(":"), args)), flush=True)
        return
    command = shlex.join(["python", "-m", "benchmarks.train_throughput", *sys.argv[1:]])
    shared = {"run": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    for case, forces in [(c, "direct") for c in args.cases] + [(c, "gradient") for c in args.grad]:
        try:
            lines = [line | shared for line in compare(case, forces, args)]
        except ChildError as error:
            raise SystemExit(str(error)) from None
        for line in lines:
            print(summary(line), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()

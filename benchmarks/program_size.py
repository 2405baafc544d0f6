"""How large the compiled training step is: seconds to trace and compile, lines of its program, and what it launches.

    python -m benchmarks.program_size --models gemnet_oc_tiny --out benchmarks/results/program_size.jsonl
    python -m benchmarks.program_size --models gemnet_oc_s --precision bfloat16 --parts step --gpu h200

Every case prints a JSON line for each of "forward", "gradient" (with the loss), "optimizer" (clipping, AdamW and
average alone) and "step"; "features" (the pass that CSI reads, of EquiformerV2 as well) and "csi" (the update of its
moments) on request. Nothing is run, so that variants S and L need no memory for their states. Seconds are processor
time, which other jobs disturb less than the clock; a case runs in a process of its own.

`--gpu h200` compiles for that NVIDIA GPU and adds launches, bytes of main memory, products and the roofline, as
`--compile-for` of experiments.pretrain counts them. It needs no GPU but the packages of `jaxatoms[gpu-compile]`.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.equiformer_forward import CUTOFF, NEIGHBORS
from benchmarks.records import cpu_name
from benchmarks.workloads import NAMES, load_structures, make_workload, to_systems
from jaxatoms.csi.moments import empty_moments, update
from jaxatoms.data.packing import exact_budget, whole_size
from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.inference.model import unlabelled
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.registry import PureModel, abstract_model, architecture_of, find_config
from jaxatoms.ops import dispatch
from jaxatoms.ops.target import compiling_for
from jaxatoms.tools import chips, hlo, roofline
from jaxatoms.tools.chips import Chip
from jaxatoms.tools.provenance import provenance
from jaxatoms.tools.runtime import without_accelerators
from jaxatoms.tools.targets import Target, find_target
from jaxatoms.training.flat import flattened
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.losses.terms import combined
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_train_step

PARTS = ("forward", "gradient", "optimizer", "step")
OF_CSI = ("features", "csi")
_ENTRY = re.compile(r"^ENTRY .*?^}", re.MULTILINE | re.DOTALL)


def shaped_model(name: str, forces: str, precision: str) -> PureModel:
    """A model of one task as shapes; gradient forces under the interface of direct ones."""
    config = dataclasses.replace(find_config(name), direct_forces=forces == "direct")
    model = abstract_model(config, 1, Precision(matmul=precision))
    if forces == "direct":
        return model

    def apply(*args):
        out = model.apply(*args)
        return ModelOutput(out.energy[:, None], out.forces[..., None])

    return model._replace(apply=apply)


def programs(model: PureModel, batch, place: Callable = lambda tree: tree) -> dict[str, Callable]:
    """Functions without arguments that trace each of `PARTS`.

    Args:
      place: what makes of arguments those for another device.
    """
    flat = flattened(model)
    optim = OptimConfig()
    optimizer = make_optimizer(optim, max_steps=100_000)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), flat.params)
    terms = pretraining_terms(LossScales(energy=jnp.ones(1), forces=jnp.full(1, 10.0)))
    step = make_train_step(flat.apply, optimizer, terms, ema_decay=optim.ema_decay)

    def loss(params, constants, batch):
        out = model.apply(params, constants, batch)
        return combined(terms, out, batch)

    # The same step with a model that costs nothing: what is left is what the optimiser adds.
    def nothing(params, constants, batch, edge_dropout=0.0):
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params.tree()))
        return ModelOutput(batch.energy[:, None] * total, batch.forces[..., None])

    alone = make_train_step(nothing, optimizer, terms, ema_decay=optim.ema_decay)
    state, params, constants, batch = place((state, model.params, model.constants, batch))
    return {
        "forward": lambda: jax.jit(model.apply).lower(params, constants, batch),
        "gradient": lambda: jax.jit(jax.grad(loss, has_aux=True)).lower(params, constants, batch),
        "optimizer": lambda: alone.lower(state, constants, batch),
        "step": lambda: step.lower(state, constants, batch),
    }


def csi_programs(model: PureModel, width: int, batch, place: Callable = lambda tree: tree) -> dict[str, Callable]:
    """The same for `OF_CSI`; rows of `width` features enter the moments."""
    params, constants, batch = place((model.params, model.constants, batch))
    rows = jax.ShapeDtypeStruct((batch.positions.shape[0], width), jnp.float32)

    def moments():
        with jax.enable_x64(True):
            sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty_moments(width))
            given = place((sums, rows, jax.ShapeDtypeStruct(rows.shape[:1], bool)))
            return jax.jit(lambda sums, rows, mask: update(sums, rows, mask, "float64")).lower(*given)

    return {"features": lambda: jax.jit(model.node_features).lower(params, constants, batch), "csi": moments}


def on_device(target: Target) -> Callable:
    """What makes shapes on the first device of a target of arrays or shapes."""
    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    return lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def launches(text: str, chip: Chip) -> dict[str, float]:
    """Launches of a program for a GPU, the bytes and the arithmetic of all, and the seconds that they take at least."""
    launched = hlo.launches(text)
    floor = roofline.LAUNCH_FLOOR
    return {
        "launches": len(launched),
        "launches_below_2us": sum(roofline.launch_seconds(launch, chip) < floor for launch in launched),
        "main_memory_gb": round(sum(launch.bytes for launch in launched) / 1e9, 2),
        "product_gflop": {name: flops / 1e9 for name, (flops, _) in hlo.products_by_precision(launched).items()},
        "bound_ms": 1e3 * roofline.launches_seconds(launched, chip),
        "bound_with_1us_ms": 1e3 * roofline.launches_seconds(launched, chip, 1e-6),
        "bound_with_floor_ms": 1e3 * roofline.launches_seconds(launched, chip, floor),
    }


def measure(trace: Callable, target: Target | None = None) -> dict:
    """Seconds and sizes of one program."""
    began = time.process_time()
    lowered = trace()
    traced, began = time.process_time() - began, time.process_time()
    compiled = lowered.compile(compiler_options=target.options if target else None)
    seconds, text = time.process_time() - began, compiled.as_text()
    return {
        "trace_cpu_s": round(traced, 2),
        "compile_cpu_s": round(seconds, 2),
        "stablehlo_lines": lowered.as_text().count("\n"),
        **sizes(text),
        **(launches(text, target.chip) if target else {}),
        "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
    }


def sizes(text: str) -> dict[str, int]:
    """Lines of a compiled program, and what its entry launches."""
    entry = _ENTRY.search(text)
    assert entry is not None
    lines = entry[0].splitlines()
    calls = {kind: sum(f" {kind}(" in line for line in lines) for kind in ("fusion", "dot", "custom-call", "call")}
    return {"hlo_lines": text.count("\n"), **{f"entry_{kind}": count for kind, count in calls.items()}}


def traced(model: str, forces: str, part: str, args: argparse.Namespace, place: Callable) -> Callable:
    """The function that traces one program."""
    structures, config = load_structures(args.workload, args.copies), find_config(model)
    architecture = architecture_of(config)
    if architecture.graphs is NEAREST_GRAPH:
        systems = to_systems(structures)
        graphs = NEAREST_GRAPH.build_batch(systems, CUTOFF, NEIGHBORS)
        batch = unlabelled(systems, graphs, exact_budget([whole_size(systems, graphs)]))
        network = abstract_model(config, 1, Precision(matmul=args.precision))
    else:
        batch, network = make_workload(structures).batch, shaped_model(model, forces, args.precision)
    if part in OF_CSI:
        return csi_programs(network, architecture.feature_width(config), batch, place)[part]
    return programs(network, batch, place)[part]


def run_case(model: str, forces: str, part: str, args: argparse.Namespace):
    """Measure one program and print (and append) its line."""
    if args.gpu:
        without_accelerators()
    target = find_target(args.gpu) if args.gpu else None
    place = on_device(target) if target else lambda tree: tree
    described = compiling_for(target.chip.platform, target.device_kind) if target else contextlib.nullcontext()
    with described, dispatch.using_kernels(args.kernels):
        found = measure(traced(model, forces, part, args, place), target)
    line = json.dumps({
        "benchmark": "program_size", "model": model, "forces": forces, "part": part, "workload": args.workload,
        "copies": args.copies, "target": args.gpu or "cpu", "precision": args.precision, "kernels": args.kernels,
        **found, "run": datetime.now(UTC).isoformat(timespec="seconds"), "machine": {"cpu": cpu_name()}, **provenance(),
    })  # fmt: skip
    print(line, flush=True)
    if args.out:
        with open(args.out, "a") as file:
            file.write(line + "\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gemnet_oc_tiny"], help="presets or JSON files of dimensions")
    parser.add_argument("--forces", nargs="+", default=["direct", "gradient"], choices=["direct", "gradient"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS + OF_CSI, help="programs to compile")
    parser.add_argument("--workload", default="mol20", choices=NAMES)
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--copies", type=int, default=1, help="repeat the structures, for larger batches")
    parser.add_argument(
        "--kernels", default="auto", choices=["auto", "xla", "mosaic_gpu"], help="as of pretrain; with --gpu"
    )
    parser.add_argument("--gpu", choices=chips.names("gpu"), help="compile for this GPU")
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args(argv)
    if args.kernels in ("pallas_tpu", "mosaic_gpu") and (args.gpu is None or args.kernels == "pallas_tpu"):
        parser.error("--kernels mosaic_gpu is for --gpu h100 and h200, and other kernels are not for GPUs")
    spawn = multiprocessing.get_context("spawn")
    for model in args.models:
        for forces in args.forces:
            for part in args.parts:
                process = spawn.Process(target=run_case, args=(model, forces, part, args))
                process.start()
                process.join()
                if process.exitcode:
                    return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

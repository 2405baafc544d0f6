"""Time, arithmetic and bytes of the parts of a training step, each jitted alone, beside the device's own limits.

    python -m benchmarks.profile_step --case mol20 --out benchmarks/results/profile_step.jsonl

Every part runs forward and backward (the optimiser once) on the arrays that it meets in the step. FLOP and bytes are
XLA's cost analysis of that part. The bound is the larger of FLOP over the rate of one large matmul measured here and
bytes over the rate of one large copy measured here. Parts alone move more than parts fused into one step, so their sum
may exceed the whole step; `input` (graphs and padding, on the host) overlaps with the step in training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.workloads import NAMES, load_structures, make_workload
from experiments.plan import matmul_rate
from experiments.provenance import provenance
from jaxatoms.models.gemnet_oc.indices import derive
from jaxatoms.models.precision import Precision
from jaxatoms.models.registry import find_config, make_model, split_model
from jaxatoms.training.losses import LossScales, pretraining_loss
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_train_step

MATMUL_ROWS = 16384
COPY_FLOATS = 2**26


class Cost(NamedTuple):
    """One part, once."""

    seconds: float  # median of the repeats
    flops: float
    bytes: float
    temporaries: int  # bytes


def measure(function, *args, reps: int) -> tuple[Any, Cost]:
    """(outputs, cost) of a jitted function."""
    compiled = jax.jit(function).lower(*args).compile()
    out = jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(reps):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - began)
    analysis = compiled.cost_analysis()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return out, Cost(float(np.median(times)), analysis.get("flops", 0.0), analysis["bytes accessed"], temporaries)


def forward_backward(module: nnx.Module, call):
    """f(state, inputs, fixed) -> (outputs, gradients), differentiated in the state and in the inputs.

    Args:
      call: (module, *inputs, *fixed) -> outputs.
    """
    graphdef, state = nnx.split(module)

    def run(state, inputs, fixed):
        function = lambda state, inputs: call(nnx.merge(graphdef, state), *inputs, *fixed)  # noqa: E731
        out, pull = jax.vjp(function, state, inputs)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    return run, state


def backbone_parts(model, batch, reps: int):
    """Yields (name, times per step, cost) of the network's parts, in the order of the step."""
    backbone = model.backbone
    indices = jax.jit(derive)(batch)

    def part(module, call, inputs, fixed):
        run, state = forward_backward(module, call)
        (out, _), cost = measure(run, state, inputs, fixed, reps=reps)
        return out, cost

    h, embedding = part(model.embedding, lambda m, z: m(z), (), (batch.atomic_numbers,))
    yield "atom embedding", 1, embedding
    basis, cost = part(backbone.bases, lambda m, b, i: m(b, b.positions, i), (), (batch, indices))
    yield "geometry and bases", 1, cost
    emb = lambda m, h, r, b, i: m.edge_emb(h, r, b, i)  # noqa: E731
    edge, cost = part(backbone.bases, emb, (h, basis.radial), (batch, indices))
    yield "edge embedding", 1, cost
    output = lambda m, h, e, s, b: m(h, e, s, b, 0.0, _silent)  # noqa: E731
    x, cost = part(backbone.out_blocks[0], output, (h, edge, basis), (batch,))
    yield "output block", len(backbone.out_blocks), cost
    block = lambda m, h, e, s, b, i: m(h, e, s, b, i, _silent)  # noqa: E731
    _, cost = part(backbone.int_blocks[0], block, (h, edge, basis), (batch, indices))
    yield "interaction block", len(backbone.int_blocks), cost
    outputs = [x] * len(backbone.out_blocks)
    node, cost = part(backbone.out_mlp_E, lambda m, x: m(x), ([x[0] for x in outputs],), ())
    yield "final MLP, atoms", 1, cost
    force, cost = part(backbone.out_mlp_F, lambda m, x: m(x), ([x[1] for x in outputs],), ())
    yield "final MLP, edges", 1, cost
    yield "heads and loss", 1, _heads(model, batch, node, force, basis.directions, reps)


def _heads(model, batch, node, edge, directions, reps: int) -> Cost:
    from jaxatoms.models.gemnet_oc.network import Features

    scales = LossScales(jnp.ones(1), jnp.full(1, 10.0))

    def call(head, node, edge, directions, batch):
        out = head(Features(node, edge, directions), batch, model.reductions)
        return pretraining_loss(out.energy, out.forces, batch, scales)[0]

    run, state = forward_backward(model.output, call)
    return measure(run, state, (node, edge, directions), (batch,), reps=reps)[1]


def _silent(name, **values):
    del name, values


def whole_parts(pure, batch, reps: int):
    """Yields (name, 1, cost) of the optimiser with the moving average, and of the whole step."""
    optim = OptimConfig()
    optimizer = make_optimizer(optim, 100_000)
    state = jax.jit(lambda p: init_state(p, optimizer))(pure.params)

    def update(state, grads):
        import optax

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return params, optax.incremental_update(params, state.ema, 1 - optim.ema_decay), opt_state

    yield "optimiser and average", 1, measure(update, state, pure.params, reps=reps)[1]
    scales = LossScales(jnp.ones(1), jnp.full(1, 10.0))
    step = make_train_step(pure.apply, optimizer, scales, ema_decay=optim.ema_decay, edge_dropout=0.0)
    compiled, times = step.lower(state, pure.constants, batch).compile(), []
    for _ in range(reps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, pure.constants, batch))
        times.append(time.perf_counter() - began)
    analysis, temporaries = compiled.cost_analysis(), compiled.memory_analysis().temp_size_in_bytes
    cost = Cost(float(np.median(times[1:])), analysis.get("flops", 0.0), analysis["bytes accessed"], temporaries)
    yield "whole step", 1, cost


def copy_rate() -> float:
    """Bytes per second, read and written, of one large elementwise operation on the default device."""
    x = jnp.ones(COPY_FLOATS, jnp.float32)
    _, cost = measure(lambda x: x + 1, x, reps=5)
    return 2 * x.nbytes / cost.seconds


def profile(args) -> dict:
    """The record of one case."""
    work = make_workload(load_structures(args.case, args.copies))
    batch = jax.device_put(work.batch)
    model = make_model(find_config(args.model), 1, 0, Precision(matmul=args.precision))
    limits = {"matmul_flops": matmul_rate(args.precision, MATMUL_ROWS), "copy_bytes": copy_rate()}
    parts = {"input (host)": {"count": 1, "seconds": work.graph_s, "flops": 0.0, "bytes": 0.0, "temporaries": 0}}
    for name, count, cost in backbone_parts(model, batch, args.reps):
        parts[name] = {"count": count, **cost._asdict()}
        print(_row(name, parts[name], limits), flush=True)
    for name, count, cost in whole_parts(split_model(model), batch, args.reps):
        parts[name] = {"count": count, **cost._asdict()}
        print(_row(name, parts[name], limits), flush=True)
    return {
        "benchmark": "profile_step",
        **{name: getattr(args, name) for name in ("case", "copies", "model", "precision", "reps")},
        "edges": work.n_edge,
        "edge_slots": work.budget.n_main,
        "limits": limits,
        "parts": parts,
        **provenance(),
    }


def _row(name: str, part: dict, limits: dict) -> str:
    count = part["count"]
    bounds = part["flops"] / limits["matmul_flops"], part["bytes"] / limits["copy_bytes"]
    bound, kind = max(zip(bounds, ("matmul", "memory"), strict=True))
    return (
        f"{name:22} {count} x {1e3 * part['seconds']:9.2f} ms  {part['flops'] / 1e9:9.2f} GFLOP "
        f"{part['bytes'] / 1e9:8.3f} GB  bound {1e3 * bound:9.2f} ms ({kind})  {bound / part['seconds']:4.0%}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=NAMES, default="mol20")
    parser.add_argument("--copies", type=int, default=1, help="repeat the structures, for larger batches")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--reps", type=int, default=5, help="timed runs of each part")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the record to this file")
    args = parser.parse_args()
    record = profile(args)
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

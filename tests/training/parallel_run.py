"""Trains the nano model on forced host devices, alone or as one of several processes; prints its losses as JSON.

    python parallel_run.py '{"devices": 8, "steps": 50}'

Read by test_parallel.py, which sets XLA_FLAGS and JAX_PLATFORMS: the number of devices must be known before JAX loads.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.data import calls, loader, packing, shards
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.scale_fit import fit_scale_factors
from jaxatoms.models.registry import make_model, split_model
from jaxatoms.runs import fleet
from jaxatoms.training import parallel
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_eval_step, make_train_step

NANO = GemNetOCConfig(
    num_blocks=1, emb_size_atom=8, emb_size_edge=8, emb_size_trip_in=4, emb_size_trip_out=4, emb_size_quad_in=4,
    emb_size_quad_out=4, emb_size_aint_in=4, emb_size_aint_out=4, emb_size_rbf=4, emb_size_cbf=4, emb_size_sbf=4,
    num_spherical=2, num_radial=16, num_before_skip=0, num_after_skip=0, num_concat=0, num_atom=0,
    num_output_afteratom=0, num_atom_emb_layers=0, num_global_out_layers=0,
)  # fmt: skip
BATCH_SIZE = 20


def make_batches(args: dict, mesh):
    """(training batches, validation batches) of the shipped molecules, whole or in parts."""
    data = prepare_task("demo:organic", "all", 0, val_samples=30, data_root=None, cache_dir=args["cache"])
    corpus, train, val = make_corpus([data])
    sizes = loader.measure(corpus, train, 0.1)
    shapes = args.get("shapes", 1)
    budgets = packing.fixed_budgets(sizes, BATCH_SIZE, 20, 100, shapes=shapes)
    whole = loader.TrainBatches(corpus, train, budgets, 5, 0, 0.1, BATCH_SIZE)
    evaluation = loader.eval_batches(corpus, val, 7)
    n, accumulate = parallel.n_parts(mesh), args.get("accumulate", 1)
    if n * accumulate == 1:
        return whole, evaluation
    groups = shards.drawn_groups(sizes, BATCH_SIZE, None)
    edges = shards.expected_edges(sizes, corpus.n_node(train))
    parts = shards.part_budgets(sizes, groups, n * accumulate, 20, shapes=shapes)
    return shards.ShardedBatches(whole, edges, parts, n, parallel.own_parts(mesh), accumulate), evaluation


def run(args: dict) -> dict:
    """Losses of every step and the validation sums after the last."""
    mesh = parallel.make_mesh(args["devices"])
    scales = LossScales(jnp.ones(1), 10 * jnp.ones(1))  # not at import: processes join before they touch a device
    batches, evaluation = make_batches(args, mesh)
    model = make_model(NANO, 1, 0, Precision())
    fit_scale_factors(model, evaluation[:1], lambda _: None)
    pure = split_model(model)
    optimizer = make_optimizer(OptimConfig(lr=args.get("lr", 1e-3), warmup_steps=0), 100)
    state, constants, shardings = init_state(pure.params, optimizer), pure.constants, None
    per_call = args.get("steps_per_call", 1)
    devices = fleet.Fleet(mesh)
    place = functools.partial(devices.place, axis=int(per_call > 1))
    if mesh is not None:
        shardings = parallel.state_shardings(state, mesh, args.get("zero", False))
        state = parallel.place_state(state, shardings)
        constants = parallel.place_state(constants, parallel.replicated(mesh))
    step = make_train_step(
        pure.apply, optimizer, pretraining_terms(scales), ema_decay=0.99, edge_dropout=0.1, mesh=mesh,
        shardings=shardings, accumulate=args.get("accumulate", 1), steps_per_call=per_call,
    )  # fmt: skip
    build = calls.StackedBatches(batches).batch if per_call > 1 else lambda call: batches.batch(call.first)
    losses = []
    for call in calls.plan_calls(0, args["steps"], (args["steps"],), per_call):
        state, metrics = step(state, constants, place(build(call)))
        values = {name: np.atleast_1d(value) for name, value in metrics.items()}
        losses += [{name: float(value[i]) for name, value in values.items()} for i in range(call.length)]
    evaluate = make_eval_step(pure.apply, pretraining_terms(scales), 1, mesh)
    groups = loader.grouped(evaluation, mesh.size, parallel.own_parts(mesh)) if mesh else evaluation
    ema = parallel.gather(state, mesh).ema
    sums = [evaluate(ema, constants, devices.place(group)) for group in groups]
    totals = {name: float(np.sum([np.asarray(s[name]) for s in sums])) for name in sums[0]}
    moment = max(jax.tree.leaves(state.opt_state), key=lambda x: x.size)
    return {
        "losses": losses,
        "sums": totals,
        "compilations": step._cache_size(),
        "moment_shard": list(moment.addressable_shards[0].data.shape),
        "moment": list(moment.shape),
    }


def main():
    args = json.loads(sys.argv[1])
    if "coordinator" in args:
        fleet.join(args["coordinator"], args["processes"], args["process"])
    print(json.dumps(run(args)), file=sys.__stdout__)


if __name__ == "__main__":
    main()

"""`--plan`: what a pretraining run would cost, without training."""

import time
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.data import loader
from jaxatoms.models import registry as models
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs.pretraining import Pretraining
from jaxatoms.runs.remat import program_bytes
from jaxatoms.runs.run import lower_step


def print_plan(run: Pretraining, out: TextIO):
    """Steps, budget, shapes, memory and a time estimate of a prepared run.

    The step is compiled (not run) for the most common batch shape; time is its arithmetic divided by the matmul
    rate measured here, a lower bound that says so.
    """
    config, batches = run.config, run.batches
    n, n_val = run.n_train, sum(len(d.val) for d in run.data)
    say = lambda text: print(text, file=out)  # noqa: E731
    say(f"upstream    {config.upstream}: {n} training, {n_val} validation structures")
    if len(run.data) > 1:
        say(f"mix         {config.mix}: " + ", ".join(f"{d.task.name} {len(d.train)}" for d in run.data))
    say(f"budget      N x E = {n} x {config.epochs} = {n * config.epochs} samples")
    if run.left_out:
        say(f"            {run.left_out} of them are left out, since batches are whole")
    say(f"steps       {run.total_steps} ({run.steps_per_epoch} per epoch), warm-up {run.optim.warmup_steps}")
    name = config.model or config.init
    say(f"model       {name}: {models.count_params(run.model.params):,} parameters, {config.precision}")
    shapes = ", ".join(f"{b.n_main}" for b in batches.budgets)
    say(f"batches     {len(batches.budgets)} shapes of {shapes} edges")
    sample = [batches.batch(step) for step in range(min(20, run.total_steps))]
    sample = [batch[0] if isinstance(batch, list) else batch for batch in sample]  # accumulated parts, stacked
    real, slots = np.sum([loader.occupancy(batch) for batch in sample], axis=0)
    say(f"occupancy   {real / slots:.1%} of edge slots real (20 batches)")
    compiled = lower_step(run, sample[0]).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    total, temporaries = program_bytes(compiled), memory.temp_size_in_bytes  # type: ignore[union-attr]
    flops = config.accumulate * (cost or {}).get("flops", float("nan"))  # a loop's body is counted once
    say(f"memory      {total / 2**30:.2f} GiB for the step ({temporaries / 2**30:.2f} of it temporary)")
    rate = matmul_rate(config.precision)
    hours = run.total_steps * flops / rate / 3600
    here = f"this device multiplies at {rate / 1e9:.0f} GFLOP/s in {config.precision}"
    say(f"arithmetic  {flops / 1e9:.1f} GFLOP per step; {here}")
    say(f"time        at least {hours:.2f} h at that rate; expect 1.5 to 2.5 times as much")


def matmul_rate(precision: str, n: int = 2048) -> float:
    """FLOP/s of an [n, 512] x [512, 512] chain on the default device, under a precision policy."""
    policy = Precision(matmul=precision)
    x, w = policy.store(jnp.ones((n, 512))), jnp.eye(512)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: policy.dot(y, w), x))
    chain(x).block_until_ready()
    began = time.perf_counter()
    chain(x).block_until_ready()
    return 20 * 2 * n * 512 * 512 / (time.perf_counter() - began)

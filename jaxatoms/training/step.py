"""One training step and one evaluation step as pure jitted functions of (state, batch)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxatoms.ops.target import step_options
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.terms import Terms, combined, label_counts, label_sums
from jaxatoms.training.parallel import global_gradient, global_sums, replicated

ApplyFn = Callable[..., Any]  # (params, constants, batch, edge_dropout) -> ModelOutput


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # [] int32, updates done
    params: Any
    ema: Any  # exponential moving average of params
    opt_state: Any


def init_state(params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the average starts at the parameters (no bias correction)."""
    copy = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, copy, optimizer.init(params))


def make_train_step(
    apply: ApplyFn,
    optimizer,
    terms: Terms,
    *,
    ema_decay: float,
    edge_dropout: float = 0.0,
    dropout_seed: int | None = None,
    mesh=None,
    shardings=None,
    accumulate: int = 1,
    steps_per_call: int = 1,
):
    """`make_update` with a loss of terms: train_step(state, constants, batch, **extra) -> (state, metrics).

    Args:
      dropout_seed: for models with dropout: `apply` is given a key that follows from it and the step.
    """

    def loss_fn(params, constants, batch, step, counts):
        # The key depends on the step alone, so that a resumed run draws the same numbers.
        random = {} if dropout_seed is None else {"key": jax.random.fold_in(jax.random.key(dropout_seed), step)}
        out = apply(params, constants, batch, edge_dropout, **random)
        return combined(terms, out, batch, counts)

    return make_update(
        loss_fn,
        optimizer,
        ema_decay=ema_decay,
        mesh=mesh,
        shardings=shardings,
        count_fn=lambda batch: label_counts(terms, batch),
        accumulate=accumulate,
        steps_per_call=steps_per_call,
    )


def make_update(
    loss_fn: Callable,
    optimizer,
    *,
    ema_decay: float,
    mesh=None,
    shardings=None,
    count_fn: Callable | None = None,
    accumulate: int = 1,
    steps_per_call: int = 1,
):
    """update(state, constants, batch, **extra) -> (state, metrics); the old state's buffers are donated.

    The batch's leaves are [n_step, n_device, accumulate, ...], each axis there only if its setting asks for it.

    Args:
      loss_fn: (params, constants, batch, step) -> (loss, parts); step counts the batches before this one. Of a step
        of several batches, over a mesh or accumulated, they are this batch's shares, and `counts` comes as fifth.
      optimizer: receives `extra` as keyword arguments.
      mesh: devices that share each step's batch; None: one device.
      shardings: of the state over the mesh (`state_shardings`); default: whole everywhere.
      count_fn: batch -> tree of counts, which are summed over all batches of a step for `loss_fn`.
      accumulate: batches per update, one after another on each device; needs `count_fn`.
      steps_per_call: above 1, a call makes as many updates as the batch's leading axis is long, the same ones as
        single calls would; metrics are [n_step] then.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    gradient = global_gradient(loss_fn, mesh, count_fn, accumulate)
    kept = None if mesh is None else shardings or replicated(mesh)

    def update(state: TrainState, constants, batch, **extra):
        (loss, parts), grads = gradient(state.params, constants, batch, state.step)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
            params = optax.apply_updates(state.params, updates)
            ema = optax.incremental_update(params, state.ema, 1 - ema_decay)
        metrics = {"loss": loss, **parts, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def updates(state: TrainState, constants, batches, **extra):
        def one(state, batch):
            state, metrics = update(state, constants, batch, **extra)
            # A loop's state keeps its type, of which the spread is a part: gather what came from spread moments.
            return (state if mesh is None else jax.sharding.reshard(state, kept)), metrics

        return jax.lax.scan(one, state, batches)

    call = update if steps_per_call == 1 else updates
    options = step_options()
    if mesh is None:
        return jax.jit(call, donate_argnums=0, compiler_options=options)
    return jax.jit(call, donate_argnums=0, compiler_options=options, out_shardings=(kept, replicated(mesh)))


def make_eval_step(apply: ApplyFn, terms: Terms, n_task: int = 1, mesh=None, n_class: int = 0):
    """eval_step(params, constants, batch) -> sums from which loss (`terms.mean_loss`) and MAEs of a set follow."""

    def eval_step(params, constants, batch):
        out = apply(params, constants, batch, 0.0)
        return label_sums(terms, out, batch) | error_sums(out, batch, n_task, n_class)

    return jax.jit(global_sums(eval_step, mesh), compiler_options=step_options())

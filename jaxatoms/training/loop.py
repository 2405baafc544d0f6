"""The loop around the step: feeds batches, logs a step late, validates, saves, stops on request.

Knows no model and no data set: it is given a compiled step, an iterator of host batches and hooks.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.step import TrainState
from jaxatoms.types import InputError


@dataclasses.dataclass
class Meter:
    """Throughput and padding since the start (or since `restart`, which forgets the warm-up)."""

    steps: int = 0
    structures: int = 0
    atoms: int = 0
    edges: int = 0
    edge_slots: int = 0
    shares: int = 1  # processes of which this one is typical
    began: float = dataclasses.field(default_factory=time.perf_counter)

    def add_call(self, parts: Sequence[GraphBatch], steps: int):
        """Count the real content of a call's host batches."""
        self.steps += steps
        for batch in parts:
            self.add(batch)

    def add(self, batch: GraphBatch):
        """Count the real content of one host batch, or of a stack of them."""
        self.structures += int(batch.graph_mask.sum())
        self.atoms += int(batch.node_mask.sum())
        self.edges += int((batch.main.in_table < batch.swap.shape[-1]).sum())
        self.edge_slots += batch.swap.size

    def rates(self) -> dict[str, float]:
        """Structures, atoms and steps per second, and real edges per edge slot."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        return {
            "structures_per_second": self.structures * self.shares / seconds,
            "atoms_per_second": self.atoms * self.shares / seconds,
            "steps_per_second": self.steps / seconds,
            "occupancy": self.edges / max(self.edge_slots, 1),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls; steps count updates done (1 after the first)."""

    log: Callable[[int, dict[str, float]], None]
    validate: Callable[[int, TrainState], None]
    should_stop: Callable[[], bool]
    log_every: int = 50
    validate_every: int = 1000
    save: Callable[[int, TrainState], None] = lambda step, state: None
    save_every: int = 0
    compiling: Callable[[], None] = lambda: None  # the next call compiles a step, or reads it from the cache


def train(
    state: TrainState,
    constants: Any,
    batches: Iterable[GraphBatch | list[GraphBatch]],
    train_step: Callable,
    hooks: Hooks,
    *,
    first_step: int,
    total_steps: int,
    place: Callable = jax.device_put,
    n_process: int = 1,
) -> tuple[TrainState, int, Meter]:
    """Run steps first_step .. total_steps - 1, or until `hooks.should_stop`.

    The loop never waits for the call it has just dispatched: metrics are read one call later, while the device
    already works on the next. A call makes one step, or as many as its metrics are long.

    Args:
      batches: host batches of each call, or the list of this process's parts of one shape; no call may go past a
        multiple of `hooks.validate_every`, of `hooks.save_every`, or `total_steps`.
      place: puts one of these onto the devices.
      n_process: processes that each see about the same share of every step; rates count all of them.

    Returns:
      (state, steps done in all, throughput after the warm-up, i.e. after each batch shape's first step).

    Raises:
      InputError: the loss is not finite; the message names the step.
    """
    meter, done, waiting, shapes = Meter(shares=n_process), first_step, None, set()
    for batch in batches:
        parts = batch if isinstance(batch, list) else [batch]
        fresh = parts[0].main.senders.shape not in shapes
        shapes.add(parts[0].main.senders.shape)
        if fresh:
            hooks.compiling()
        state, metrics = train_step(state, constants, place(batch))
        before, done = done, done + max(1, metrics["loss"].size)
        meter.add_call(parts, done - before)
        _report(waiting, hooks, meter)
        steps = [s for s in range(before + 1, done + 1) if s % hooks.log_every == 0 or s == total_steps]
        waiting = (done, metrics, steps) if steps else None
        if fresh:  # compilation must not count as throughput
            jax.block_until_ready(metrics)
            meter = Meter(shares=n_process)
        validating = done % hooks.validate_every == 0 or done == total_steps
        saving = hooks.save_every > 0 and done % hooks.save_every == 0
        if validating or saving:
            _report(waiting, hooks, meter)
            waiting = None
            _check_finite(done, metrics)  # what is validated may be saved
            pause = time.perf_counter()
            if validating:
                hooks.validate(done, state)
            if saving:
                hooks.save(done, state)
            meter.began += time.perf_counter() - pause
        if hooks.should_stop():
            _check_finite(done, metrics)
            break
    jax.block_until_ready(state.step)
    _report(waiting, hooks, meter)
    return state, done, meter


def _report(waiting: tuple[int, dict, list[int]] | None, hooks: Hooks, meter: Meter) -> None:
    """Fetch an earlier call's metrics, and log those of some of its steps."""
    if waiting is None:
        return
    done, metrics, steps = waiting
    _check_finite(done, metrics)
    fetched = {name: np.atleast_1d(value) for name, value in metrics.items()}
    for step in steps:
        hooks.log(step, {name: float(values[step - done - 1]) for name, values in fetched.items()} | meter.rates())


def _check_finite(done: int, metrics: dict) -> None:
    """A state that was spoilt at any step up to `done` shows here: the loss or the gradient is not finite.

    Args:
      metrics: of the call whose last step is the `done`-th.
    """
    for name, word in (("loss", "loss"), ("grad_norm", "gradient norm")):
        values = np.atleast_1d(metrics[name])
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            value, step = values[bad[0]], done - len(values) + 1 + bad[0]
            raise InputError(f"the {word} is {value} at step {step}; lower --lr or check the labels of the data")


def evaluate(
    params, constants, batches: Iterable, eval_step: Callable, place: Callable = lambda batch: batch
) -> dict[str, np.ndarray]:
    """Sums of `eval_step` over all batches; everything is dispatched before anything is fetched."""
    sums = [eval_step(params, constants, place(batch)) for batch in batches]
    totals = jax.tree.map(lambda *leaves: np.sum([np.asarray(x, np.float64) for x in leaves], axis=0), *sums)
    return totals

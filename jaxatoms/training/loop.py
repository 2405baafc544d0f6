"""The loop around the step: feeds batches, logs a step late, validates, saves, stops on request.

Knows no model and no data set: it is given a compiled step, an iterator of host batches and hooks.
"""

import dataclasses
import math
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

    def add_step(self, parts: Sequence[GraphBatch]):
        """Count the real content of a step's host batches."""
        self.steps += 1
        for batch in parts:
            self.add(batch)

    def add(self, batch: GraphBatch):
        """Count the real content of one host batch."""
        self.structures += int(batch.graph_mask.sum())
        self.atoms += int(batch.node_mask.sum())
        self.edges += int((batch.main.in_table < len(batch.swap)).sum())
        self.edge_slots += len(batch.swap)

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

    The loop never waits for the step it has just dispatched: metrics are read one step later, while the device
    already works on the next.

    Args:
      batches: host batches, or for each step the list of this process's parts of one shape.
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
        state, metrics = train_step(state, constants, place(batch))
        done += 1
        meter.add_step(parts)
        _report(waiting, hooks, meter)
        waiting = None
        if done % hooks.log_every == 0 or done == total_steps:
            waiting = (done, metrics)
        if fresh:  # compilation must not count as throughput
            jax.block_until_ready(metrics)
            meter = Meter(shares=n_process)
        if done % hooks.validate_every == 0 or done == total_steps:
            _report(waiting, hooks, meter)
            waiting = None
            _check_finite(done, metrics)  # what is validated may be saved
            pause = time.perf_counter()
            hooks.validate(done, state)
            meter.began += time.perf_counter() - pause
        if hooks.should_stop():
            _check_finite(done, metrics)
            break
    jax.block_until_ready(state.step)
    _report(waiting, hooks, meter)
    return state, done, meter


def _report(waiting: tuple[int, dict] | None, hooks: Hooks, meter: Meter) -> None:
    """Fetch and log metrics of an earlier step."""
    if waiting is None:
        return
    step, metrics = waiting
    _check_finite(step, metrics)
    hooks.log(step, {name: float(value) for name, value in metrics.items()} | meter.rates())


def _check_finite(step: int, metrics: dict) -> None:
    """A state that was spoilt at any step up to this one shows here: the loss or the gradient is not finite."""
    for name, word in (("loss", "loss"), ("grad_norm", "gradient norm")):
        value = float(metrics[name])
        if not math.isfinite(value):
            raise InputError(f"the {word} is {value} at step {step}; lower --lr or check the labels of the data")


def evaluate(
    params, constants, batches: Iterable, eval_step: Callable, place: Callable = lambda batch: batch
) -> dict[str, np.ndarray]:
    """Sums of `eval_step` over all batches; everything is dispatched before anything is fetched."""
    sums = [eval_step(params, constants, place(batch)) for batch in batches]
    totals = jax.tree.map(lambda *leaves: np.sum([np.asarray(x, np.float64) for x in leaves], axis=0), *sums)
    return totals

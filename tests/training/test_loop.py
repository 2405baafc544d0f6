"""The loop: logs a step late, validates on time, stops on request, refuses a loss that is not finite."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.data import calls
from jaxatoms.training.loop import Hooks, Meter, evaluate, train
from jaxatoms.training.step import TrainState
from jaxatoms.types import InputError


class _Edges:
    def __init__(self, n):
        self.senders = np.zeros(n, np.int32)
        self.in_table = np.array([[0, 1, n], [2, n, n]], np.int32)


class _Batch:
    """What the loop reads of a batch: 2 structures, 5 atoms, 3 edges in n slots."""

    def __init__(self, n=4):
        self.main, self.swap = _Edges(n), np.zeros(n, np.int32)
        self.graph_mask, self.node_mask = np.array([True, True, False]), np.arange(6) < 5


class _Record:
    """A fake step and hooks that write down everything that happens, in order."""

    def __init__(self, losses=None, norms=None, stop_after=None, log_every=1, validate_every=1000):
        self.events, self.stop_after = [], stop_after
        self.losses, self.norms = losses or {}, norms or {}
        self.hooks = Hooks(
            log=self._log,
            validate=lambda step, state: self.events.append(("validate", step, int(state.step))),
            should_stop=lambda: self._count("step") == self.stop_after,
            log_every=log_every,
            validate_every=validate_every,
        )
        self.logged = {}

    def _count(self, kind):
        return sum(event[0] == kind for event in self.events)

    def _log(self, step, values):
        self.events.append(("log", step))
        self.logged[step] = values

    def step(self, state, constants, batch):
        done = int(state.step) + 1
        self.events.append(("step", done))
        return state._replace(step=jnp.int32(done)), {
            "loss": jnp.float32(self.losses.get(done, done)),
            "grad_norm": jnp.float32(self.norms.get(done, 1)),
        }

    def run(self, first=0, total=6, sizes=(4,)):
        state = TrainState(jnp.int32(first), None, None, None)
        batches = [_Batch(sizes[i % len(sizes)]) for i in range(first, total)]
        place = {"place": lambda batch: batch}
        return train(state, None, batches, self.step, self.hooks, first_step=first, total_steps=total, **place)


def test_metrics_are_read_one_step_after_they_were_dispatched():
    record = _Record()
    record.run(total=3)
    assert record.events[:5] == [("step", 1), ("step", 2), ("log", 1), ("step", 3), ("log", 2)]
    assert ("log", 3) in record.events
    assert {step: values["loss"] for step, values in record.logged.items()} == {1: 1.0, 2: 2.0, 3: 3.0}


def test_only_every_nth_step_and_the_last_are_logged():
    record = _Record(log_every=4)
    record.run(total=10)
    assert sorted(record.logged) == [4, 8, 10]


def test_validation_comes_on_time_with_the_state_of_its_step_and_once_at_the_end():
    record = _Record(validate_every=3)
    record.run(total=7)
    assert [e for e in record.events if e[0] == "validate"] == [("validate", s, s) for s in (3, 6, 7)]
    record = _Record(validate_every=3)
    record.run(total=6)
    assert [e[1] for e in record.events if e[0] == "validate"] == [3, 6]


def test_a_stop_ends_after_the_step_under_way_and_still_logs_it():
    record = _Record(stop_after=4)
    state, done, _ = record.run(total=10)
    assert done == int(state.step) == 4
    assert sorted(record.logged) == [1, 2, 3, 4]


def test_a_continued_run_counts_from_where_it_was():
    record = _Record(log_every=5, validate_every=5)
    state, done, _ = record.run(first=7, total=12)
    assert done == int(state.step) == 12
    assert sorted(record.logged) == [10, 12]
    assert [e[1] for e in record.events if e[0] == "validate"] == [10, 12]


def test_a_finished_run_has_nothing_to_do():
    record = _Record()
    state, done, meter = record.run(first=6, total=6)
    assert done == int(state.step) == 6 and record.events == [] and meter.rates()["occupancy"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bad", [1, 3, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(value, bad):
    record = _Record(losses={bad: value})
    with pytest.raises(InputError, match=rf"loss is (nan|inf) at step {bad};.*--lr"):
        record.run(total=6)
    assert bad not in record.logged


def test_a_state_after_a_loss_that_is_not_finite_is_never_validated_or_saved():
    record = _Record(losses=dict.fromkeys(range(2, 40), float("nan")), log_every=20, validate_every=5)
    with pytest.raises(InputError, match="step 5;"):
        record.run(total=40)
    assert not [e for e in record.events if e[0] == "validate"]


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_state_is_validated_or_kept():
    record = _Record(norms={5: float("inf")}, log_every=20, validate_every=5)
    with pytest.raises(InputError, match="gradient norm is inf at step 5;"):
        record.run(total=40)
    record = _Record(norms={5: float("nan")}, log_every=20, stop_after=5)
    with pytest.raises(InputError, match="gradient norm is nan at step 5;"):
        record.run(total=40)
    assert not [e for e in record.events if e[0] == "validate"]


def test_throughput_counts_real_content_and_forgets_the_first_step_of_each_shape():
    record = _Record()
    *_, meter = record.run(total=6, sizes=(4, 8))  # shapes 4 8 4 8 4 8: the first two compile
    assert (meter.steps, meter.structures, meter.atoms) == (4, 8, 20)
    assert meter.rates()["occupancy"] == pytest.approx(12 / 24)
    assert set(meter.rates()) == {"structures_per_second", "atoms_per_second", "steps_per_second", "occupancy"}


class _Calls(_Record):
    """The same with calls of `length` steps."""

    def call(self, state, constants, batch):
        metrics = []
        for _ in range(batch.length):
            state, values = self.step(state, constants, batch)
            metrics.append(values)
        return state, {name: jnp.stack([m[name] for m in metrics]) for name in metrics[0]}

    def run(self, first, total, length):
        state = TrainState(jnp.int32(first), None, None, None)
        batches = []
        for call in calls.plan_calls(first, total, (self.hooks.validate_every,), length):
            batches.append(_Batch())
            batches[-1].length = call.length
        place = {"place": lambda batch: batch}
        return train(state, None, batches, self.call, self.hooks, first_step=first, total_steps=total, **place)


def test_calls_of_several_steps_log_each_step_and_validate_on_time():
    record = _Calls(log_every=2, validate_every=6)
    state, done, _ = record.run(0, 15, 4)
    assert done == int(state.step) == 15
    assert {step: values["loss"] for step, values in record.logged.items()} == {
        s: float(s) for s in (2, 4, 6, 8, 10, 12, 14, 15)
    }
    assert [e for e in record.events if e[0] == "validate"] == [("validate", s, s) for s in (6, 12, 15)]


def test_a_loss_inside_a_call_that_is_not_finite_is_named_by_its_step():
    record = _Calls(losses={6: float("nan")})
    with pytest.raises(InputError, match="loss is nan at step 6;"):
        record.run(0, 16, 4)


def test_a_meter_that_saw_nothing_reports_zero():
    assert set(Meter().rates().values()) == {0}


def test_evaluation_sums_over_batches_in_float64():
    def eval_step(params, constants, batch):
        return {"loss": jnp.float32(batch), "count": jnp.int32(1), "by_task": jnp.array([batch, 1.0])}

    sums = evaluate(None, None, [2.0**24, 1.0, 1.0], eval_step)
    assert sums["loss"] == 2**24 + 2 and sums["count"] == 3 and sums["loss"].dtype == np.float64
    np.testing.assert_array_equal(sums["by_task"], [2**24 + 2, 3])


def test_a_checkpoint_is_saved_at_every_epochs_end_whether_or_not_validations_fall_there():
    record = _Record(validate_every=4)
    record.hooks = dataclasses.replace(
        record.hooks, save=lambda step, state: record.events.append(("save", step, int(state.step))), save_every=5
    )
    record.run(total=11)
    assert [event for event in record.events if event[0] == "save"] == [("save", 5, 5), ("save", 10, 10)]
    assert [event[1] for event in record.events if event[0] == "validate"] == [4, 8, 11]

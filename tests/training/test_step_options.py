"""Compiler options of steps: a few on GPUs, which the environment's XLA_FLAGS can take back one by one."""

import jax
import optax
import pytest

from jaxatoms.ops.target import compiling_for, step_options
from jaxatoms.training.step import make_eval_step, make_train_step


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_have_no_options(platform):
    with compiling_for(platform):
        assert step_options() is None


def test_flags_of_the_environment_come_first(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    with compiling_for("gpu"):
        both = step_options()
        monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_allow_excess_precision=true")
        assert step_options() == {name: both[name] for name in both if name != "xla_allow_excess_precision"}
        monkeypatch.setenv("XLA_FLAGS", "--xla_allow_excess_precision")
        assert "xla_allow_excess_precision" not in step_options(), "true without a value"
    assert both["xla_allow_excess_precision"] is False and len(both) == 2


def test_training_and_evaluation_are_compiled_with_them(monkeypatch):
    given, jit = [], jax.jit

    def watch(function, **options):
        given.append(options.get("compiler_options"))
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", watch)
    with compiling_for("gpu"):
        make_train_step(lambda *_: None, optax.identity(), (), ema_decay=0.9)
        make_eval_step(lambda *_: None, ())
        assert given == [step_options()] * 2

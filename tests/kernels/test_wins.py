"""What `auto` chooses: what was measured to be faster, and without a measurement plain JAX."""

import jax.numpy as jnp
import pytest

from jaxatoms.ops import dispatch, wins
from jaxatoms.ops.target import compiling_for


def test_nothing_was_measured_yet():
    assert wins.WINS == ()


def test_a_measured_win_counts_on_its_chip_and_for_its_arguments():
    table = [wins.Win("double", "fast", "H200", lambda x: x.shape[0] > 100, "a note")]
    long, short = jnp.ones(200), jnp.ones(10)
    with compiling_for("gpu", "NVIDIA H200"):
        assert wins.measured("double", [long], table) == "fast"
        assert wins.measured("double", [short], table) is None
        assert wins.measured("half", [long], table) is None
    for other in ("NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"):
        with compiling_for("gpu", other):
            assert wins.measured("double", [long], table) is None


def test_auto_takes_the_measured_implementation(monkeypatch):
    @dispatch.operation
    def double(x):
        return 2 * x

    @dispatch.implements("double", "fast")
    def _(x):
        if x == 0:
            raise dispatch.Unsupported("zero")
        return x + x + 1  # to tell it apart

    with dispatch.using(double="auto"):
        assert double(1) == 2
        monkeypatch.setattr(wins, "measured", lambda operation, args: "fast")
        assert double(1) == 3
        with pytest.raises(dispatch.Unsupported):
            double(0, implementation="fast")
        assert double(0) == 0, "plain JAX takes what a kernel cannot"
    assert double(1) == 2
    monkeypatch.delitem(dispatch._implementations, "double")

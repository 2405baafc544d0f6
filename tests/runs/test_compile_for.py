"""What is read off a compiled program, and topologies that do not exist."""

import dataclasses

import jax
import pytest

from jaxatoms.runs import compile_for
from jaxatoms.types import InputError

STEP = compile_for.Compiled(
    topology="v5e:4x4", n_device=16, seconds=1.0, flops=197e12, bytes_accessed=9e12,
    parts={"quadruplets": 800_000_000_000, "other": 19_000_000_000}, arguments=0, temporaries=0,
    collectives={"all-reduce": 200_000_000}, structures=100.0, edges=64,
)  # fmt: skip


def test_the_roofline_counts_passes_cores_and_the_ring():
    times = compile_for.bounds(STEP, "bfloat16")
    assert times == pytest.approx({"arithmetic": 1.0, "memory": 1.0, "all-reduce": 2 * 15 / 16 * 1e-3})
    assert compile_for.bounds(STEP, "float32")["arithmetic"] == pytest.approx(6)
    one_core = dataclasses.replace(STEP, topology="v4:2x2x2", flops=275e12 / 2)
    assert compile_for.bounds(one_core, "bfloat16")["arithmetic"] == pytest.approx(1)
    assert compile_for.step_seconds(times) == pytest.approx(1 + 1.875e-3)


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4xx4", "cpu:1"])
def test_unknown_topologies_are_refused_in_one_line(name):
    with pytest.raises(InputError, match="use v4, v5e, v5p, v6e with a shape"):
        compile_for.find_topology(name)


def test_a_step_that_does_not_fit_is_one_line():
    class Large:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries "
                "(18.31G) exceeds available HBM (15.75G). HLO module: jit_update."
            )

    with pytest.raises(InputError, match=r"does not fit into a chip \(temporaries take 18.31G of 15.75G\); lower"):
        compile_for._fitting(Large(), "v5e:2x2")


@pytest.mark.parametrize(("name", "devices"), [("v4:2x2x1", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x2", 4)])
def test_topologies_are_found_without_a_tpu(name, devices):
    pytest.importorskip("libtpu")
    assert len(compile_for.find_topology(name).devices) == devices

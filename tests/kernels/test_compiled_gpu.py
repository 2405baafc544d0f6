"""The kernels for GPUs, compiled for an H200 that is not there: registers, shared memory, launches, bytes, products."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxatoms.models.common.precision import Precision
from jaxatoms.ops import dispatch
from jaxatoms.ops.residual import residual_pair
from jaxatoms.ops.target import compiling_for
from jaxatoms.tools import hlo
from jaxatoms.tools.targets import find_target
from kernels.residual_pair import gpu
from kernels.residual_pair.arguments import GPU_WIDTHS

ROWS = 304  # two blocks and a part of a third
BARRIER = 8  # bytes
LARGEST = 227 * 1024  # bytes of shared memory that a block may have on Hopper (CUDA C++ Programming Guide)


def _shapes(width, lead=()):
    place = jax.sharding.SingleDeviceSharding(find_target("h200").devices[0])
    x = jax.ShapeDtypeStruct((*lead, ROWS, width), jnp.bfloat16, sharding=place)
    w = jax.ShapeDtypeStruct((*lead, width, width), jnp.float32, sharding=place)
    return x, w, w


def _gradient(x, w1, w2):
    pair = lambda *args: residual_pair(Precision(matmul="bfloat16"), *args)  # noqa: E731
    out, pull = jax.vjp(pair, x, w1, w2)
    return out, pull(x)


def _compiled(function, shapes):
    with compiling_for("gpu"), dispatch.using_kernels("mosaic_gpu"):
        return jax.jit(function).lower(*shapes).compile(compiler_options=find_target("h200").options)


@pytest.mark.parametrize("width", GPU_WIDTHS)
def test_a_layer_with_its_gradient_has_the_launches_traffic_and_products_of_a_hand_count(width):
    pytest.importorskip("jax_plugins.xla_cuda12")
    launched = hlo.launches(_compiled(_gradient, _shapes(width)).as_text())
    array, weight, product = 2 * ROWS * width, 2 * width * width, 2 * ROWS * width * width
    assert len(launched) == 2 + 2 + 2  # weights to bfloat16, two kernels, gradients of the weights
    forward, backward = 5 * array + 2 * weight, 6 * array + 2 * weight
    assert sum(one.bytes for one in launched) == forward + backward + 2 * (2 + 1) * weight + 2 * (
        2 * array + 2 * weight
    )
    assert hlo.products_by_precision(launched) == {"bfloat16": (6 * product, 4)}


def test_stacked_layers_are_one_kernel_each_way():
    pytest.importorskip("jax_plugins.xla_cuda12")
    launched = hlo.launches(_compiled(jax.vmap(_gradient), _shapes(512, (5,))).as_text())
    assert len(launched) == 6
    assert hlo.products_by_precision(launched) == {"bfloat16": (5 * 6 * 2 * ROWS * 512 * 512, 4)}


@pytest.mark.parametrize("width", GPU_WIDTHS)
def test_no_register_is_spilled(width):
    """In a process of its own: what Mosaic writes down is chosen when it is loaded."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    if not jax.__version__.startswith("0.10."):
        pytest.skip("jax 0.11.2 spills 124 bytes at width 512; registers were fitted with 0.10.1")
    test = f"import test_compiled_gpu as t; t._compiled(t._gradient, t._shapes({width}))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run([sys.executable, "-c", test], env=environment, capture_output=True, text=True, check=True)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stdout + done.stderr)
    assert spilled == [("0", "0"), ("0", "0")], done.stdout + done.stderr
    assert "serialized" not in done.stdout + done.stderr  # wgmma one after the other for want of registers


@pytest.mark.parametrize("width", GPU_WIDTHS)
def test_shared_memory_suffices(width):
    x, w = jnp.zeros((ROWS, width), jnp.bfloat16), jnp.zeros((width, width), jnp.bfloat16)
    calls = (lambda x, w: gpu.forward(x, w, w, True)), (lambda x, w: gpu.backward(x, x, x, w, w))
    for call in calls:
        (scratch,) = _scratch(jax.make_jaxpr(call)(x, w).jaxpr)
        assert sum(scratch) <= LARGEST


def _scratch(jaxpr) -> list[list[int]]:
    """Bytes of each array that the groups of a kernel share; those of bfloat16 are multiples of 1024, as TMA asks."""
    found = []
    for eqn in jaxpr.eqns:
        inner = next((eqn.params[key] for key in ("jaxpr", "call", "call_jaxpr") if key in eqn.params), None)
        if eqn.primitive.name == "run_scoped" and eqn.params["collective_axes"]:
            avals = [var.aval.inner_aval for var in inner.invars]
            assert all(aval.size * 2 % 1024 == 0 for aval in avals if aval.dtype == jnp.bfloat16)
            found.append([aval.size * (2 if aval.dtype == jnp.bfloat16 else BARRIER) for aval in avals])
        elif inner is not None:
            found += _scratch(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize("n", [1, 300])
def test_any_number_of_rows_compiles(n):
    pytest.importorskip("jax_plugins.xla_cuda12")
    x, *weights = _shapes(256)
    _compiled(_gradient, (jax.ShapeDtypeStruct((n, 256), x.dtype, sharding=x.sharding), *weights))

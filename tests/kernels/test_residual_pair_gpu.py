"""The kernels for GPUs, run by the interpreter of `fixtures.mosaic_gpu`: values, gradients, waiting, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import mosaic_gpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxatoms.models.common.precision import Precision
from jaxatoms.ops import dispatch
from jaxatoms.ops.residual import residual_pair
from jaxatoms.ops.target import compiling_for
from kernels.residual_pair import gpu, reference
from kernels.residual_pair.arguments import Case

BF16 = Precision(matmul="bfloat16")
# What the second product reads, a1 or g1, and the slopes are rounded to bfloat16, 2^-9 of each value; errors are
# compared with the largest value.
TOLERANCE = 1e-2
ORDERS = [{"late": late, "backwards": backwards} for late, backwards in itertools.product((False, True), repeat=2)]


def _arrays(n, c=256, seed=0):
    x, w1, w2 = Case("test", n, c, jnp.bfloat16).arrays(seed)
    return x, w1, w2, jax.random.normal(jax.random.key(seed + 1), (n, c), jnp.bfloat16)


def _pulled(x, w1, w2, g):
    out, pull = jax.vjp(gpu.residual_pair, x, w1, w2)
    return out, pull(g)


def _expected(x, w1, w2, g):
    return reference.residual_pair(x, w1, w2), reference.gradients(x, w1, w2, g)


def _close(ours, expected, tolerance=TOLERANCE):
    for one, two in zip(ours, jax.tree.leaves(expected), strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * np.abs(two).max())


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("n, c", [(1, 256), (64, 256), (65, 384), (130, 512)])  # around one and several blocks
def test_values_and_gradients_are_those_of_the_reference(n, c, order):
    arrays = _arrays(n, c)
    _close(mosaic_gpu.run(_pulled, *arrays, **order), _expected(*arrays))
    _close(mosaic_gpu.run(gpu.residual_pair, *arrays[:3], **order), [reference.residual_pair(*arrays[:3])])


def test_weights_may_be_bfloat16():
    x, w1, w2, g = _arrays(70)
    arrays = (x, w1.astype(jnp.bfloat16), w2.astype(jnp.bfloat16), g)
    found = mosaic_gpu.run(_pulled, *arrays, late=True)
    expected = _expected(*arrays)
    assert found[2].dtype == found[3].dtype == jnp.bfloat16
    _close([found[0], *(one.astype(np.float32) for one in found[2:])], [expected[0], *expected[1][1:]])


def test_several_layers_at_once_are_each_their_own():
    arrays = [jnp.stack(parts) for parts in zip(*(_arrays(150, seed=seed) for seed in range(3)), strict=True)]
    _close(mosaic_gpu.run(jax.vmap(_pulled), *arrays, late=True), jax.vmap(_expected)(*arrays))


@pytest.fixture
def without(monkeypatch):
    """Has the kernels traced without one of Pallas' functions."""

    def leave_out(name):
        jax.clear_caches()
        monkeypatch.setattr(plgpu, name, lambda *args, **kwargs: None)

    yield leave_out
    jax.clear_caches()


@pytest.mark.parametrize(("missing", "says"), [
    ("commit_smem", "not committed"), ("barrier_arrive", "waits for another one"),
])  # fmt: skip
def test_the_interpreter_finds_what_is_missing(without, missing, says):
    without(missing)
    with pytest.raises(RuntimeError, match=says):
        mosaic_gpu.run(_pulled, *_arrays(70), late=True)


@pytest.mark.parametrize("missing", ["wait_smem_to_gmem", "barrier_wait"])
def test_the_interpreter_gives_wrong_values_where_a_wait_is_missing(without, missing):
    arrays = _arrays(70)
    without(missing)
    with pytest.raises(AssertionError):
        _close(mosaic_gpu.run(_pulled, *arrays, late=True), _expected(*arrays))


def test_no_group_of_threads_waits_for_registers_that_there_are_not():
    groups = gpu.GROUPS + 1
    at_launch = 65536 // (groups * 128) // 8 * 8  # per thread: registers of a multiprocessor, in steps of 8
    multiply, copy = gpu.REGISTERS
    assert gpu.GROUPS * multiply + copy <= groups * at_launch


@pytest.mark.parametrize(("x", "w", "says"), [
    ((0, 256), (256, 256), r"weights \[c, c\]"), ((5, 256), (256, 128), r"weights \[c, c\]"),
    ((5, 1024), (1024, 1024), "widths 256, 384, 512, got 1024"), ((5, 8), (8, 8), "got 8"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(x, w, says):
    with pytest.raises(ValueError, match=says):
        gpu.residual_pair(jnp.zeros(x, jnp.bfloat16), jnp.zeros(w), jnp.zeros(w))


def test_a_float32_stream_and_a_second_derivative_are_refused():
    x, w1, w2, _ = _arrays(5)
    with pytest.raises(ValueError, match="bfloat16, got float32"):
        gpu.residual_pair(x.astype(jnp.float32), w1, w2)

    def squared(x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(gpu.residual_pair(x, w1, w2).astype(jnp.float32)))(x) ** 2)

    with pytest.raises(ValueError, match="differentiates once"):
        jax.make_jaxpr(jax.grad(squared))(x)


def test_the_operation_takes_the_kernel_for_edges_and_not_for_atoms():
    x, w1, w2, _ = _arrays(5)
    with dispatch.using_kernels("mosaic_gpu"):
        with pytest.raises(ValueError, match="NVIDIA"):
            residual_pair(BF16, x, w1, w2)
        with compiling_for("gpu"):
            traced = str(jax.make_jaxpr(lambda *args: residual_pair(BF16, *args))(x, w1, w2))
            atoms = str(jax.make_jaxpr(lambda *args: residual_pair(BF16, *args))(x.astype(jnp.float32), w1, w2))
            assert "core_map" in traced and "core_map" not in atoms
            with pytest.raises(ValueError, match="bfloat16"):
                residual_pair(Precision(), x, w1, w2)
            with pytest.raises(ValueError, match="got 8"):
                residual_pair(BF16, x[:, :8], w1[:8, :8], w2[:8, :8])

"""The residual pair: values and gradients of the reference, of the kernel for TPUs and of the model's own layer.

Ragged rows included. The kernel for GPUs has tests of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.models.common.precision import Precision
from jaxatoms.ops import dispatch
from jaxatoms.ops.residual import residual_pair
from kernels.residual_pair import reference, tpu
from kernels.residual_pair.arguments import CASES, Case

BF16 = Precision(matmul="bfloat16")


def _arrays(n, c=8, dtype=jnp.float32, seed=0):
    x, w1, w2 = Case("test", n, c, dtype).arrays(seed)
    return x, w1, w2, jax.random.normal(jax.random.key(seed + 1), (n, c), dtype)


def _close(ours, expected, tolerance=2e-6):
    """Equal up to the order of float32 sums, relative to the largest value."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("n", [1, 255, 256, 257, 512, 513, 1100])  # around one and several blocks of either pass
def test_values_and_gradients_are_those_of_the_reference(n):
    x, w1, w2, g = _arrays(n)
    out, pull = jax.vjp(lambda *args: tpu.residual_pair(*args, True), x, w1, w2)
    _close(out, reference.residual_pair(x, w1, w2))
    for ours, expected in zip(pull(g), reference.gradients(x, w1, w2, g), strict=True):
        # A pre-activation on the edge between two bfloat16 numbers may round either way.
        _close(ours, expected, 2e-3)


@pytest.mark.parametrize("width", [8, 128])
def test_the_reference_is_the_layer_of_the_model(width):
    x, w1, w2, g = _arrays(300, width)
    out, pull = jax.vjp(lambda *args: residual_pair(BF16, *args), x, w1, w2)
    _close(reference.residual_pair(x, w1, w2), out)
    for ours, expected in zip(reference.gradients(x, w1, w2, g), pull(g), strict=True):
        _close(ours, expected, 2e-3)


def test_the_gradients_are_those_of_the_exact_function_to_the_precision_of_bfloat16():
    def exact(x, w1, w2):
        act = lambda y: jax.nn.silu(y) / 0.6  # noqa: E731
        return (x + act(act(x @ w1) @ w2)) / np.sqrt(2)

    x, w1, w2, g = _arrays(64)
    with jax.default_matmul_precision("highest"):
        out, pull = jax.vjp(exact, x, w1, w2)
    _close(reference.residual_pair(x, w1, w2), out, 1e-2)
    for ours, expected in zip(reference.gradients(x, w1, w2, g), pull(g), strict=True):
        _close(ours, expected, 2e-2)


def test_a_bfloat16_stream_keeps_its_type():
    x, w1, w2, g = _arrays(300, dtype=jnp.bfloat16)
    out, pull = jax.vjp(lambda *args: tpu.residual_pair(*args, True), x, w1, w2)
    gx, gw1, gw2 = pull(g)
    assert out.dtype == gx.dtype == jnp.bfloat16 and gw1.dtype == gw2.dtype == jnp.float32
    _close(out, reference.residual_pair(x, w1, w2), 1e-2)


def test_what_lies_past_the_last_row_reaches_no_result():
    x, w1, w2, g = _arrays(600)
    _, pull = jax.vjp(lambda *args: tpu.residual_pair(*args, True), x[:300], w1, w2)
    padded = jnp.where(jnp.arange(600)[:, None] < 300, g, 0)
    _, pull_padded = jax.vjp(lambda *args: tpu.residual_pair(*args, True), x, w1, w2)
    for short, long in zip(pull(g[:300])[1:], pull_padded(padded)[1:], strict=True):
        _close(short, long)


@pytest.mark.parametrize(("n", "c", "weight"), [(0, 8, (8, 8)), (5, 8, (8, 4)), (5, 8, (4, 4))])
def test_shapes_that_do_not_fit_are_refused(n, c, weight):
    with pytest.raises(ValueError, match=r"weights \[c, c\]"):
        tpu.residual_pair(jnp.zeros((n, c)), jnp.zeros(weight), jnp.zeros(weight), True)


def test_the_model_takes_the_kernel_only_where_it_is_asked_to():
    from flax import nnx

    from jaxatoms.models.gemnet_oc.layers import Residual

    x, layer = _arrays(40)[0], Residual(8, nnx.Rngs(0), Precision(matmul="bfloat16"))
    plain = layer(x)
    assert "pallas_call" not in str(jax.make_jaxpr(layer)(x))
    with dispatch.using(residual_pair="pallas_tpu"):
        assert "pallas_call" in str(jax.make_jaxpr(layer)(x))
        _close(layer(x), plain)
        with pytest.raises(ValueError, match="bfloat16"):
            Residual(8, nnx.Rngs(0), Precision())(x)
    assert dispatch.implementations("residual_pair") == ["xla", "pallas_tpu", "mosaic_gpu"]
    unknown = "residual_pair has no implementation 'triton'; known are xla, pallas_tpu, mosaic_gpu"
    with pytest.raises(ValueError, match=unknown), dispatch.using(residual_pair="triton"):
        pass


def test_the_named_cases_have_distinct_shapes():
    assert len({(case.n, case.c, jnp.dtype(case.dtype).name) for case in CASES}) == len(CASES)
    x, w1, _ = Case("small", 10, 4).arrays()
    assert x.shape == (10, 4) and w1.shape == (4, 4)

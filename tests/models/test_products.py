"""Products in bfloat16 and float32: every gradient is again such a product, rounded only on the way in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.ops import products
from jaxatoms.ops.products import product, product_over_two, written_out
from jaxatoms.ops.target import compiling_for

SHAPES = {
    "plain": ((300, 64), (64, 32), False),
    "wide": ((40, 16), (16, 96), False),
    "turned": ((300, 64), (32, 64), True),
    "batched": ((5, 40, 24), (5, 24, 16), False),
    "batched, turned": ((5, 40, 24), (5, 16, 24), True),
    "a column": ((30, 8), (8, 1), False),
    "a row": ((1, 8), (8, 16), False),
    "no rows": ((0, 8), (8, 16), False),
}


def _rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def _factors(name):
    x_shape, w_shape, turned = SHAPES[name]
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape))
    out = (*x_shape[:-1], w_shape[-2] if turned else w_shape[-1])
    return x, w, rng.normal(size=out).astype(np.float32), turned


@pytest.mark.parametrize("how", ["bfloat16", "highest"])
@pytest.mark.parametrize("name", SHAPES)
def test_products_and_gradients_are_those_of_the_rounded_factors(name, how):
    x, w, g, turned = _factors(name)
    out, pull = jax.jit(lambda x, w, g: (lambda y, f: (y, f(g)))(*jax.vjp(
        lambda x, w: product(x, w, how, jnp.float32, turned), x, w)))(x, w, g)  # fmt: skip
    if how == "bfloat16":
        x, w, g = map(_rounded, (x, w, g))
    columns = w.swapaxes(-1, -2) if turned else w
    np.testing.assert_allclose(out, x @ columns, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(pull[0], g @ columns.swapaxes(-1, -2), rtol=1e-5, atol=1e-4)
    of_columns = x.swapaxes(-1, -2) @ g
    np.testing.assert_allclose(pull[1], of_columns.swapaxes(-1, -2) if turned else of_columns, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("how", "tolerance"), [("bfloat16", 0.1), ("highest", 1e-5)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_gradient_of_a_gradient_compiles_and_agrees(name, how, tolerance):
    x, w, g, turned = _factors(name)

    def squared_gradient(product):
        inner = jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w)) * g))
        return jax.jit(jax.grad(lambda x, w: jnp.sum(inner(x, w) ** 2), (0, 1)))(x, w)

    columns = (lambda w: w.mT) if turned else (lambda w: w)
    exact = squared_gradient(lambda x, w: jnp.matmul(x, columns(w), precision="highest"))
    ours = squared_gradient(lambda x, w: product(x, w, how, jnp.float32, turned))
    for a, b in zip(exact, ours, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a)


def test_results_are_stored_in_the_dtype_asked_for_and_gradients_in_the_factors_own():
    x, w = jnp.ones((6, 4), jnp.bfloat16), jnp.ones((4, 8), jnp.float32)
    out, pull = jax.vjp(lambda x, w: product(x, w, "bfloat16", jnp.bfloat16), x, w)
    assert out.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16, jnp.float32]


def test_a_cpu_multiplies_every_large_product_in_bfloat16():
    """A transposition inside a product would send it, as float32, to a slower routine."""
    if jax.default_backend() != "cpu":
        pytest.skip("about XLA:CPU")
    x, w = jnp.ones((3000, 128), jnp.bfloat16), jnp.ones((128, 64), jnp.float32)
    gradient = jax.grad(lambda x, w: jnp.sum(product(x, w, "bfloat16", jnp.float32) ** 2), (0, 1))
    lines = jax.jit(gradient).lower(x, w).compile().as_text().splitlines()
    heads = [max(j for j in range(i) if lines[j].endswith("{")) for i, line in enumerate(lines) if " dot(" in line]
    assert len(heads) == 3
    assert all(lines[head].count(": bf16[") == 2 and ": f32[" not in lines[head] for head in heads)


def test_a_swapped_factor_is_in_memory_on_a_cpu():
    """XLA:CPU has no fast routine for batches of products with a transposed first factor."""
    if jax.default_backend() != "cpu":
        pytest.skip("about XLA:CPU")
    x, w = jnp.ones((50, 30, 49)), jnp.ones((50, 30, 16))
    program = jax.jit(lambda x, w: product(products.swapped(x), w, "highest", jnp.float32)).lower(x, w).compile()
    (dot,) = (line for line in program.as_text().splitlines() if " dot(" in line)
    assert "lhs_contracting_dims={2}" in dot


def test_gradients_of_float32_products_need_no_branch():
    """A branch compiles for as long as several products take."""
    if jax.default_backend() != "cpu":
        pytest.skip("about XLA:CPU")
    x, w = jnp.ones((3000, 64)), jnp.ones((64, 64))
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(product(x, w, "highest", jnp.float32) ** 2), (0, 1)))
    assert "conditional" not in gradient.lower(x, w).compile().as_text()


@pytest.mark.parametrize("how", ["bfloat16", "highest"])
def test_infinite_and_missing_numbers_stay_what_they_are(how):
    x = jnp.array([[jnp.inf, 1.0], [jnp.nan, 2.0]])
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(product(x, w, how, jnp.float32))))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, [[np.nan] * 3, [3.0] * 3])


@pytest.mark.parametrize(("target", "dtype"), [("gpu", "bfloat16"), ("tpu", "float32"), ("cpu", "float32")])
def test_only_a_gpu_is_asked_for_a_narrow_result(target, dtype):
    x, w = jnp.ones((6, 4), jnp.bfloat16), jnp.ones((4, 8), jnp.bfloat16)
    with compiling_for(target):
        program = jax.make_jaxpr(lambda x, w: product(x, w, "bfloat16", jnp.bfloat16))(x, w)
    assert f"{'bf16' if dtype == 'bfloat16' else 'f32'}[6,8] = dot_general" in str(program)


@pytest.mark.parametrize("target", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("leading", [(5,), (5, 2)])
def test_a_product_over_two_axes_agrees_with_einsum_to_the_second_derivative(leading, target):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(*leading, 3, 4), (3, 4, 6)])

    def results(product):
        squared = lambda x, w: jnp.sum(jnp.sin(product(x, w)))  # noqa: E731
        inner = jax.grad(squared, (0, 1))
        outer = jax.grad(lambda x, w: sum(jnp.sum(g**2) for g in inner(x, w)), (0, 1))
        return product(x, w), inner(x, w), outer(x, w)

    expected = results(lambda x, w: jnp.einsum("...ic,ico->...o", x, w, precision="highest"))
    with compiling_for(target):
        found = results(lambda x, w: product_over_two(x, w, "highest", jnp.float32))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_product_over_two_axes_has_the_dtypes_of_a_product():
    x, w = jnp.ones((6, 2, 4), jnp.bfloat16), jnp.ones((2, 4, 8), jnp.float32)
    for target in ("cpu", "tpu"):
        with compiling_for(target):
            out, pull = jax.vjp(lambda x, w: product_over_two(x, w, "bfloat16", jnp.bfloat16), x, w)
            assert [a.dtype for a in (out, *pull(out))] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]


def test_a_sum_of_few_terms_written_out_is_a_product():
    x, w, *_ = _factors("batched")
    np.testing.assert_allclose(written_out(x, w), x @ w, rtol=1e-5, atol=1e-5)

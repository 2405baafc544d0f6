"""Products whose gradients are gathered over all calls, or written differently on GPUs: values and two derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.ops import products

ROWS, COLUMNS = 4, 2


def _arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, ROWS, 5)), rng.normal(size=(3, 5, COLUMNS))


def _derivatives(function, w, x):
    """Value, gradients, and the gradients of a function of the gradients, which forces from energies need."""
    gradient = jax.grad(function, (0, 1))

    def of_gradients(w, x):
        gw, gx = gradient(w, x)
        return jnp.sum(jnp.cos(gw)) + jnp.sum(jnp.sin(gx))

    return jax.jit(lambda w, x: (function(w, x), gradient(w, x), jax.grad(of_gradients, (0, 1))(w, x)))(w, x)


def _same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11), ours, theirs)


def _chain(multiply, factors, x):
    """Three blocks, each of which changes x by its product, as interaction blocks change their states."""
    total = 0
    for factor in factors:
        z = multiply(factor, jnp.sin(x))
        total += jnp.sum(jnp.cos(z) ** 3)
        x = x + jnp.sum(jnp.tanh(z), 1, keepdims=True)
    return total + jnp.sum(x**2)


@pytest.mark.parametrize("twice", [False, True])
def test_a_shared_factor_has_the_gradients_of_one_that_is_not(twice):
    def shared(w, x):
        factors = products.share(w, 3, COLUMNS, "highest", twice)
        return _chain(lambda factor, x: products.shared_product(factor, x, "highest"), factors, x)

    def plain(w, x):
        return _chain(lambda w, x: products.product(w, x, "highest", x.dtype), [w] * 3, x)

    with jax.enable_x64(True):
        _same(*(_derivatives(function, *_arrays()) for function in (shared, plain)))


@pytest.mark.parametrize(("twice", "count"), [(False, 1), (True, 3)])
def test_the_gradient_of_a_shared_factor_is_one_product_over_all_calls(twice, count):
    """With forces from energies there are more: of the backward pass, and of the derivative of the first."""

    def energy(w, x):
        factors = products.share(w, 3, COLUMNS, "highest", twice)
        return _chain(lambda factor, x: products.shared_product(factor, x, "highest"), factors, x)

    loss = energy if not twice else lambda w, x: jnp.sum(jax.grad(energy, 1)(w, x) ** 2)
    w, x = map(jnp.float32, _arrays())
    program = str(jax.make_jaxpr(jax.grad(loss))(w, x))
    of_the_factor = f"f32[{','.join(map(str, w.shape))}] = dot_general"
    assert 1 <= program.count(of_the_factor) <= count


def test_a_shared_factor_rounds_as_products_do():
    w, x = _arrays()
    w, x = jnp.asarray(w, jnp.bfloat16), jnp.asarray(x, jnp.float32)

    def total(w, x):
        (factor,) = products.share(w, 1, COLUMNS, "bfloat16", False)
        return jnp.sum(jnp.sin(products.shared_product(factor, x, "bfloat16").astype(jnp.float32)))

    def expected(w, x):
        return jnp.sum(jnp.sin(products.product(w, x, "bfloat16", w.dtype).astype(jnp.float32)))

    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(w, x) for f in (total, expected))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [g.dtype for g in ours[1]] == [jnp.bfloat16, jnp.float32]


def test_a_shared_factor_that_is_mapped_keeps_the_gradients_of_each_apart():
    def total(shared):
        def one(w, x):
            if not shared:
                return _chain(lambda w, x: products.product(w, x, "highest", x.dtype), [w] * 3, x)
            factors = products.share(w, 3, COLUMNS, "highest", False)
            return _chain(lambda factor, x: products.shared_product(factor, x, "highest"), factors, x)

        return lambda w, x: jnp.sum(jax.vmap(one)(w, x))

    with jax.enable_x64(True):
        w, x = (np.stack([array, 2 * array]) for array in _arrays())
        _same(*(jax.jit(jax.grad(total(shared), (0, 1)))(w, x) for shared in (True, False)))


def test_a_product_that_is_written_out_once_has_the_gradients_of_a_product():
    def of(multiply):
        return lambda w, x: jnp.sum(jnp.sin(multiply(w, x)) ** 3)

    with jax.enable_x64(True):
        w, x = _arrays()
        ours = _derivatives(of(lambda w, x: products.written_out_once(w, x, "highest")), w, x)
        _same(ours, _derivatives(of(jnp.matmul), w, x))

"""The bfloat16 policy: types in products and between them, forward and backward, and what it costs on golden files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden
from flax import nnx

from jaxatoms.models.common import indexing
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.layers import Dense, Residual, ScaleFactor

BF16 = Precision(matmul="bfloat16")


def _equations(jaxpr, name: str) -> list:
    """Every equation of this name in a program, those of inner programs included."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            found.append(eqn)
        for inner in jax.core.jaxprs_in_params(eqn.params):
            found += _equations(inner, name)
    return found


def _rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def test_a_product_and_its_gradients_are_rounded_only_on_the_way_in():
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((3, 50, 8), (8, 6), (3, 50, 6)))
    out, pull = jax.vjp(BF16.dot, x, w)
    gx, gw = pull(g)
    assert out.dtype == gx.dtype == gw.dtype == jnp.float32
    np.testing.assert_allclose(out, _rounded(x) @ _rounded(w), rtol=1e-5, atol=1e-5)
    rows = lambda a: _rounded(a).reshape(-1, a.shape[-1])  # noqa: E731
    np.testing.assert_allclose(gw, rows(x).T @ rows(g), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gx, _rounded(g) @ _rounded(w).T, rtol=8e-3, atol=1e-5)  # rounded like x


@pytest.mark.parametrize("layer", [Dense, Residual])
def test_edges_stay_bfloat16_and_gradients_of_weights_are_float32(layer):
    module = Dense(8, 8, nnx.Rngs(0), act=True, precision=BF16) if layer is Dense else Residual(8, nnx.Rngs(0), BF16)
    x = jax.random.normal(jax.random.key(0), (40, 8), jnp.bfloat16)
    graphdef, params = nnx.split(module)

    def loss(params, x):
        y = nnx.merge(graphdef, params)(x)
        assert y.dtype == jnp.bfloat16
        return jnp.sum(y.astype(jnp.float32) ** 2)

    of_params, of_x = jax.grad(loss, (0, 1))(params, x)
    assert of_x.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(of_params)} == {jnp.dtype(jnp.float32)}


def test_sums_of_bfloat16_rows_are_float32():
    x = jnp.full((300, 2), 1.0078125, jnp.bfloat16)  # in bfloat16 the sum would stop growing at 256
    table, index = jnp.arange(300)[None], jnp.zeros(300, jnp.int32)
    total, pull = jax.vjp(lambda x: indexing.sum_rows(x, table, index), x)
    np.testing.assert_allclose(total, 300 * 1.0078125)
    assert total.dtype == jnp.float32 and pull(total)[0].dtype == jnp.bfloat16


def _program(name: str, precision: Precision):
    """(loss of golden outputs, its gradients) of a golden file's model."""
    batch, _ = golden.batch(golden.read(name), np.float32)
    graphdef, params, rest = nnx.split(golden.model(name, np.float32, precision), nnx.Param, ...)

    def loss(params, batch):
        out = nnx.merge(graphdef, params, rest)(batch)
        return jnp.sum(out.energy) + jnp.sum(out.forces**2), out

    return jax.value_and_grad(loss, has_aux=True), params, batch


@pytest.mark.parametrize("name", ["tiny", "tiny_gradient"])
def test_no_product_mixes_types(name):
    """float32 times bfloat16 would run in float32 on a GPU, at a fraction of the rate."""
    function, params, batch = _program(name, BF16)
    products = _equations(jax.make_jaxpr(function)(params, batch).jaxpr, "dot_general")
    types = [{v.aval.dtype.name for v in eqn.invars} for eqn in products]
    assert all(len(kinds) == 1 for kinds in types)
    assert sum(kinds == {"bfloat16"} for kinds in types) > len(types) / 2


@pytest.mark.parametrize("name", ["tiny", pytest.param("tiny_gradient", marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_float32_to_the_precision_of_bfloat16(name):
    exact, narrow = (
        jax.jit(function)(params, batch)
        for function, params, batch in (_program(name, Precision()), _program(name, BF16))
    )
    scale = lambda x: max(float(jnp.abs(x).max()), 1e-12)  # noqa: E731
    for a, b in zip(jax.tree.leaves(exact[0]), jax.tree.leaves(narrow[0]), strict=True):
        assert b.dtype == jnp.float32 and float(jnp.abs(a - b).max()) < 0.03 * scale(a)
    for (path, a), b in zip(jax.tree.leaves_with_path(exact[1]), jax.tree.leaves(narrow[1]), strict=True):
        assert b.dtype == jnp.float32 and float(jnp.linalg.norm(a - b)) < 0.2 * float(jnp.linalg.norm(a)), path


@pytest.mark.parametrize("name", ["tiny", "tiny_gradient"])
def test_no_sum_over_rows_is_left_in_bfloat16(name):
    """Such a sum stops growing at 256 equal terms where hardware takes it literally."""
    function, params, batch = _program(name, BF16)
    sums = _equations(jax.make_jaxpr(function)(params, batch).jaxpr, "reduce_sum")
    assert sums and not [eqn for eqn in sums if eqn.invars[0].aval.dtype == jnp.bfloat16]


def test_a_fitted_factor_is_not_rounded():
    x = jnp.ones((3, 2), jnp.bfloat16)
    assert np.array_equal(ScaleFactor(1.005859375 / 2)(x), np.full((3, 2), 0.50390625))  # 1.00586 would round to 1.0078

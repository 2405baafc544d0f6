"""Matrix products whose gradients are such products again, to any order of reverse mode.

In bfloat16, JAX's own gradient would multiply float32 by bfloat16 (in float32 on a GPU) and round the gradients of
weights. In float32 the numbers are JAX's.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp

from jaxatoms.ops.target import platform

FEW_COLUMNS = 16  # channels of angular sums in narrow networks; variant S has 32 and 64, and would lose by it


def widened(x: jax.Array) -> jax.Array:
    """x in at least float32, for sums and activations of what is stored in less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(x: jax.Array, w: jax.Array, how: str, dtype, turned: bool = False) -> jax.Array:
    """[..., n, i] x [..., i, o] -> [..., n, o] in `dtype`; where `turned`, w is [..., o, i]. Leading axes are equal.

    `how` is "bfloat16" (factors rounded, float32 sums) or a precision of `jax.lax` for factors as they are. Gradients
    come in the factors' own dtypes.
    """
    batch = tuple(range(x.ndim - 2))
    dims = (((x.ndim - 1,), (w.ndim - (1 if turned else 2),)), (batch, batch))
    return _multiplied(x, w, dims, how, dtype)


def _multiplied(x: jax.Array, w: jax.Array, dims, how: str, dtype) -> jax.Array:
    if how != "bfloat16":
        common = jnp.promote_types(x.dtype, w.dtype)
        return jax.lax.dot_general(x.astype(common), w.astype(common), dims, precision=how).astype(dtype)
    # XLA:CPU multiplies bfloat16 natively only where the result is float32; cuBLAS rounds the sums as it writes them.
    result = dtype if platform() == "gpu" else jnp.float32
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, w, dims, preferred_element_type=result).astype(dtype)


def outer(x: jax.Array, g: jax.Array, how: str, dtype) -> jax.Array:
    """[..., n, i], [..., n, o] -> [..., i, o] in `dtype`: products summed over n."""
    # With the transposition as a part of the product XLA:CPU would multiply bfloat16 in float32, half as fast, and many
    # small float32 products of few columns at a third of the rate (a quarter of a step of gemnet_oc_tiny).
    narrow = x.ndim > 2 and g.shape[-1] <= FEW_COLUMNS
    if platform() != "cpu" or x.size == 0 or not (how == "bfloat16" or narrow):
        return product(x.mT, g, how, dtype)
    if how == "bfloat16":
        x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    (n, i), o = x.shape[-2:], g.shape[-1]
    if o * (n + i) < n * i:  # the smaller swap
        return _swapped(product(_swapped(g, g), x, how, dtype), x)
    return product(_swapped(x, g), g, how, dtype)


def _backward(how, dtype, turned, factors, g):
    x, w = factors
    if how == "bfloat16":
        g = g.astype(jnp.bfloat16)
    gw = outer(g, x, how, w.dtype) if turned else outer(x, g, how, w.dtype)
    return product(g, w, how, x.dtype, not turned), gw


product.defvjp(lambda x, w, how, dtype, turned: (product(x, w, how, dtype, turned), (x, w)), _backward)


def product_over_two(x: jax.Array, w: jax.Array, how: str, dtype) -> jax.Array:
    """[..., i, c] x [i, c, o] -> [..., o] in `dtype`, summed over i and c; `how` as for `product`.

    Where layouts have tiles (TPU), bringing i and c into one axis costs three passes over x.
    """
    if platform() == "cpu":
        flat = product(x.reshape(-1, w.shape[0] * w.shape[1]), w.reshape(-1, w.shape[2]), how, dtype)
        return flat.reshape(*x.shape[:-2], -1)
    rows = "nk"[: x.ndim - 2]
    return _contraction(x, w, f"{rows}ic,ico->{rows}o", how, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _contraction(x: jax.Array, w: jax.Array, spec: str, how: str, dtype) -> jax.Array:
    """As `jnp.einsum` of two factors that share no axis with the result."""
    left, right, out = re.split(",|->", spec)
    summed = [axis for axis in left if axis in right]
    dims = (tuple(map(left.index, summed)), tuple(map(right.index, summed))), ((), ())
    found = [axis for axis in left + right if axis not in summed]
    return _multiplied(x, w, dims, how, dtype).transpose([found.index(axis) for axis in out])


def _contraction_backward(spec, how, dtype, factors, g):
    (x, w), (left, right, out) = factors, re.split(",|->", spec)
    gx = _contraction(g, w, f"{out},{right}->{left}", how, x.dtype)
    return gx, _contraction(x, g, f"{left},{out}->{right}", how, w.dtype)


_contraction.defvjp(lambda x, w, *how: (_contraction(x, w, *how), (x, w)), _contraction_backward)


def written_out(x: jax.Array, w: jax.Array) -> jax.Array:
    """[..., n, i] x [..., i, o] -> [..., n, o] as a sum of i elementwise products, for a few i.

    XLA joins it to what comes before and after. A product reads and writes arrays in layouts of its own, which for a
    few terms costs an accelerator more than the product.
    """
    terms = [x[..., i, None] * w[..., None, i, :] for i in range(x.shape[-1])]
    return sum(terms[1:], terms[0])


def swapped(x: jax.Array) -> jax.Array:
    """x.mT; on a CPU in memory: a batched product with a transposed first factor runs at a fraction of the rate there.

    For factors that many products share; where one is used once, the branch costs more to compile than it saves.
    """
    return _swapped(x, x)


@jax.custom_vjp
def _swapped(x: jax.Array, after: jax.Array) -> jax.Array:
    """x.mT, in memory on a CPU, once `after` exists (the forward pass would keep x twice otherwise).

    XLA moves transpositions through everything but a branch, here on what is always true and XLA cannot know. (It does
    where it knows every number that the condition looks at, for instance to be zero; hence many.)
    """
    if platform() != "cpu":
        return x.mT
    some = after[0].reshape(-1), after.reshape(len(after), -1)[:, 0]
    always = jnp.all(0 * some[0] != 1) & jnp.all(0 * some[1] != 1)
    return jax.lax.cond(always, lambda x: x.mT, lambda x: jnp.zeros(x.mT.shape, x.dtype), x)


_swapped.defvjp(lambda x, after: (_swapped(x, after), None), lambda _, g: (g.mT, None))

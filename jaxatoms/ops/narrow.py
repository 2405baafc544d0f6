"""Products of bfloat16 with float32 sums, forward and backward.

JAX's own gradient would multiply float32 by bfloat16 (in float32 on a GPU) and round the gradients of weights. The
rules here are written with each other, so they differentiate to any order.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxatoms.ops.target import platform


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, w: jax.Array, dtype, turned: bool = False) -> jax.Array:
    """[..., n, i] x [..., i, o] -> [..., n, o] in `dtype`; where `turned`, w is [..., o, i]. Leading axes are equal.

    Factors are rounded to bfloat16, and gradients come in the factors' own dtypes.
    """
    batch = tuple(range(x.ndim - 2))
    dims = (((x.ndim - 1,), (w.ndim - (1 if turned else 2),)), (batch, batch))
    factors = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    # XLA:CPU multiplies bfloat16 natively only where the result is float32; cuBLAS rounds the sums as it writes them.
    result = dtype if platform() == "gpu" else jnp.float32
    return jax.lax.dot_general(*factors, dims, preferred_element_type=result).astype(dtype)


def outer(x: jax.Array, g: jax.Array, dtype) -> jax.Array:
    """[..., n, i], [..., n, o] -> [..., i, o] in `dtype`: products summed over n."""
    if platform() != "cpu":
        return product(x.mT, g, dtype)
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    if g.shape[-1] < x.shape[-1]:
        return _swapped(product(_swapped(g), x, dtype))
    return product(_swapped(x), g, dtype)


def _backward(dtype, turned, factors, g):
    x, w = factors
    g = g.astype(jnp.bfloat16)
    return product(g, w, x.dtype, not turned), outer(g, x, w.dtype) if turned else outer(x, g, w.dtype)


product.defvjp(lambda x, w, dtype, turned: (product(x, w, dtype, turned), (x, w)), _backward)


@jax.custom_vjp
def _swapped(x: jax.Array) -> jax.Array:
    """x.mT, in memory: XLA:CPU would make it a part of the product, which then runs at less than half the rate.

    It moves transpositions through everything but a loop whose number of passes (one) it does not know.
    """
    passes = 1 + (x.reshape(-1)[0] == jnp.inf).astype(jnp.int32)
    return jax.lax.fori_loop(0, passes, lambda _, __: x.mT, x.reshape(x.mT.shape))


_swapped.defvjp(lambda x: (_swapped(x), None), lambda _, g: (_swapped(g),))

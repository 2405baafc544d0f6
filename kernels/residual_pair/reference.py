"""The same function and its gradient in plain JAX: what the kernels are tested and measured against."""

import jax
import jax.numpy as jnp

GAIN = 1 / 0.6  # keeps unit variance (GemNet, arXiv 2106.08903)
HALF = 0.5**0.5


def silu(y: jax.Array) -> jax.Array:
    """Scaled SiLU, y * sigmoid(y) / 0.6."""
    return y * jax.nn.sigmoid(y) * GAIN


def silu_slope(y: jax.Array) -> jax.Array:
    """Its derivative."""
    s = jax.nn.sigmoid(y)
    return s * (1 + y * (1 - s)) * GAIN


def product(x: jax.Array, w: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
    """Matrix product over these axes of x and w: bfloat16 inputs, float32 sums and result."""
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(
        x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), dims, preferred_element_type=jnp.float32
    )


def residual_pair(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) in the dtype of x.

    Args:
      x: [n, c], any float dtype; w1, w2: [c, c].
    """
    y2 = product(silu(product(x, w1)), w2)
    return ((x.astype(jnp.float32) + silu(y2)) * HALF).astype(x.dtype)


def gradients(x, w1, w2, g) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients for x (dtype of x), w1, w2 (float32) of sum(g * residual_pair); g: [n, c]."""
    y1 = product(x, w1)
    y2 = product(silu(y1), w2)
    through = g.astype(jnp.float32) * HALF
    g2 = through * silu_slope(y2)
    g1 = product(g2, w2, (1, 1)) * silu_slope(y1)
    gx = through + product(g1, w1, (1, 1))
    return gx.astype(x.dtype), product(x, g1, (0, 0)), product(silu(y1), g2, (0, 0))

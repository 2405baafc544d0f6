"""Scaled SiLU and the residual pair of dense layers, with gradients that keep only matmul outputs.

Automatic differentiation would keep the input, the sigmoid and the output of every activation, which are six edge-sized
arrays for a residual layer. Here the backward pass keeps the layer's input and its two pre-activations, and recomputes
the rest. The rules consist of ordinary operations, so they can be differentiated again. Arrays keep their dtype, and
intermediate values have at least float32.
"""

from functools import partial

import jax

from jaxatoms.ops.products import widened
from jaxatoms.ops.target import platform

GAIN = 1 / 0.6  # keeps unit variance (GemNet, arXiv 2106.08903)
HALF = 0.5**0.5


def settled(x: jax.Array) -> jax.Array:
    """Returns x unchanged, and makes XLA:CPU write it, and its gradient, to memory once.

    XLA:CPU duplicates cheap producers into every consumer, so along a residual stream single fusions read a hundred
    arrays each (28 GB a step where 3 GB suffice). It never duplicates a division, and it drops optimization barriers
    before it fuses. This function therefore divides by a 1 that the compiler cannot know to be 1.
    """
    return x / _opaque_one(x) if platform() == "cpu" else x


def _opaque_one(x: jax.Array) -> jax.Array:
    return 1 + 0 * jax.lax.stop_gradient(x.reshape(-1)[0])


def _later(x: jax.Array, after: jax.Array) -> jax.Array:
    """Returns x; operations on it are not merged with the forward pass and run only after `after` is computed."""
    if platform() == "cpu":
        return x / _opaque_one(after)
    return jax.lax.optimization_barrier((x, after))[0]


def _silu(y: jax.Array) -> jax.Array:
    y = widened(y)
    return y * jax.nn.sigmoid(y) * GAIN


def _silu_slope(y: jax.Array) -> jax.Array:
    y = widened(y)
    s = jax.nn.sigmoid(y)
    return s * (1 + y * (1 - s)) * GAIN


@jax.custom_vjp
def scaled_silu(y: jax.Array) -> jax.Array:
    """Computes y * sigmoid(y) / 0.6, and keeps only y for the gradient."""
    return _silu(y).astype(y.dtype)


scaled_silu.defvjp(
    lambda y: (_silu(y).astype(y.dtype), y), lambda y, g: ((g * _silu_slope(_later(y, g))).astype(y.dtype),)
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def residual_pair(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """Computes (x + act(act(x w1) w2)) / sqrt(2) with scaled SiLU.

    Args:
      precision: the policy of matrix products; a static argument.
      x: [n, c]; w1, w2: [c, c].
    """
    return _residual_forward(precision, x, w1, w2)[0]


def _residual_forward(precision, x, w1, w2):
    y1 = precision.dot(x, w1)
    y2 = precision.dot(_silu(y1).astype(x.dtype), w2)
    return settled(((widened(x) + _silu(y2)) * HALF).astype(x.dtype)), (x, w1, w2, y1, y2)


def _residual_backward(precision, kept, g):
    x, w1, w2, y1, y2 = kept
    y1, y2 = _later(y1, g), _later(y2, g)
    through = widened(g) * HALF
    g2 = (through * _silu_slope(y2)).astype(x.dtype)
    g1 = (precision.dot_turned(g2, w2) * _silu_slope(y1)).astype(x.dtype)
    gx = settled((through + precision.dot_turned(g1, w1)).astype(x.dtype))
    return gx, precision.outer(x, g1, w1.dtype), precision.outer(_silu(y1).astype(x.dtype), g2, w2.dtype)


residual_pair.defvjp(_residual_forward, _residual_backward)

"""Layers of GemNet-OC: bias-free dense maps, residuals and fitted scale factors."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.initializers import uniform_fan_in
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.initializers import he_orthogonal
from jaxatoms.ops.dense_chain import scaled_silu
from jaxatoms.ops.products import widened
from jaxatoms.ops.residual import residual_pair


class ScaleFactorVar(nnx.Variable):
    """A fitted constant: saved with the model, never trained, never averaged."""


class Dense(nnx.Module):
    """y = act(x W + b) with `kernel` [n_in, n_out]; `act` and `bias` are off by default."""

    def __init__(self, n_in, n_out, rngs, *, act=False, bias=False, precision=Precision(), init=None):
        init = init or he_orthogonal
        self.kernel = nnx.Param(init(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(uniform_fan_in(rngs.params(), (n_in, n_out))[0]) if bias else None
        self.act, self.precision = act, precision

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.precision.dot(x, self.kernel[...])
        return self.activate(y if self.bias is None else (widened(y) + self.bias[...]).astype(y.dtype))

    def activate(self, y: jax.Array) -> jax.Array:
        """The layer's activation, for callers that split the matmul."""
        return scaled_silu(y) if self.act else y


class Residual(nnx.Module):
    """(x + act(W2 act(W1 x))) / sqrt(2)."""

    def __init__(self, n, rngs, precision):
        self.dense_mlp = nnx.List([Dense(n, n, rngs, act=True, precision=precision) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.dense_mlp
        return residual_pair(first.precision, x, first.kernel[...], second.kernel[...])


def residuals(count: int, n: int, rngs, precision) -> nnx.List:
    """`count` residual layers of width n."""
    return nnx.List([Residual(n, rngs, precision) for _ in range(count)])


def apply_all(layers, x: jax.Array) -> jax.Array:
    """The layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


class ScaleFactor(nnx.Module):
    """Multiplication by a fitted scalar; a stored 0 means "not fitted" and acts as 1 (as in the reference)."""

    def __init__(self, value: float = 0.0):
        self.scale_factor = ScaleFactorVar(jnp.asarray(value, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.scale_factor[...]
        return (widened(x) * jnp.where(gamma == 0, 1.0, gamma)).astype(x.dtype)

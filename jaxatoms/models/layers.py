"""Layers shared by the models: bias-free dense maps, residuals, fitted scale factors and the precision policy."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models import initializers
from jaxatoms.models.dense_chain import residual_pair, scaled_silu
from jaxatoms.ops.residual import fused_residual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """How dense layers multiply. Parameters, geometry, reductions and losses stay float32 in every policy.

    `float32`: full precision everywhere. `tf32`: 10-bit mantissa inputs where the hardware has them, float32 sums.
    `bfloat16`: bfloat16 inputs, float32 sums and results.
    """

    matmul: str = "float32"
    fused_residual: bool = False  # residual layers by one kernel, in bfloat16; not measured on hardware yet

    def __post_init__(self):
        if self.fused_residual and self.matmul != "bfloat16":
            raise ValueError("fused_residual multiplies in bfloat16; choose matmul precision bfloat16")
        if self.matmul not in ("float32", "tf32", "bfloat16"):
            raise ValueError(f"matmul precision must be float32, tf32 or bfloat16, got {self.matmul!r}")

    def dot(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """[..., i] x [i, o] -> [..., o] under this policy, in the dtype of x."""
        if self.matmul == "bfloat16":
            dims = (((x.ndim - 1,), (0,)), ((), ()))
            x16, w16 = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
            return jax.lax.dot_general(x16, w16, dims, preferred_element_type=x.dtype)
        precision = "highest" if self.matmul == "float32" else "high"
        return jnp.matmul(x, w, precision=precision)


class ScaleFactorVar(nnx.Variable):
    """A fitted constant: saved with the model, never trained, never averaged."""


class Dense(nnx.Module):
    """y = act(x W + b) with `kernel` [n_in, n_out]; `act` and `bias` are off by default."""

    def __init__(self, n_in, n_out, rngs, *, act=False, bias=False, precision=Precision(), init=None):
        init = init or initializers.he_orthogonal
        self.kernel = nnx.Param(init(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(initializers.uniform_fan_in(rngs.params(), (n_in, n_out))[0]) if bias else None
        self.act, self.precision = act, precision

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.precision.dot(x, self.kernel[...])
        return self.activate(y if self.bias is None else y + self.bias[...])

    def activate(self, y: jax.Array) -> jax.Array:
        """The layer's activation, for callers that split the matmul."""
        return scaled_silu(y) if self.act else y


class Residual(nnx.Module):
    """(x + act(W2 act(W1 x))) / sqrt(2)."""

    def __init__(self, n, rngs, precision):
        self.dense_mlp = nnx.List([Dense(n, n, rngs, act=True, precision=precision) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.dense_mlp
        if first.precision.fused_residual:
            return fused_residual(x, first.kernel[...], second.kernel[...])
        return residual_pair(first.precision.dot, x, first.kernel[...], second.kernel[...])


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
        return x * jnp.where(gamma == 0, 1.0, gamma).astype(x.dtype)

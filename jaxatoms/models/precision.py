"""The precision policy: in which type dense layers multiply, and edge arrays are kept."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp


def widened(x: jax.Array) -> jax.Array:
    """x in at least float32, for sums and activations of what is stored in less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """How dense layers multiply. Parameters, geometry, bases, atoms, sums and losses stay float32 in every policy.

    `float32`: full precision everywhere. `tf32`: 10-bit mantissa inputs where the hardware has them, float32 sums.
    `bfloat16`: bfloat16 inputs and float32 sums in products, forward and backward, and GemNet-OC keeps its edge arrays
    in bfloat16 (what PyTorch's autocast does to all linear layers), projections of angular sums onto edges among
    them; gradients of weights are float32 sums. Moments are sums over float32 harmonics, as with tf32.
    """

    matmul: str = "float32"
    fused_residual: bool = False  # residual layers by one kernel, in bfloat16; not measured on hardware yet

    def __post_init__(self):
        if self.fused_residual and self.matmul != "bfloat16":
            raise ValueError("fused_residual multiplies in bfloat16; choose matmul precision bfloat16")
        if self.matmul not in ("float32", "tf32", "bfloat16"):
            raise ValueError(f"matmul precision must be float32, tf32 or bfloat16, got {self.matmul!r}")

    @property
    def sums(self) -> str:
        """`precision` of products of float32 arrays."""
        return "highest" if self.matmul == "float32" else "high"

    def store(self, x: jax.Array) -> jax.Array:
        """An array over edges as this policy keeps it; what follows from it by `dot` has its dtype."""
        return x.astype(jnp.bfloat16) if self.matmul == "bfloat16" else x

    def dot(self, x: jax.Array, w: jax.Array, dtype=None) -> jax.Array:
        """[..., n, i] x [i, o] or, with equal leading axes, [..., i, o], in `dtype` or else in the dtype of x."""
        dtype = dtype or x.dtype
        if self.matmul != "bfloat16":
            return jnp.matmul(x, w, precision=self.sums).astype(dtype)
        rows = x if w.ndim > 2 else x.reshape(-1, x.shape[-1])
        return _narrow(rows.astype(jnp.bfloat16), w, dtype).reshape(*x.shape[:-1], w.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: jax.Array, w: jax.Array, dtype) -> jax.Array:
    """bfloat16 x times w, batched; its gradients are products of bfloat16 too, in the dtypes of x and w.

    JAX's own gradient would multiply float32 by bfloat16 (in float32 on a GPU) and round the weights' gradient.
    """
    return jnp.matmul(x, w.astype(jnp.bfloat16), preferred_element_type=dtype)


def _narrow_backward(dtype, kept, g):
    x, w = kept
    g = g.astype(jnp.bfloat16)
    return _narrow(g, w.mT, x.dtype), _narrow(x.mT, g, w.dtype)


_narrow.defvjp(lambda x, w, dtype: (_narrow(x, w, dtype), (x, w)), _narrow_backward)

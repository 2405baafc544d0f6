"""The precision policy: in which type dense layers multiply, and edge arrays are kept."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxatoms.ops import products
from jaxatoms.ops.products import widened
from jaxatoms.ops.target import platform

MATMULS = ("float32", "tf32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """How dense layers multiply. Parameters, geometry, bases, atoms, sums and losses stay float32 in every policy.

    `float32`: full precision everywhere. `tf32`: 10-bit mantissa inputs where the hardware has them, float32 sums.
    `bfloat16`: bfloat16 inputs and float32 sums in products, forward and backward, and GemNet-OC keeps its edge arrays
    in bfloat16 (what PyTorch's autocast does to all linear layers), projections of angular sums onto edges among
    them; gradients of weights are float32 sums. Moments are sums over float32 harmonics, as with tf32.
    """

    matmul: str = "float32"

    def __post_init__(self):
        if self.matmul not in MATMULS:
            raise ValueError(f"matmul precision must be {', '.join(MATMULS)}, got {self.matmul!r}")

    @property
    def sums(self) -> str:
        """How products of float32 arrays are multiplied."""
        return "highest" if self.matmul == "float32" else "high"

    def store(self, x: jax.Array) -> jax.Array:
        """An array over edges as this policy keeps it; what follows from it by `dot` has its dtype."""
        return x.astype(jnp.bfloat16) if self.matmul == "bfloat16" else x

    @property
    def _dense(self) -> str:
        return "bfloat16" if self.matmul == "bfloat16" else self.sums

    def share(self, w: jax.Array, count: int, columns: int, twice: bool) -> list[products.Shared]:
        """A first factor of `dot` for `count` calls, to each its own (`products.share`)."""
        return products.share(w, count, columns, self._dense, twice)

    def dot(self, x: jax.Array | products.Shared, w: jax.Array, dtype=None) -> jax.Array:
        """[..., n, i] x [i, o] or, with equal leading axes, [..., i, o], in `dtype` or else in the dtype of x."""
        if isinstance(x, products.Shared):
            return products.shared_product(x, w, self._dense).astype(dtype or x.w.dtype)
        rows = x if w.ndim > 2 else x.reshape(-1, x.shape[-1])
        if self.matmul == "bfloat16":
            rows = rows.astype(jnp.bfloat16)
        return products.product(rows, w, self._dense, dtype or x.dtype).reshape(*x.shape[:-1], w.shape[-1])

    def dot_over_two(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """[..., i, c] x [i, c, o] -> [..., o] in the dtype of x, summed over i and c."""
        return products.product_over_two(x, w, self._dense, x.dtype)

    def dot_turned(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """[n, o] x [i, o] -> [n, i] in the dtype of x: the gradient of `dot` in its first factor."""
        return products.product(x, w, self._dense, x.dtype, turned=True)

    def outer(self, x: jax.Array, g: jax.Array, dtype) -> jax.Array:
        """[n, i], [n, o] -> [i, o] in `dtype`: the gradient of `dot` in its second factor."""
        return products.outer(x, g, self._dense, dtype)

    def weighted_sums(self, weights: jax.Array, x: jax.Array, few: bool = False) -> jax.Array:
        """[..., n, i] x [..., i, c], leading axes equal: sums of features in float32 at least, in every policy.

        `few`: there are about ten i at most. On a GPU their gradients are products of the policy's precision then, as
        those of the projections that the sums belong to.
        """
        x = widened(x)
        if few and platform() == "gpu":
            return products.written_out_once(weights, x, self._dense)
        if few and platform() != "cpu":
            return products.written_out(weights, x)
        return products.product(weights, x, self.sums, x.dtype)

"""The residual pair of dense layers as one kernel; see kernels/fused_residual."""

import jax

from jaxatoms.ops import target
from kernels.fused_residual import fused_residual as kernel


def fused_residual(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) with bfloat16 products; differentiates once.

    Compiled for TPU, interpreted (slowly) elsewhere.

    Args:
      x: [n, c]; w1, w2: [c, c].
    """
    return kernel(x, w1, w2, target.platform() != "tpu")

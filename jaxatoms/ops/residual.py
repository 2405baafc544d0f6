"""The residual pair of dense layers: in plain JAX, and as one kernel."""

import jax

from jaxatoms.ops import dense_chain, dispatch, target
from kernels.fused_residual import fused_residual


@dispatch.operation
def residual_pair(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) with scaled SiLU.

    Args:
      precision: how to multiply (`models.common.precision.Precision`); static.
      x: [n, c]; w1, w2: [c, c].
    """
    return dense_chain.residual_pair(precision, x, w1, w2)


@dispatch.implements("residual_pair", "pallas_tpu")
def _kernel(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """One kernel (kernels/fused_residual), not measured on hardware yet; differentiates once.

    Compiled for TPU, interpreted (slowly) elsewhere.

    Raises:
      ValueError: another precision than bfloat16, in which it multiplies.
    """
    if precision.matmul != "bfloat16":
        raise ValueError("the kernel of residual_pair multiplies in bfloat16; choose matmul precision bfloat16")
    return fused_residual(x, w1, w2, target.platform() != "tpu")

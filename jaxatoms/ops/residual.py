"""The residual pair of dense layers: in plain JAX, and as kernels."""

import jax
import jax.numpy as jnp

from jaxatoms.ops import dense_chain, dispatch, target
from kernels.residual_pair.arguments import GPU_WIDTHS


@dispatch.operation
def residual_pair(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) with scaled SiLU.

    Args:
      precision: how to multiply (`models.common.precision.Precision`); static.
      x: [n, c]; w1, w2: [c, c].
    """
    return dense_chain.residual_pair(precision, x, w1, w2)


@dispatch.implements("residual_pair", "pallas_tpu")
def _on_tpu(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """One kernel (kernels/residual_pair/tpu.py), not measured on hardware yet; differentiates once.

    Compiled for TPU, interpreted (slowly) elsewhere.

    Raises:
      Unsupported: another precision than bfloat16, in which it multiplies, or a program for GPUs.
    """
    from kernels.residual_pair import tpu  # here, and so is `gpu`: only who asks for a kernel needs Pallas

    _check_precision(precision)
    if target.platform() == "gpu":
        raise dispatch.Unsupported("the kernel is for TPUs")
    return tpu.residual_pair(x, w1, w2, target.platform() != "tpu")


@dispatch.implements("residual_pair", "mosaic_gpu")
def _on_gpu(precision, x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """Two kernels (kernels/residual_pair/gpu.py), not measured on hardware yet; differentiates once.

    They take arrays in bfloat16, which are those over edges. What the policy keeps in float32, arrays over atoms, is
    computed in plain JAX: atoms are a tenth of the edges or fewer, and the kernels would round them.

    Raises:
      Unsupported: another precision than bfloat16, another platform than GPUs, or a width that the kernels do not
        have. Variant L has 1024, of which a block of rows fits neither into shared memory nor into registers between
        the products.
    """
    from kernels.residual_pair import gpu

    _check_precision(precision)
    if x.dtype != jnp.bfloat16:
        return dense_chain.residual_pair(precision, x, w1, w2)
    if target.platform() != "gpu":
        raise dispatch.Unsupported("the kernels are for NVIDIA GPUs, H100 and H200")
    if x.shape[-1] not in GPU_WIDTHS:
        widths = ", ".join(map(str, GPU_WIDTHS))
        raise dispatch.Unsupported(f"the kernels are for edge states of width {widths}, got {x.shape[-1]}")
    return gpu.residual_pair(x, w1, w2)


def _check_precision(precision):
    if precision.matmul != "bfloat16":
        raise dispatch.Unsupported("the kernels multiply in bfloat16, which is matmul precision bfloat16")

"""The Pallas TPU kernels: blocks of rows pass through both layers, the weights stay in VMEM.

Both weights fit there (512 x 512 in bfloat16 are half a MiB each). The gradient keeps x alone and recomputes both
pre-activations, 8 products where 6 would do, so that no edge-sized array is saved.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.residual_pair.reference import HALF, product, silu, silu_slope

FORWARD_ROWS, BACKWARD_ROWS = 512, 256  # of a block; with 512 columns about 8 and 14 MiB of VMEM
VMEM_BYTES = 64 * 2**20  # limit asked for: width 1024 takes four times as much for the weights


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def residual_pair(x: jax.Array, w1: jax.Array, w2: jax.Array, interpret: bool = False) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) in the dtype of x; differentiates once.

    Args:
      x: [n, c] float32 or bfloat16, n > 0 of any value; w1, w2: [c, c], used in bfloat16. c is best a multiple of 128.
      interpret: run on any device, slowly, instead of compiling for TPU.

    Raises:
      ValueError: shapes that do not belong together.
    """
    return _forward(x, w1, w2, interpret)


def _forward(x, w1, w2, interpret):
    n, c = x.shape
    if n == 0 or w1.shape != (c, c) or w2.shape != (c, c):
        raise ValueError(f"expected x [n, c], n > 0, and weights [c, c]; got {x.shape}, {w1.shape}, {w2.shape}")
    rows = pl.BlockSpec((FORWARD_ROWS, c), lambda i: (i, 0))
    return pl.pallas_call(
        _forward_kernel,
        grid=(pl.cdiv(n, FORWARD_ROWS),),
        in_specs=[rows, _whole(c), _whole(c)],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=_compiler_params("parallel"),
        cost_estimate=_cost(x, products=2, activations=2, arrays=2),
        interpret=interpret,
        name="residual_pair",
    )(x, w1.astype(jnp.bfloat16), w2.astype(jnp.bfloat16))


def _forward_kernel(x_ref, w1_ref, w2_ref, out_ref):
    x = x_ref[...]
    y2 = product(silu(product(x, w1_ref[...])), w2_ref[...])
    out_ref[...] = ((x.astype(jnp.float32) + silu(y2)) * HALF).astype(out_ref.dtype)


def _save(x, w1, w2, interpret):
    return _forward(x, w1, w2, interpret), (x, w1, w2)


def _backward(interpret, kept, g):
    x, w1, w2 = kept
    n, c = x.shape
    rows = pl.BlockSpec((BACKWARD_ROWS, c), lambda i: (i, 0))
    total = jax.ShapeDtypeStruct((c, c), jnp.float32)
    gx, gw1, gw2 = pl.pallas_call(
        partial(_backward_kernel, n),
        grid=(pl.cdiv(n, BACKWARD_ROWS),),
        in_specs=[rows, rows, _whole(c), _whole(c)],
        out_specs=[rows, _whole(c), _whole(c)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), total, total],
        compiler_params=_compiler_params("arbitrary"),  # blocks in turn: they add to the gradients of the weights
        cost_estimate=_cost(x, products=8, activations=4, arrays=3),
        interpret=interpret,
        name="residual_pair_backward",
    )(x, g, w1.astype(jnp.bfloat16), w2.astype(jnp.bfloat16))
    return gx, gw1.astype(w1.dtype), gw2.astype(w2.dtype)


def _backward_kernel(n, x_ref, g_ref, w1_ref, w2_ref, gx_ref, gw1_ref, gw2_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
        gw1_ref[...] = jnp.zeros_like(gw1_ref)
        gw2_ref[...] = jnp.zeros_like(gw2_ref)

    # Rows past the end hold anything, and every row adds to the gradients of the weights.
    place = pl.program_id(0) * BACKWARD_ROWS + jax.lax.broadcasted_iota(jnp.int32, x_ref.shape, 0)
    x = jnp.where(place < n, x_ref[...].astype(jnp.float32), 0)
    through = jnp.where(place < n, g_ref[...].astype(jnp.float32), 0) * HALF
    w1, w2 = w1_ref[...], w2_ref[...]
    y1 = product(x, w1)
    a1 = silu(y1)
    g2 = through * silu_slope(product(a1, w2))
    g1 = product(g2, w2, (1, 1)) * silu_slope(y1)
    gx_ref[...] = (through + product(g1, w1, (1, 1))).astype(gx_ref.dtype)
    gw1_ref[...] += product(x, g1, (0, 0))
    gw2_ref[...] += product(a1, g2, (0, 0))


residual_pair.defvjp(_save, _backward)


def _whole(c: int) -> pl.BlockSpec:
    """A [c, c] array that stays in VMEM for the whole grid."""
    return pl.BlockSpec((c, c), lambda i: (0, 0))


def _compiler_params(semantics: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=(semantics,), vmem_limit_bytes=VMEM_BYTES)


def _cost(x: jax.Array, *, products: int, activations: int, arrays: int) -> pl.CostEstimate:
    """Arithmetic and traffic for XLA's cost analysis: `arrays` of the size of x are read or written."""
    n, c = x.shape
    return pl.CostEstimate(
        flops=2 * products * n * c * c,
        transcendentals=activations * n * c,
        bytes_accessed=arrays * n * c * x.dtype.itemsize + 4 * c * c,
    )

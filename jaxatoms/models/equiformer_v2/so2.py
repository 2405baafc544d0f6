"""SO(2) convolutions: complex-linear maps per order m of coefficients in edge frames, as real block matmuls."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.harmonics import degrees_with
from jaxatoms.models.equiformer_v2.layers import Linear


class OrderMap(nnx.Module):
    """The map of one order m >= 1; `fc.kernel` [n_in, 2 n_out] holds the real and then the imaginary part."""

    def __init__(self, n_in: int, n_out: int, rngs, precision: Precision):
        self.fc = Linear(n_in, 2 * n_out, rngs, precision, bias=False, gain=0.5**0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n_edge, 2 n_in] (+m, then -m) -> [n_edge, 2 n_out]: y+ = Wr x+ - Wi x-, y- = Wr x- + Wi x+."""
        real, imaginary = jnp.split(self.fc.kernel[...], 2, axis=1)
        block = jnp.block([[real, imaginary], [-imaginary, real]])
        return self.fc.precision.dot(x, block)


class SO2Convolution(nnx.Module):
    """[n_edge, K_kept, n_in] -> [n_edge, K_kept, n_out] in m-major order, and n_extra invariants."""

    def __init__(self, lmax: int, mmax: int, n_in: int, n_out: int, rngs, precision: Precision, *, n_extra: int = 0):
        count = [degrees_with(m, lmax) for m in range(mmax + 1)]
        self.fc_m0 = Linear(count[0] * n_in, n_extra + count[0] * n_out, rngs, precision)
        self.so2_m_conv = nnx.List([OrderMap(n * n_in, n * n_out, rngs, precision) for n in count[1:]])
        self.count, self.n_out, self.n_extra = tuple(count), n_out, n_extra

    def __call__(self, x: jax.Array, factors: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns (coefficients [n_edge, K_kept, n_out], extra [n_edge, n_extra]).

        Args:
          x: [n_edge, K_kept, n_in].
          factors: [n_edge, (n_0 + n_1 + ...) n_in] radial factors; those of m serve +m and -m.
        """
        n_edge, _, n_in = x.shape
        outputs, row, column = [], 0, 0
        for m, n in enumerate(self.count):
            signs = 2 if m else 1
            part = x[:, row : row + signs * n].reshape(n_edge, signs, n * n_in)
            if factors is not None:
                part = part * factors[:, None, column : column + n * n_in]
            outputs.append((self.so2_m_conv[m - 1] if m else self.fc_m0)(part.reshape(n_edge, -1)))
            row, column = row + signs * n, column + n * n_in
        extra = outputs[0][:, : self.n_extra]
        flat = jnp.concatenate([outputs[0][:, self.n_extra :], *outputs[1:]], axis=1)
        return flat.reshape(n_edge, -1, self.n_out), extra

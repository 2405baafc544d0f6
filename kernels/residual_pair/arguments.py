"""The arguments that occur: rows are edge slots of a batch or part, c is the width of the variant."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What is left between the products has to fit into a Hopper GPU's registers and shared memory.
GPU_WIDTHS = (256, 384, 512)


class Case(NamedTuple):
    """Shapes and type of one call."""

    name: str
    n: int
    c: int
    dtype: jnp.dtype = jnp.float32  # of x: the residual stream

    def arrays(self, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [n, c] and float32 w1, w2 [c, c], normal with unit variance of x, x w1 and x w2."""
        keys = jax.random.split(jax.random.key(seed), 3)
        weights = (jax.random.normal(key, (self.c, self.c)) * self.c**-0.5 for key in keys[1:])
        return jax.random.normal(keys[0], (self.n, self.c), self.dtype), *weights


CASES = (
    Case("molecules, batch of 20", 2984, 512),  # mol20 of benchmarks/workloads.npz, variant S
    Case("a part of 16k edges", 16384, 512),
    Case("a packed batch", 65536, 512),
    Case("a batch of 100, bfloat16 stream", 14976, 512, jnp.bfloat16),  # mol20 five times
    Case("a packed batch, bfloat16 stream", 65536, 512, jnp.bfloat16),
    Case("width 256, bfloat16 stream", 14976, 256, jnp.bfloat16),
    Case("a part of 16k edges, variant L", 16384, 1024),
)

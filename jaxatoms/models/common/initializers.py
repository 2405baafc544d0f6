"""Weight initialisers that several backbones use, one compiled program per shape."""

import functools

import jax
import jax.numpy as jnp

from jaxatoms.ops.target import jit_for_few_runs


@functools.partial(jit_for_few_runs, static_argnums=1)
def uniform_fan_in(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), float32 `shape` [in, out]; PyTorch's default for linear layers."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

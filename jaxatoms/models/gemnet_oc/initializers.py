"""Weight initialisers of GemNet-OC, one compiled program per shape."""

import functools

import jax
import jax.numpy as jnp

from jaxatoms.ops.target import jit_for_few_runs


@functools.partial(jit_for_few_runs, static_argnums=1)
def he_orthogonal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(Semi-)orthogonal, standardised to zero mean and variance 1/fan_in per output unit; float32 `shape` [in, out].

    The zero mean matters: it removes the response to the positive mean of SiLU.
    Source: GemNet's "He orthogonal" initialiser (arXiv 2106.08903, released code).
    """
    n_in, n_out = shape
    matrix = jax.nn.initializers.orthogonal()(key, (n_in, n_out), jnp.float32)
    return _standardise(matrix, axis=0) * n_in**-0.5


@functools.partial(jit_for_few_runs, static_argnums=(1, 2, 3))
def he_orthogonal_basis(key: jax.Array, n_radial: int, n_spherical: int, n_out: int) -> jax.Array:
    """[n_radial, n_out * n_spherical] kernel of a `BasisEmbedding`.

    Drawn as (n_radial, n_spherical, n_out), standardised per last index, fan_in = n_radial * n_spherical, then the
    memory of each row is re-read as (n_out, n_spherical), as the reference does.
    """
    matrix = jax.nn.initializers.orthogonal()(key, (n_radial, n_spherical * n_out), jnp.float32)
    cube = _standardise(matrix.reshape(n_radial, n_spherical, n_out), axis=(0, 1))
    return cube.reshape(n_radial, -1) * (n_radial * n_spherical) ** -0.5


def _standardise(x: jax.Array, axis) -> jax.Array:
    centred = x - x.mean(axis, keepdims=True)
    return centred / jnp.sqrt(x.var(axis, keepdims=True, ddof=1) + 1e-6)

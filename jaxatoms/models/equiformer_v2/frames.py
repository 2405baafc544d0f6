"""Edge directions -> Wigner matrices that turn the edge onto the polar axis; no inverse trigonometry.

The roll about the edge is fixed to zero: the layers between rotating in and out do not depend on it (up to aliasing
of the sphere grid, below 1e-4). Angles enter through their sines and cosines, so that edges near the pole keep full
accuracy. Matrices are constants for the gradient, as in the reference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.models.equiformer_v2.harmonics import degree_of_coefficient, j_matrix, m_major, truncation_scale


def rotations(directions: jax.Array, lmax: int, mmax: int) -> jax.Array:
    """[n_edge, K_kept, (lmax+1)**2] with rows in m-major order, D(n) Y(n) = Y(e_y).

    Args:
      directions: [n_edge, 3] unit vectors n.
    """
    x, y, z = directions.T
    rho = jnp.sqrt(x * x + z * z)
    safe = jnp.where(rho > 0, rho, 1)
    cos_a, sin_a = jnp.where(rho > 0, z / safe, 1), jnp.where(rho > 0, x / safe, 0)
    alpha, beta = _multiples(cos_a, sin_a, lmax), _multiples(y, rho, lmax)
    blocks = [_degree(l, mmax, alpha, beta) for l in range(lmax + 1)]
    return _assemble(blocks, lmax, mmax)


def back_scale(lmax: int, mmax: int) -> np.ndarray:
    """[K_kept, 1] factors of the m-major rows when rotating back."""
    degrees = degree_of_coefficient(lmax)[m_major(lmax, mmax)]
    return truncation_scale(lmax, mmax)[degrees][:, None]


def _multiples(c: jax.Array, s: jax.Array, lmax: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin of 0, 1, ..., lmax times an angle, [n_edge, lmax+1] each, by Chebyshev's recursion."""
    cosines, sines = [jnp.ones_like(c), c], [jnp.zeros_like(s), s]
    for _ in range(2, lmax + 1):
        cosines.append(2 * c * cosines[-1] - cosines[-2])
        sines.append(2 * c * sines[-1] - sines[-2])
    return jnp.stack(cosines[: lmax + 1], -1), jnp.stack(sines[: lmax + 1], -1)


@functools.cache
def _tilt_constants(l: int, mmax: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, S) [l+1, rows, 2l+1]: rows |m| <= mmax of J Z(-b) J are sum_f cos(f b) C_f + sin(f b) S_f."""
    j, n = j_matrix(l), 2 * l + 1
    kept = min(l, mmax)
    rows = j[l - kept : l + kept + 1]
    cosine, sine = np.zeros((l + 1, len(rows), n)), np.zeros((l + 1, len(rows), n))
    for i in range(n):
        f = l - i
        cosine[abs(f)] += np.outer(rows[:, i], j[i])
        # Z(-b)[i, 2l-i] = -sin(f b)
        sine[abs(f)] -= np.sign(f) * np.outer(rows[:, i], j[n - 1 - i])
    return cosine, sine


def _degree(l: int, mmax: int, alpha, beta) -> jax.Array:
    """[n_edge, rows, 2l+1] rows |m| <= mmax of D^l = J Z(-beta) J Z(-alpha)."""
    dtype = beta[0].dtype
    cosine, sine = (jnp.asarray(c, dtype) for c in _tilt_constants(l, mmax))
    tilt = jnp.einsum("ef,fij->eij", beta[0][:, : l + 1], cosine, precision="highest")
    tilt += jnp.einsum("ef,fij->eij", beta[1][:, : l + 1], sine, precision="highest")
    f = l - np.arange(2 * l + 1)
    c, s = alpha[0][:, abs(f)], alpha[1][:, abs(f)] * jnp.asarray(np.sign(f), dtype)
    return tilt * c[:, None] + tilt[:, :, ::-1] * s[:, None]


def _assemble(blocks: list[jax.Array], lmax: int, mmax: int) -> jax.Array:
    """Block-diagonal matrices with their rows re-ordered from l-major to m-major."""
    n = (lmax + 1) ** 2
    padded, rows = [], []
    for l, block in enumerate(blocks):
        padded.append(jnp.pad(block, ((0, 0), (0, 0), (l * l, n - (l + 1) ** 2))))
        kept = min(l, mmax)
        rows += [l * l + l + m for m in range(-kept, kept + 1)]
    place = {position: i for i, position in enumerate(rows)}
    order = np.array([place[p] for p in m_major(lmax, mmax).tolist()])
    return jnp.concatenate(padded, axis=1)[:, order]

"""Constants of EquiformerV2 in NumPy float64: real harmonics, coefficient orders, J matrices, sphere grids.

The polar axis is y; components of degree l run over m = -l..l, and those of l = 1 are (x, y, z). Node tensors are
l-major, position l*l + l + m. Edge tensors keep |m| <= mmax and are m-major: all l of m = 0, then for each m all
l of +m and all l of -m, so that the inputs of an SO(2) convolution are contiguous.
"""

import functools
import math

import numpy as np
from numpy.polynomial import Legendre


def harmonics(v: np.ndarray, lmax: int) -> np.ndarray:
    """[n, (lmax+1)**2] real harmonics of unit vectors [n, 3], normalised so that sum_m Y_lm^2 = 1.

    Y_l,+-m = N_lm P_l^(m)(y) {Re, Im} (z + i x)^m, with the m-th derivative of the Legendre polynomial.
    """
    x, y, z = np.asarray(v, np.float64).T
    out = np.empty((len(y), (lmax + 1) ** 2))
    for l in range(lmax + 1):
        for m in range(l + 1):
            norm = math.sqrt((2 if m else 1) * math.factorial(l - m) / math.factorial(l + m))
            radial = norm * Legendre.basis(l).deriv(m)(y) if m else Legendre.basis(l)(y)
            phase = (z + 1j * x) ** m
            out[:, l * l + l + m] = radial * phase.real
            if m:
                out[:, l * l + l - m] = radial * phase.imag
    return out


@functools.cache
def j_matrix(l: int) -> np.ndarray:
    """[2l+1, 2l+1] representation of the reflection (x, y, z) -> (-y, -x, z) on the harmonics of degree l.

    D^l of a rotation about x by b is J Z(b) J. Source: Pinchon and Hoggan 2007; built here from its definition.
    """
    v = np.random.default_rng(0).normal(size=(200, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    mirrored = np.stack([-v[:, 1], -v[:, 0], v[:, 2]], axis=1)
    part = slice(l * l, (l + 1) ** 2)
    return np.linalg.lstsq(harmonics(v, l)[:, part], harmonics(mirrored, l)[:, part], rcond=None)[0].T


def degree_of_coefficient(lmax: int) -> np.ndarray:
    """[(lmax+1)**2] degree l of each l-major coefficient."""
    return np.repeat(np.arange(lmax + 1), 2 * np.arange(lmax + 1) + 1)


@functools.cache
def m_major(lmax: int, mmax: int) -> np.ndarray:
    """Positions in the l-major list of the kept coefficients, in m-major order."""
    out = [l * l + l for l in range(lmax + 1)]
    for m in range(1, mmax + 1):
        for sign in (1, -1):
            out += [l * l + l + sign * m for l in range(m, lmax + 1)]
    return np.array(out)


def degrees_with(m: int, lmax: int) -> int:
    """How many degrees have a component of order m."""
    return lmax + 1 - m


@functools.cache
def truncation_scale(lmax: int, mmax: int) -> np.ndarray:
    """[lmax+1] sqrt((2l+1)/(2 mmax+1)) for degrees that lost components, else 1."""
    l = np.arange(lmax + 1)
    return np.where(l <= mmax, 1.0, np.sqrt((2 * l + 1) / (2 * mmax + 1)))


def _quadrature(n: int) -> np.ndarray:
    """[n] weights of the latitudes pi (b + 1/2) / n, summing to 1."""
    half, b = n // 2, np.arange(n)[:, None]
    k = np.arange(half)
    series = np.sin((2 * b + 1) * (2 * k + 1) * np.pi / (4 * half)) / (2 * k + 1)
    weights = np.sin(np.pi * (2 * b[:, 0] + 1) / (4 * half)) * series.sum(1)
    return weights / weights.sum()


@functools.cache
def sphere_grid(lmax: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """(to_grid [n*n, K], from_grid [K, n*n]) for all l-major coefficients; from_grid @ to_grid is the identity.

    Points are latitude-major. Source: e3nn's ToS2Grid and FromS2Grid, "component" normalisation.
    """
    n = resolution
    beta = np.pi * (np.arange(n) + 0.5) / n
    alpha = 2 * np.pi * np.arange(n) / n
    b, a = (g.ravel() for g in np.meshgrid(beta, alpha, indexing="ij"))
    y = harmonics(np.stack([np.sin(b) * np.sin(a), np.cos(b), np.sin(b) * np.cos(a)], axis=1), lmax)
    weights = np.repeat(_quadrature(n), n)[:, None] / n
    l = degree_of_coefficient(lmax)
    to_grid = y / math.sqrt(lmax + 1)
    from_grid = (y * (2 * l + 1) * math.sqrt(lmax + 1) * weights).T
    return to_grid, from_grid


@functools.cache
def edge_sphere_grid(lmax: int, mmax: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """`sphere_grid` restricted to the m-major kept coefficients, both scaled by `truncation_scale`.

    The round trip is not the identity for l > mmax; the reference's is not either.
    """
    to_grid, from_grid = sphere_grid(lmax, resolution)
    kept = m_major(lmax, mmax)
    scale = truncation_scale(lmax, mmax)[degree_of_coefficient(lmax)[kept]]
    return to_grid[:, kept] * scale, from_grid[kept] * scale[:, None]

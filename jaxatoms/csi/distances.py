"""Distances between feature clouds other than Frechet: kernel (MMD) and energy distance.

Rows enter, numbers leave. Pairwise sums run in row chunks, so memory does not grow with the product of the
sizes; time does, except for the linear estimator. NumPy float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxatoms.types import InputError

CHUNK_ELEMENTS = 2**23  # pairwise distances held at once, 64 MiB


class Estimate(NamedTuple):
    """A mean of independent terms and its standard error."""

    value: float
    error: float


def median_bandwidth(x: np.ndarray, y: np.ndarray, n_point: int = 5000, seed: int = 0) -> float:
    """Median squared distance between `n_point` points drawn from the pooled rows.

    Args:
      x: [n_x, d] rows.
      y: [n_y, d] rows.
      n_point: points drawn without replacement (all if fewer).
      seed: of the draw.

    Returns:
      s2 of the kernel exp(-r^2 / (2 s2)).

    Raises:
      InputError: widths differ, a set has under 2 rows, or more than half of the points coincide.

    Source: docs/reference/csi.md, Other distances.
    """
    x, y = _pair(x, y)
    n_total = len(x) + len(y)
    pick = np.sort(np.random.default_rng(seed).permutation(n_total)[:n_point])
    points = np.concatenate([x[pick[pick < len(x)]], y[pick[pick >= len(x)] - len(x)]])
    squared = _squared(points, points)[np.triu_indices(len(points), 1)]
    median = float(np.median(squared))
    if not median > 0:
        raise InputError("median distance between features is zero: most rows coincide; pass a bandwidth")
    return median


def mmd_linear(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None, seed: int = 0) -> Estimate:
    """Squared MMD with an RBF kernel in linear time, from disjoint random pairs.

    Args:
      x: [n_x, d] rows.
      y: [n_y, d] rows.
      bandwidth: s2 of exp(-r^2 / (2 s2)); None takes `median_bandwidth`.
      seed: of both shuffles (and of the bandwidth's draw).

    Returns:
      `Estimate`; unbiased, so it may be negative for equal distributions.

    Raises:
      InputError: as `median_bandwidth`.

    Source: Gretton et al., JMLR 13, 723 (2012), section 6; docs/reference/csi.md, Other distances.
    """
    x, y = _pair(x, y)
    s2 = median_bandwidth(x, y, seed=seed) if bandwidth is None else bandwidth
    rng = np.random.default_rng(seed)
    half = min(len(x), len(y)) // 2
    (x1, x2), (y1, y2) = (
        rows[rng.permutation(len(rows))[: 2 * half]].reshape(2, half, -1) for rows in (x, y)
    )

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.sum((a - b) ** 2, axis=1) / (2 * s2))

    terms = kernel(x1, x2) + kernel(y1, y2) - kernel(x1, y2) - kernel(y1, x2)
    return Estimate(
        float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(half)) if half > 1 else float("nan")
    )


def mmd_unbiased(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None, seed: int = 0) -> float:
    """Squared MMD with an RBF kernel, full U-statistic in O(n_x n_y d) time; arguments as `mmd_linear`.

    Source: Gretton et al. 2012, eq. 3; docs/reference/csi.md, Other distances (there on the first 500 structures).
    """
    x, y = _pair(x, y)
    s2 = median_bandwidth(x, y, seed=seed) if bandwidth is None else bandwidth

    def total(a: np.ndarray, b: np.ndarray) -> float:
        return _sum_pairs(a, b, lambda r2: np.exp(-r2 / (2 * s2)))

    n, m = len(x), len(y)
    return (total(x, x) - n) / (n * (n - 1)) + (total(y, y) - m) / (m * (m - 1)) - 2 * total(x, y) / (n * m)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with U-statistic denominators and the Euclidean norm.

    Args:
      x: [n_x, d] rows.
      y: [n_y, d] rows.

    Returns:
      Unbiased estimate, possibly slightly negative for equal distributions; O(n_x n_y d) time.

    Raises:
      InputError: widths differ or a set has under 2 rows.

    Source: Szekely and Rizzo, J. Stat. Plan. Inference 143, 1249 (2013); docs/reference/csi.md, Other distances.
    """
    x, y = _pair(x, y)
    n, m = len(x), len(y)
    within = _sum_pairs(x, x, np.sqrt) / (n * (n - 1)) + _sum_pairs(y, y, np.sqrt) / (m * (m - 1))
    return 2 * _sum_pairs(x, y, np.sqrt) / (n * m) - within


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 copies about a common centre (distances stay, cancellation goes)."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"features have shapes {x.shape} and {y.shape}; expected [rows, d] with one width")
    if min(len(x), len(y)) < 2:
        raise InputError(f"distances need at least 2 rows per set, got {len(x)} and {len(y)}")
    centre = x.mean(axis=0, dtype=np.float64)
    return x - centre, y - centre


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r2 = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2 * (a @ b.T)
    return np.maximum(r2, 0)


def _sum_pairs(a: np.ndarray, b: np.ndarray, of_squared: Callable[[np.ndarray], np.ndarray]) -> float:
    """Sum of `of_squared(|a_i - b_j|^2)` over all pairs; the diagonal counts exactly |0|^2 when a is b."""
    step = max(1, CHUNK_ELEMENTS // len(b))
    total = 0.0
    for start in range(0, len(a), step):
        r2 = _squared(a[start : start + step], b)
        if a is b:
            np.fill_diagonal(r2[:, start:], 0.0)
        total += float(np.sum(of_squared(r2)))
    return total

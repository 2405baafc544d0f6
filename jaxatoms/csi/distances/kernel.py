"""Maximum mean discrepancy (MMD) of feature clouds with a Gaussian kernel: from disjoint pairs, or from every pair."""

from typing import NamedTuple

import numpy as np

from jaxatoms.csi.distances.distance import Distance, RowBlocks, resample_rows
from jaxatoms.csi.distances.pairs import (
    MAX_ROWS,
    Kernel,
    centred_pair,
    resampled_u_statistic,
    squared_distances,
    u_statistic,
)
from jaxatoms.types import InputError

MAX_ROWS_LINEAR = 50_000


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
    x, y = centred_pair(x, y)
    n_total = len(x) + len(y)
    pick = np.sort(np.random.default_rng(seed).permutation(n_total)[:n_point])
    points = np.concatenate([x[pick[pick < len(x)]], y[pick[pick >= len(x)] - len(x)]])
    squared = squared_distances(points, points)[np.triu_indices(len(points), 1)]
    median = float(np.median(squared))
    if not median > 0:
        raise InputError("median distance between features is zero: most rows coincide; leave out copies or give a "
                         "bandwidth")  # fmt: skip
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
    x, y = centred_pair(x, y)
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
    x, y = centred_pair(x, y)
    s2 = median_bandwidth(x, y, seed=seed) if bandwidth is None else bandwidth
    return u_statistic(x, y, _gaussian(s2))


def _gaussian(s2: float) -> Kernel:
    return lambda squared: np.exp(-squared / (2 * s2))


def _resample(x: RowBlocks, y: RowBlocks, chosen_x: np.ndarray, chosen_y: np.ndarray) -> np.ndarray:
    """Every choice with the bandwidth of all rows."""
    kernel = _gaussian(median_bandwidth(x.rows, y.rows))
    return resampled_u_statistic(x, y, chosen_x, chosen_y, kernel)


def _resample_linear(x: RowBlocks, y: RowBlocks, chosen_x: np.ndarray, chosen_y: np.ndarray) -> np.ndarray:
    """Every choice with the bandwidth of all rows; its rows are paired anew."""
    s2 = median_bandwidth(x.rows, y.rows)
    return resample_rows(lambda a, b: mmd_linear(a, b, s2).value, x, y, chosen_x, chosen_y)


MMD = Distance(
    name="mmd",
    title="MMD",
    description="Squared MMD with a Gaussian kernel, from every pair of rows (Gretton et al. 2012, eq. 3).",
    needs="rows",
    function=mmd_unbiased,
    signed=True,
    max_rows=MAX_ROWS,
    resample=_resample,
)
MMD_LINEAR = Distance(
    name="mmd_linear",
    title="MMD linear",
    description="Squared MMD with a Gaussian kernel, from disjoint random pairs (Gretton et al. 2012, section 6).",
    needs="rows",
    function=lambda x, y: mmd_linear(x, y).value,
    signed=True,
    corrects=False,
    max_rows=MAX_ROWS_LINEAR,
    resample=_resample_linear,
)

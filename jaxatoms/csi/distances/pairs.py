"""Sums over pairs of rows, and the difference of their means that kernel and energy distances are.

Pairs run in row chunks, so memory does not grow with the product of the sizes; time does. NumPy float64.
"""

from collections.abc import Callable

import numpy as np

from jaxatoms.csi.distances.distance import RowBlocks
from jaxatoms.types import InputError

CHUNK_ELEMENTS = 2**23  # pairwise distances held at once, 64 MiB
MAX_ROWS = 10_000  # of a set, where every pair of rows counts

Kernel = Callable[[np.ndarray], np.ndarray]  # squared distances -> values, elementwise


def centred_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 copies about a common centre (distances stay, cancellation goes).

    Raises:
      InputError: no two matrices of one width, or a set has under 2 rows.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"features have shapes {x.shape} and {y.shape}; expected [rows, d] with one width")
    if min(len(x), len(y)) < 2:
        raise InputError(f"distances need at least 2 rows per set, got {len(x)} and {len(y)}")
    centre = x.mean(axis=0, dtype=np.float64)
    return x - centre, y - centre


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n_a, n_b] |a_i - b_j|^2 of rows [n_a, d] and [n_b, d]."""
    r2 = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2 * (a @ b.T)
    return np.maximum(r2, 0)


def u_statistic(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased: within a set only pairs of different rows count.

    Args:
      x, y: [n_x, d] and [n_y, d] rows, from `centred_pair`.
      kernel: k as a function of the squared distance.
    """
    xx, yy, xy = (_sum_pairs(a, b, kernel) for a, b in ((x, x), (y, y), (x, y)))
    return float(_difference(xx, yy, xy, len(x), len(y), kernel))


def resampled_u_statistic(
    x: RowBlocks, y: RowBlocks, chosen_x: np.ndarray, chosen_y: np.ndarray, kernel: Kernel
) -> np.ndarray:
    """[n] values of `u_statistic` for n choices of blocks, at the cost of one: pairs are summed by block once.

    Args:
      x, y: the two sets.
      chosen_x, chosen_y: [n, n_blocks] bool.
      kernel: as for `u_statistic`.
    """
    centred = centred_pair(x.rows, y.rows)
    of_x, of_y = ([rows[s.block == i] for i in range(s.n_blocks)] for rows, s in zip(centred, (x, y), strict=True))

    def total(a: list[np.ndarray], b: list[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sums = np.array([[_sum_pairs(one, other, kernel) for other in b] for one in a])
        return np.sum((left @ sums) * right, axis=1)

    xx, yy, xy = (
        total(of_x, of_x, chosen_x, chosen_x),
        total(of_y, of_y, chosen_y, chosen_y),
        total(of_x, of_y, chosen_x, chosen_y),
    )
    n, m = (c @ [len(part) for part in of] for c, of in ((chosen_x, of_x), (chosen_y, of_y)))
    return _difference(xx, yy, xy, n, m, kernel)


def _difference(xx, yy, xy, n, m, kernel: Kernel):
    """The U-statistic from sums over all pairs of n and m rows; scalars or [n_choice] arrays."""
    own = kernel(np.zeros(1))[0]  # of a row with itself
    return (xx - own * n) / (n * (n - 1)) + (yy - own * m) / (m * (m - 1)) - 2 * xy / (n * m)


def _sum_pairs(a: np.ndarray, b: np.ndarray, kernel: Kernel) -> float:
    """Sum of `kernel(|a_i - b_j|^2)` over all pairs; the diagonal counts exactly |0|^2 when a is b."""
    step = max(1, CHUNK_ELEMENTS // len(b))
    total = 0.0
    for start in range(0, len(a), step):
        r2 = squared_distances(a[start : start + step], b)
        if a is b:
            np.fill_diagonal(r2[:, start:], 0.0)
        total += float(np.sum(kernel(r2)))
    return total

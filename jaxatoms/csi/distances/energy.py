"""The energy distance of feature clouds, from every pair of rows."""

import numpy as np

from jaxatoms.csi.distances.distance import Distance, RowBlocks
from jaxatoms.csi.distances.pairs import MAX_ROWS, centred_pair, resampled_u_statistic, u_statistic


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with U-statistic denominators and the Euclidean norm.

    Args:
      x: [n_x, d] rows.
      y: [n_y, d] rows.

    Returns:
      Estimate, unbiased for independent rows and possibly negative for equal distributions; O(n_x n_y d) time.

    Raises:
      InputError: widths differ or a set has under 2 rows.

    Source: Szekely and Rizzo, J. Stat. Plan. Inference 143, 1249 (2013); docs/reference/csi.md, Other distances.
    """
    return u_statistic(*centred_pair(x, y), _minus_norm)


def _minus_norm(squared: np.ndarray) -> np.ndarray:
    return -np.sqrt(squared)


def _resample(x: RowBlocks, y: RowBlocks, chosen_x: np.ndarray, chosen_y: np.ndarray) -> np.ndarray:
    return resampled_u_statistic(x, y, chosen_x, chosen_y, _minus_norm)


ENERGY = Distance(
    name="energy",
    title="Energy distance",
    description="2 E|x - y| - E|x - x'| - E|y - y'|, Euclidean norm (Szekely and Rizzo 2013).",
    needs="rows",
    function=energy_distance,
    signed=True,
    max_rows=MAX_ROWS,
    resample=_resample,
)

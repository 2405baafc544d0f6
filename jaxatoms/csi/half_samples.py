"""How sure a distance from rows is: its values for random halves of the structures.

Rows of one structure are correlated, so whole structures are left out, in blocks. A half drawn without repetition
differs from the whole as the whole does from the population: the spread of the values over halves is, to first order,
the standard error, and their median less the value is the excess that the sample's size adds (also to estimators that
are unbiased for independent rows: rows of one structure lie closer to each other than others do). A bootstrap, which
repeats structures, would bias distances over pairs of rows. Source: McCarthy, Rev. Int. Stat. Inst. 37, 239 (1969);
Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, ch. 8.
"""

import functools

import numpy as np

from jaxatoms.csi.distances.distance import Distance, RowBlocks, resample_rows
from jaxatoms.csi.uncertainty import Interval, interval_about
from jaxatoms.types import InputError

MIN_BLOCKS = 4  # fewer have hardly any different halves


def row_blocks(
    rows: np.ndarray, structure: np.ndarray, n_blocks: int = 32, max_rows: int | None = None, seed: int = 0
) -> RowBlocks:
    """Rows in random blocks of whole structures, in their order.

    Args:
      rows: [n_row, d] features.
      structure: [n_row] structure ids.
      n_blocks: blocks, at most; fewer where there are fewer structures.
      max_rows: structures are drawn at random until their rows would exceed it, but at least MIN_BLOCKS; None: all.
      seed: of the draw and the blocks.

    Raises:
      InputError: fewer than MIN_BLOCKS structures.
    """
    ids, index, counts = np.unique(structure, return_inverse=True, return_counts=True)
    if len(ids) < MIN_BLOCKS:
        raise InputError(f"{len(ids)} structures have too few halves for an interval; {MIN_BLOCKS} are needed")
    shuffled = np.random.default_rng(seed).permutation(len(ids))
    fitting = len(ids) if max_rows is None else int(np.sum(np.cumsum(counts[shuffled]) <= max_rows))
    kept = shuffled[: max(MIN_BLOCKS, fitting)]
    n_blocks = min(n_blocks, len(kept))
    block = np.full(len(ids), -1)
    block[kept] = np.arange(len(kept)) % n_blocks
    inside = block[index] >= 0
    return RowBlocks(rows[inside], block[index][inside], n_blocks)


def half_sample_interval(
    distance: Distance, x: RowBlocks, y: RowBlocks, n_resample: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """A distance from rows with its interval.

    Where the sets hardly differ, and for distances that pair their rows at random, the interval is too wide.

    Args:
      distance: one that needs rows.
      x, y: the two sets, see `row_blocks`.
      n_resample: number of random halves.
      level: nominal coverage.
      seed: of the halves; for one seed those of y are the same whatever x is.

    Returns:
      `Interval`; its ends are about the corrected value, or about the value of a distance that is not corrected.

    Raises:
      InputError: whatever the distance raises.
    """
    chosen = [_all_and_halves(side.n_blocks, n_resample, (seed, i)) for i, side in enumerate((x, y))]
    values = (distance.resample or functools.partial(resample_rows, distance.function))(x, y, *chosen)
    value, samples = float(values[0]), values[1:]
    bias = float(np.median(samples)) - value
    centre = value - bias if distance.corrects else value
    return Interval(value, *interval_about(centre, samples, level, not distance.signed), bias, samples)


def _all_and_halves(n_blocks: int, n_resample: int, seed: tuple[int, int]) -> np.ndarray:
    """[1 + n_resample, n_blocks] bool: every block, then half of them; of an odd number, half of one more or less."""
    rng = np.random.default_rng(seed)
    ranks = rng.permuted(np.tile(np.arange(n_blocks), (n_resample, 1)), axis=1)
    halves = ranks < (n_blocks + rng.integers(0, 2, (n_resample, 1))) // 2
    return np.concatenate([np.ones((1, n_blocks), bool), halves])

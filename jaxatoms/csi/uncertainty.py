"""How sure a distance from moments is: bootstrap intervals, extrapolation to infinite samples, effective rank.

Per-block moments enter (blocks of whole structures, so correlated atoms stay together); the features are
never read again. A resample of blocks is a weighted merge: one pass over the blocks of a set. Memory: n_blocks x d^2
float64 of a set, 2.6 GB for 32 blocks and d = 3200, and a few d^2 for the merge at hand.
"""

from typing import NamedTuple

import numpy as np

from jaxatoms.csi.aggregation import segments
from jaxatoms.csi.distances.distance import OfMoments
from jaxatoms.csi.frechet import frechet_distance
from jaxatoms.csi.moments import Moments, covariance, empty_moments, to_host, update_part
from jaxatoms.types import InputError

SMALLEST = 0.25  # fraction of a sample from which it is extrapolated


class Interval(NamedTuple):
    """A CSI estimate and how far it may be trusted."""

    value: float  # CSI of all blocks: the published procedure
    low: float
    high: float
    bias: float  # median of the resamples minus value; about the finite-sample excess
    samples: np.ndarray  # [n_resample] resampled values

    @property
    def corrected(self) -> float:
        """Value less its bias, which a "basic" interval is about; may be slightly negative for equal distributions."""
        return self.value - self.bias


class Extrapolation(NamedTuple):
    """Straight line through CSI against 1 / fraction of the sample."""

    value: float  # intercept: CSI at infinite sample size
    slope: float  # excess of the full sample (fraction 1)
    fractions: np.ndarray  # [n_size]
    values: np.ndarray  # [n_size, n_repeat]


def block_moments(features: np.ndarray, structure: np.ndarray, n_blocks: int = 32, seed: int = 0) -> Moments:
    """Moments of random groups of whole structures.

    When streaming, fill `empty_moments(d, n_blocks)` with `update_part`, giving each batch of a shuffled
    stream to the next block in turn; the result is the same kind of object.

    Args:
      features: [n_row, d].
      structure: [n_row] structure ids.
      n_blocks: at least 2; 20 to 100 give stable intervals.
      seed: of the assignment.

    Returns:
      `Moments` with leading axis n_blocks; sizes differ by at most one structure.

    Raises:
      InputError: fewer structures than blocks.
    """
    order, starts, ids = segments(structure)
    if not 2 <= n_blocks <= len(ids):
        raise InputError(f"{len(ids)} structures cannot fill {n_blocks} blocks; choose 2..{len(ids)}")
    shuffled = np.random.default_rng(seed).permutation(len(ids))
    counts = np.diff(np.append(starts, len(structure)))
    block_of_row = np.repeat(shuffled % n_blocks, counts)
    rows = features if order is None else features[order]
    parts, size = empty_moments(features.shape[1], n_blocks), np.bincount(block_of_row).max()
    for block in range(n_blocks):
        piece = rows[block_of_row == block]
        parts = update_part(
            parts, block, np.pad(piece, ((0, size - len(piece)), (0, 0))), np.arange(size) < len(piece)
        )
    return to_host(parts)


def weighted_merges(blocks: Moments, weights: np.ndarray) -> Moments:
    """Merges blocks with multiplicities.

    Args:
      blocks: `Moments` with leading axis n_blocks.
      weights: [n_merge, n_blocks] how often each block counts (0 = left out).

    Returns:
      `Moments` with leading axis n_merge; beside the blocks and these, n_merge x d^2 float64 are in memory for a while.
    """
    b = to_host(blocks)
    n = weights * b.count
    total = n.sum(axis=1)
    centre = b.mean.mean(axis=0)  # a large common mean would take digits from what follows
    offset = b.mean - centre
    shift = (n @ offset) / total[:, None]
    scatter = (weights @ b.scatter.reshape(len(b.count), -1)).reshape(len(weights), *b.scatter.shape[1:])
    # What the blocks' means add, about the merged mean: a product of [d, n_blocks] matrices and not n_blocks of [d, d].
    apart = offset - shift[:, None]
    scatter += np.swapaxes(apart * n[..., None], 1, 2) @ apart
    return Moments(total, centre + shift, scatter)


def bootstrap_interval(
    upstream: Moments,
    downstream: Moments,
    n_resample: int = 200,
    level: float = 0.95,
    seed: int = 0,
    kind: str = "basic",
    distance: OfMoments = frechet_distance,
) -> Interval:
    """Confidence interval of a CSI, or another distance from moments, by resampling the blocks of both sets.

    Resampling adds about the same upward bias as the finite sample itself, so the "basic" interval
    [2 v - q_high, 2 v - q_low], about `corrected`, removes it and is the default; "percentile" keeps it.

    Args:
      upstream, downstream: block moments, see `block_moments`.
      n_resample: number of resamples.
      level: nominal coverage.
      seed: of the resampling.
      kind: "basic" or "percentile".
      distance: (mean [d], covariance [d, d], mean, covariance) -> number.

    Returns:
      `Interval`, ends clipped at 0.

    Raises:
      InputError: fewer than 2 blocks, or unknown kind.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13 (percentile);
    Davison and Hinkley 1997, 5.2.
    """
    if kind not in ("basic", "percentile"):
        raise InputError(f"unknown interval {kind!r}; use 'basic' or 'percentile'")
    rng = np.random.default_rng(seed)
    everything = [np.ones((1, len(side.count))) for side in (upstream, downstream)]
    value = _paired(upstream, downstream, everything, distance)[0]
    weights = [_multinomial(rng, len(side.count), n_resample) for side in (upstream, downstream)]
    samples = _paired(upstream, downstream, weights, distance)
    # The median, unlike the mean, lies between the quantiles at every level: the corrected value is in its interval.
    bias = float(np.median(samples)) - value
    if kind == "basic":
        low, high = interval_about(value - bias, samples, level)
    else:
        low, high = (max(0.0, float(end)) for end in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(float(value), low, high, float(bias), samples)


def interval_about(estimate: float, samples: np.ndarray, level: float, clip: bool = True) -> tuple[float, float]:
    """Ends of an interval that holds `estimate`: the spread of resamples about their median, mirrored.

    Args:
      estimate: CSI in any of its estimates: plain, corrected, extrapolated.
      samples: [n_resample] resampled values.
      level: nominal coverage.
      clip: cut the ends at 0.
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) - np.median(samples)
    floor = 0.0 if clip else -np.inf
    return max(floor, float(estimate - high)), max(floor, float(estimate - low))


def extrapolate(
    upstream: Moments,
    downstream: Moments,
    n_size: int = 8,
    n_repeat: int = 8,
    smallest: float = SMALLEST,
    seed: int = 0,
    distance: OfMoments = frechet_distance,
) -> Extrapolation:
    """A distance at infinite sample size, as FID-infinity: regress on 1 / fraction of the blocks used.

    The excess is proportional to 1 / n only once every subset has several times more rows than features: keep
    `smallest` x rows well above d.

    Args:
      upstream, downstream: block moments.
      n_size: number of fractions between `smallest` and 1, evenly spaced in 1 / fraction.
      n_repeat: random subsets per fraction.
      smallest: smallest fraction of blocks.
      seed: of the subsets.
      distance: as for `bootstrap_interval`.

    Returns:
      `Extrapolation`; the intercept may be slightly negative for equal distributions.

    Raises:
      InputError: fewer than 4 blocks on a side.

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score", CVPR 2020, section 4.
    """
    sizes = [len(side.count) for side in (upstream, downstream)]
    if min(sizes) < 4:
        raise InputError(
            f"extrapolation needs at least 4 blocks per set, got {min(sizes)}; use n_blocks >= 16"
        )
    rng = np.random.default_rng(seed)
    wanted = 1 / np.linspace(1 / smallest, 1, n_size)
    weights = [_subsets(rng, size, wanted, n_repeat) for size in sizes]
    values = _paired(upstream, downstream, weights, distance)
    inverse = np.mean([size / w.sum(axis=1) for size, w in zip(sizes, weights, strict=True)], axis=0)
    slope, intercept = np.polyfit(inverse, values, 1)
    return Extrapolation(float(intercept), float(slope), wanted, values.reshape(n_size, n_repeat))


def effective_rank(moments: Moments, standardise: bool = False) -> float | np.ndarray:
    """Exponential of the entropy of the normalised covariance eigenvalues.

    Args:
      moments: single or stacked moments (e.g. `weighted_merges` of resampled blocks gives its spread).
      standardise: use the correlation matrix (features z-scored, constant columns left out).

    Returns:
      Scalar, or one value per leading entry; between 1 and d.

    Raises:
      InputError: all variances are zero.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007; docs/reference/csi.md, Other distances.
    """
    scatter = to_host(moments).scatter
    variance = np.diagonal(scatter, axis1=-2, axis2=-1)
    if np.any(variance.max(axis=-1) <= 0):
        raise InputError("effective rank needs features that vary; all variances are zero")
    if standardise:
        scale = np.where(variance > 0, 1 / np.sqrt(np.where(variance > 0, variance, 1)), 0)
        scatter = scatter * scale[..., :, None] * scale[..., None, :]
    values = np.maximum(np.linalg.eigvalsh(scatter), 0)
    share = values / values.sum(axis=-1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)
    return np.exp(entropy)[()]


def _multinomial(rng: np.random.Generator, n_blocks: int, n_resample: int) -> np.ndarray:
    """[n_resample, n_blocks] multiplicities of n_blocks draws with replacement, never one block alone."""
    if n_blocks < 2:
        raise InputError(f"a bootstrap needs at least 2 blocks, got {n_blocks}; see block_moments")
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), n_resample).astype(float)


def _subsets(rng: np.random.Generator, n_blocks: int, fractions: np.ndarray, n_repeat: int) -> np.ndarray:
    """[n_size * n_repeat, n_blocks] zeros and ones."""
    sizes = np.repeat(np.maximum(1, np.round(fractions * n_blocks)), n_repeat)
    ranks = rng.permuted(np.tile(np.arange(n_blocks), (len(sizes), 1)), axis=1)
    return (ranks < sizes[:, None]).astype(float)


def _paired(upstream: Moments, downstream: Moments, weights: list[np.ndarray], distance: OfMoments) -> np.ndarray:
    """[n] distances of the i-th merge of one side to the i-th of the other, one pair in memory at a time.

    `weights` are those of upstream, [n, n_blocks], and of downstream.
    """
    upstream, downstream = to_host(upstream), to_host(downstream)  # once, and not for every pair
    values = np.empty(len(weights[0]))
    for i, (u, d) in enumerate(zip(*weights, strict=True)):
        sides = (weighted_merges(upstream, u[None]), weighted_merges(downstream, d[None]))
        values[i] = distance(*(part[0] for side in sides for part in (side.mean, covariance(side))))
    return values

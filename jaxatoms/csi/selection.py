"""Choose n structures of an upstream set whose node features lie closest to a task's, in Frechet distance.

Features enter, structure ids leave. The distance is convex in the raw second moments of the chosen rows, and
each structure contributes a fixed vector to those: so Frank-Wolfe on fractional memberships (a relaxation),
then rounding, then greedy swaps while the distance falls. Works in the leading principal directions of both
sets, which makes a step one matrix-vector product over all candidates.
"""

from typing import NamedTuple

import numpy as np

from jaxatoms.csi.aggregation import segments
from jaxatoms.csi.frechet import frechet_distance, symmetric_factor
from jaxatoms.csi.moments import Moments, covariance, to_host
from jaxatoms.types import InputError

CHUNK_ROWS = 65_536


class Candidates(NamedTuple):
    """Raw moments of every candidate structure in k directions, and the task in the same directions."""

    ids: np.ndarray  # [s] structure ids
    n_row: np.ndarray  # [s]
    total: np.ndarray  # [s, k] sum of projected rows
    second: np.ndarray  # [s, k (k + 1) / 2] float32 sum of projected outer products, upper triangle
    mean: np.ndarray  # [k] task
    cov: np.ndarray  # [k, k] task


class Selection(NamedTuple):
    """Chosen structures, ids ascending, and what they achieve in the reduced space."""

    structure: np.ndarray  # [n] structure ids
    distance: float  # squared Frechet distance of the chosen rows to the task
    relaxed: float  # the same of the fractional optimum, before rounding
    history: np.ndarray  # distance after each Frank-Wolfe step


def prepare_candidates(
    features: np.ndarray, structure: np.ndarray, upstream: Moments, task: Moments, n_direction: int = 32
) -> Candidates:
    """One pass over candidate features: per-structure raw moments in the leading directions.

    Directions are the top eigenvectors of S_upstream + S_task + (mean gap)(mean gap)^T; the origin is the
    task mean. Memory: s k (k + 1) / 2 float32, i.e. 211 MB for 100k structures and k = 32.

    Args:
      features: [n_row, d] candidate rows.
      structure: [n_row] structure ids.
      upstream: moments of the candidates.
      task: moments of the task.
      n_direction: k, at most d.

    Returns:
      `Candidates`.

    Raises:
      InputError: widths differ, or n_direction exceeds them.
    """
    if features.shape[1] != task.mean.shape[-1]:
        raise InputError(
            f"candidates have {features.shape[1]} features, the task {task.mean.shape[-1]}: "
            "extract both with the same model and layer"
        )
    if n_direction > features.shape[1]:
        raise InputError(f"cannot use {n_direction} directions of {features.shape[1]} features; lower their number")
    task, gap = to_host(task), to_host(upstream).mean - to_host(task).mean
    spread = covariance(upstream) + covariance(task) + np.outer(gap, gap)
    basis = np.linalg.eigh(spread)[1][:, -n_direction:]
    order, starts, ids = segments(structure)
    count = np.diff(np.append(starts, len(structure)))
    total, second = _structure_sums(features, order, starts, basis, task.mean)
    return Candidates(
        ids, count.astype(float), total, second, np.zeros(basis.shape[1]), basis.T @ covariance(task) @ basis
    )


def select_structures(candidates: Candidates, n: int, n_step: int = 100, seed: int = 0) -> Selection:
    """n distinct structures minimising the distance to the task.

    Args:
      candidates: from `prepare_candidates`.
      n: how many to choose.
      n_step: Frank-Wolfe steps.
      seed: of the rounding.

    Returns:
      `Selection`.

    Raises:
      InputError: n is not between 1 and the number of candidates, or the choice holds fewer than 2 rows.

    Source: docs/reference/csi.md, Definition (objective); Frank and Wolfe, Nav. Res. Log. Q. 3, 95 (1956).
    """
    if not 1 <= n <= len(candidates.ids):
        raise InputError(
            f"cannot select {n} of {len(candidates.ids)} structures; choose between 1 and that number"
        )
    weights, history = _relax(candidates, n, n_step)
    chosen = _round(weights, n, np.random.default_rng(seed))
    chosen = _swap(candidates, chosen)
    return Selection(
        candidates.ids[chosen],
        _distance(candidates, _sums(candidates, chosen.astype(float))),
        history[-1],
        np.array(history),
    )


def distance_of(candidates: Candidates, structure: np.ndarray) -> float:
    """Distance of any chosen structure ids to the task in the reduced space, e.g. of a random choice."""
    chosen = np.isin(candidates.ids, structure)
    return _distance(candidates, _sums(candidates, chosen.astype(float)))


def potential(
    mean_u: np.ndarray, cov_u: np.ndarray, mean_d: np.ndarray, cov_d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First-order change of the squared Frechet distance when mass moves to x: (x-m)^T A (x-m) + b (x-m).

    Args:
      mean_u, cov_u: [d] and [d, d] current Gaussian.
      mean_d, cov_d: the target.

    Returns:
      A [d, d] = 1 - T with T the optimal transport map from U to D, and b [d] = 2 (mean_u - mean_d).

    Source: Takatsu, Osaka J. Math. 48, 1005 (2011); T as in Olkin and Pukelsheim (1982).
    """
    factor = symmetric_factor(cov_d)  # T = F (F^T S_U F)^(-1/2) F^T
    values, vectors = np.linalg.eigh(factor.T @ cov_u @ factor)
    floor = 1e-12 * max(values[-1], np.finfo(float).tiny)
    inner = factor @ vectors / np.maximum(values, floor) ** 0.25
    return np.eye(len(mean_u)) - inner @ inner.T, 2 * (mean_u - mean_d)


def _structure_sums(
    features: np.ndarray, order: np.ndarray | None, starts: np.ndarray, basis: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Projected first [s, k] float64 and packed second [s, k(k+1)/2] float32 moments, chunk by chunk."""
    k = basis.shape[1]
    upper = np.triu_indices(k)
    total = np.empty((len(starts), k))
    second = np.empty((len(starts), len(upper[0])), np.float32)
    ends = np.append(starts[1:], len(features))
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + CHUNK_ROWS, side="right")))
        rows = slice(starts[first], ends[last - 1])
        z = (features[rows] if order is None else features[order[rows]]) @ basis - origin @ basis
        local = starts[first:last] - starts[first]
        total[first:last] = np.add.reduceat(z, local)
        second[first:last] = np.add.reduceat(z[:, upper[0]] * z[:, upper[1]], local)
        first = last
    return total, second


def _sums(c: Candidates, weights: np.ndarray) -> np.ndarray:
    """[1 + k + k(k+1)/2] raw moments of weighted structures."""
    used = np.flatnonzero(weights)
    w = weights[used]
    return np.concatenate([[w @ c.n_row[used]], w @ c.total[used], _matvec(c.second, used, w)])


def _matvec(second: np.ndarray, used: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Float64 sum of weighted float32 rows, chunk by chunk."""
    total = np.zeros(second.shape[1])
    for start in range(0, len(used), CHUNK_ROWS):
        total += w[start : start + CHUNK_ROWS] @ second[used[start : start + CHUNK_ROWS]].astype(np.float64)
    return total


def _gaussian(sums: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance from raw moments."""
    count, mean = sums[0], sums[1 : 1 + k] / sums[0]
    second = np.zeros((k, k))
    second[np.triu_indices(k)] = sums[1 + k :]
    second = second + np.triu(second, 1).T
    return mean, (second - count * np.outer(mean, mean)) / max(count - 1, 1.0)


def _distance(c: Candidates, sums: np.ndarray) -> float:
    return frechet_distance(*_gaussian(sums, len(c.mean)), c.mean, c.cov)


def _scores(c: Candidates, sums: np.ndarray) -> np.ndarray:
    """[s] first-order change of the distance if a structure's rows gain weight (times the row count)."""
    k = len(c.mean)
    mean, cov = _gaussian(sums, k)
    a, b = potential(mean, cov, c.mean, c.cov)
    linear = b - 2 * a @ mean
    constant = mean @ a @ mean - b @ mean - np.sum(a * cov)
    rows, cols = np.triu_indices(k)
    packed = a[rows, cols] * np.where(rows == cols, 1.0, 2.0)
    return c.second @ packed.astype(np.float32) + c.total @ linear + c.n_row * constant


def _relax(c: Candidates, n: int, n_step: int) -> tuple[np.ndarray, list[float]]:
    """Frank-Wolfe over memberships in [0, 1] that sum to n, from the uniform ones."""
    weights = np.full(len(c.ids), n / len(c.ids))
    sums = _sums(c, weights)
    history = [_distance(c, sums)]
    for _ in range(n_step):
        vertex = np.zeros(len(c.ids))
        vertex[np.argpartition(_scores(c, sums), n - 1)[:n]] = 1.0
        corner = _sums(c, vertex)
        step, value = _line_search(c, sums, corner)
        if step == 0.0:
            break
        weights += step * (vertex - weights)
        sums += step * (corner - sums)
        history.append(value)
    return weights, history


def _line_search(c: Candidates, sums: np.ndarray, corner: np.ndarray) -> tuple[float, float]:
    """Step in [0, 1] by golden section (the distance is unimodal along a segment), 0 if nothing improves."""
    low, high, ratio = 0.0, 1.0, (5**0.5 - 1) / 2
    for _ in range(16):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _distance(c, sums + left * (corner - sums)) < _distance(c, sums + right * (corner - sums)):
            high = right
        else:
            low = left
    step = (low + high) / 2
    value, now = _distance(c, sums + step * (corner - sums)), _distance(c, sums)
    return (step, value) if value < now else (0.0, now)


def _round(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """[s] bool with exactly n True: systematic sampling in random order, inclusion probability = weight."""
    order = rng.permutation(len(weights))
    edges = np.cumsum(weights[order]) * (n / weights.sum())
    crossings = np.diff(np.floor(np.concatenate([[0.0], edges]) + rng.uniform(0, 1))) > 0
    chosen = np.zeros(len(weights), bool)
    chosen[order[crossings]] = True
    surplus = int(chosen.sum()) - n  # rounding of the last edge can be off by one
    if surplus:
        pool = np.flatnonzero(chosen if surplus > 0 else ~chosen)
        chosen[rng.choice(pool, abs(surplus), replace=False)] = surplus < 0
    return chosen


def _swap(c: Candidates, chosen: np.ndarray, n_try: int = 200) -> np.ndarray:
    """Swaps the worst chosen for the best unchosen structures in halving batches while the distance falls."""
    sums = _sums(c, chosen.astype(float))
    best, size = _distance(c, sums), max(1, int(chosen.sum()) // 20)
    for _ in range(n_try):
        if size == 0 or chosen.all():
            break
        scores = _scores(c, sums)
        size = min(size, int((~chosen).sum()))
        out = _top(np.where(chosen, scores, -np.inf), size)
        into = _top(np.where(chosen, -np.inf, -scores), size)
        trial = chosen.copy()
        trial[out], trial[into] = False, True
        trial_sums = _sums(c, trial.astype(float))
        value = _distance(c, trial_sums)
        if value < best:
            chosen, sums, best = trial, trial_sums, value
        else:
            size //= 2
    return chosen


def _top(scores: np.ndarray, n: int) -> np.ndarray:
    return np.argpartition(-scores, n - 1)[:n]

"""Which structures represent a dataset: the reference's samplers, index for index, with NumPy alone.

Class labels (or losses) enter, positional indices leave. The reference draws with pandas and scikit-learn;
both defer to `numpy.random.RandomState`, whose streams are frozen: the same calls in the same order give the
same indices on any version. Class order matters: labels are grouped in sorted order, so pass the strings.
"""

import difflib
from collections.abc import Callable

import numpy as np

from jaxatoms.types import InputError

DIFFICULTIES = ("low", "high", "mid", "mixed")


def sample_random(n_total: int, n: int, seed: int = 0) -> np.ndarray:
    """[min(n, n_total)] int64 distinct indices, uniformly at random.

    Source: docs/reference/csi.md, Strategies, "random".
    """
    _check_request(n)
    return np.random.RandomState(seed).choice(n_total, min(n, n_total), replace=False).astype(np.int64)


def sample_balanced(classes: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Equally many structures of every class; rows of small classes repeat (the paper's upstream sampler).

    Args:
      classes: [n_total] labels.
      n: number of indices wanted.
      seed: the same for every class, round and shuffle, as in the reference.

    Returns:
      [n] int64 indices, shuffled; repeats only where a class has fewer than n // K rows.

    Raises:
      InputError: n < 1, no rows, or the rows run out while filling the remainder.

    Source: docs/reference/csi.md, Strategies, "balanced".
    """
    groups = _groups(classes, n)
    per_class = n // len(groups)
    if per_class == 0:
        chosen = _thin(_draw(groups, 1, seed), n, seed)
    else:
        chosen = _draw(groups, per_class, seed, repeat=True)
        while len(chosen) < n:
            extra = _draw(_without(groups, chosen), 1, seed)
            if len(extra) == 0:
                raise InputError(f"balanced sampling ran out of rows at {len(chosen)} of {n}; ask for fewer")
            chosen = np.concatenate([chosen, _thin(extra, n - len(chosen), seed)])
    return _shuffled(chosen, seed)


def sample_balanced_no_rep(classes: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """As `sample_balanced` without repeats: rounds of n // K, then 1, per class over the rows not yet chosen.

    Raises:
      InputError: n < 1 or n exceeds the number of rows.

    Source: docs/reference/csi.md, Strategies, "balanced_no_rep".
    """
    groups = _groups(classes, n)
    _check_enough(n, sum(map(len, groups)), "balanced_no_rep")
    chosen = np.empty(0, np.int64)
    per_class = max(1, n // len(groups))
    while len(chosen) < n:
        extra = _draw(_without(groups, chosen), per_class, seed)
        chosen = np.concatenate([chosen, _thin(extra, n - len(chosen), seed, keep_exact=True)])
        per_class = 1
    return _shuffled(chosen, seed)


def sample_uniform(classes: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """One structure of every class, the rest at random from all others, shuffled.

    Raises:
      InputError: n does not exceed the number of classes, or exceeds the number of rows.

    Source: docs/reference/csi.md, Strategies, "uniform".
    """
    groups = _groups(classes, n)
    n_total = sum(map(len, groups))
    if n <= len(groups):
        raise InputError(f"uniform sampling needs n > number of classes {len(groups)}, got {n}")
    _check_enough(n, n_total, "uniform")
    rng = np.random.RandomState(seed)  # pandas' GroupBy.sample shares one stream over the groups
    first = np.array([group[rng.choice(len(group), 1, replace=False)[0]] for group in groups])
    rest = np.setdiff1d(np.arange(n_total), first, assume_unique=True)
    more = rest[np.random.RandomState(seed).choice(len(rest), n - len(first), replace=False)]
    return _shuffled(np.concatenate([first, more]), seed)


def sample_stratified(classes: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """All singleton classes plus a class-proportional sample of the rest; not shuffled at the end.

    Raises:
      InputError: too few or too many rows wanted for one per class in the sample and in what is left.

    Source: docs/reference/csi.md, Strategies, "stratified"; scikit-learn `train_test_split(stratify=...)`.
    """
    groups = _groups(classes, n)
    rare = np.sort(np.concatenate([g for g in groups if len(g) == 1] or [np.empty(0, np.int64)]))
    common = [g for g in groups if len(g) > 1]
    n_train, n_test = n - len(rare), sum(map(len, common)) - (n - len(rare))
    if not common or min(n_train, n_test) < len(common):
        raise InputError(
            f"stratified sampling of {n} from {len(common)} repeated classes and {len(rare)} singletons "
            f"leaves {n_train} chosen and {n_test} unchosen rows; each must be >= {len(common)}"
        )
    rng = np.random.RandomState(seed)
    sizes = np.array([len(g) for g in common])
    take = _proportional(sizes, n_train, rng)
    _proportional(sizes - take, n_test, rng)  # scikit-learn also draws its test set: keeps the stream aligned
    train = np.concatenate([g[rng.permutation(len(g))[:k]] for g, k in zip(common, take, strict=True)])
    return np.concatenate([rng.permutation(train), rare])


def sample_difficulty(losses: np.ndarray, n: int, kind: str, seed: int = 0) -> np.ndarray:
    """Structures chosen by per-structure loss, shuffled. Ties keep dataset order (the reference: any).

    Args:
      losses: [n_total] finite losses.
      n: number of indices wanted.
      kind: "low" (n smallest), "high" (n largest), "mid" (random in the middle third) or "mixed" (thirds).
      seed: for draws and the shuffle.

    Raises:
      InputError: unknown kind, non-finite losses, or more rows wanted than the chosen part holds.

    Source: docs/reference/csi.md, Difficulty.
    """
    losses = np.asarray(losses)
    _check_difficulty(losses, n, kind)
    if kind == "high":
        return _shuffled(np.argsort(-losses, kind="stable")[:n], seed)
    order = np.argsort(losses, kind="stable")
    middle = order[len(order) // 3 : 2 * len(order) // 3]
    picks = {
        "low": lambda: order[:n],
        "mid": lambda: _pick(middle, n, seed),
        "mixed": lambda: _mixed(order, middle, n, seed),
    }
    return _shuffled(picks[kind](), seed)


SAMPLERS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "random": lambda classes, n, seed: sample_random(len(classes), n, seed),
    "balanced": sample_balanced,
    "balanced_no_rep": sample_balanced_no_rep,
    "stratified": sample_stratified,
    "uniform": sample_uniform,
}


def sample(strategy: str, classes: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Indices by the name of a strategy in `SAMPLERS`; `classes` [n_total] labels (only counted for random).

    Raises:
      InputError: unknown strategy, or whatever the strategy raises.
    """
    check_strategy(strategy)
    return SAMPLERS[strategy](classes, n, seed)


def check_strategy(strategy: str) -> None:
    """Raises InputError unless `strategy` is one of SAMPLERS."""
    if strategy not in SAMPLERS:
        close = difflib.get_close_matches(strategy, SAMPLERS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(SAMPLERS)}"
        raise InputError(f"unknown sampling strategy {strategy!r}; {hint}")


def _groups(classes: np.ndarray, n: int) -> list[np.ndarray]:
    """Row indices of each class, classes sorted, rows in dataset order."""
    _check_request(n)
    classes = np.asarray(classes)
    if classes.ndim != 1 or len(classes) == 0:
        raise InputError(f"classes have shape {classes.shape}, expected one label per structure")
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return np.split(np.argsort(inverse, kind="stable").astype(np.int64), np.cumsum(counts)[:-1])


def _draw(groups: list[np.ndarray], k: int, seed: int, repeat: bool = False) -> np.ndarray:
    """k rows of every group, each from a fresh `RandomState(seed)`; fewer from small ones unless `repeat`."""
    positions: dict[int, np.ndarray] = {}  # equal sizes draw equal positions
    for size in {len(g) for g in groups}:
        short = size < k
        positions[size] = np.random.RandomState(seed).choice(
            size, k if repeat else min(k, size), replace=repeat and short
        )
    return np.concatenate([g[positions[len(g)]] for g in groups]) if groups else np.empty(0, np.int64)


def _without(groups: list[np.ndarray], chosen: np.ndarray) -> list[np.ndarray]:
    """Groups less the chosen rows; groups that end up empty disappear."""
    if len(chosen) == 0:
        return groups
    left = np.ones(max(g.max() for g in groups) + 1, bool)
    left[chosen] = False
    return [kept for g in groups if len(kept := g[left[g]])]


def _thin(rows: np.ndarray, n: int, seed: int, keep_exact: bool = False) -> np.ndarray:
    """A random n of `rows` if there are at least n (more than n if `keep_exact`), else all in order."""
    if len(rows) < n or (keep_exact and len(rows) == n):
        return rows
    return np.random.RandomState(seed).choice(rows, n, replace=False)


def _pick(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    return rows[np.random.RandomState(seed).choice(len(rows), n, replace=False)]


def _mixed(order: np.ndarray, middle: np.ndarray, n: int, seed: int) -> np.ndarray:
    each = n // 3
    chosen = np.concatenate([order[:each], _pick(middle, each, seed), order[len(order) - each :]])
    rest = order[~np.isin(order, chosen)]
    return np.concatenate([chosen, _pick(rest, n - 3 * each, seed)]) if n > 3 * each else chosen


def _proportional(sizes: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
    """Class counts proportional to `sizes`, summing to n: floors, then largest remainders, ties at random."""
    share = sizes / sizes.sum() * n
    counts = np.floor(share)
    missing = int(n - counts.sum())
    for value in np.unique(share - counts)[::-1] if missing > 0 else ():
        tied = np.flatnonzero(share - np.floor(share) == value)
        add = min(len(tied), missing)
        counts[rng.choice(tied, size=add, replace=False)] += 1
        missing -= add
        if missing == 0:
            break
    return counts.astype(int)


def _shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    rows = rows.astype(np.int64)
    np.random.RandomState(seed).shuffle(rows)
    return rows


def _check_request(n: int) -> None:
    if n < 1:
        raise InputError(f"number of samples must be at least 1, got {n}")


def _check_enough(n: int, n_total: int, strategy: str) -> None:
    if n > n_total:
        raise InputError(f"{strategy} sampling of {n} needs as many rows, got {n_total}; ask for fewer")


def _check_difficulty(losses: np.ndarray, n: int, kind: str) -> None:
    _check_request(n)
    if kind not in DIFFICULTIES:
        raise InputError(f"unknown difficulty {kind!r}; use one of {', '.join(DIFFICULTIES)}")
    if not np.isfinite(losses).all():
        raise InputError(
            f"loss of structure {int(np.argmin(np.isfinite(losses)))} is not finite; recompute it"
        )
    third = 2 * len(losses) // 3 - len(losses) // 3
    wanted, available = {"mid": (n, third), "mixed": (n // 3, third)}.get(kind, (n, len(losses)))
    if wanted > available:
        raise InputError(f"{kind} difficulty needs {wanted} of {available} structures; ask for fewer")

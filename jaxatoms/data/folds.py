"""The five MatBench folds: scikit-learn's KFold and StratifiedKFold with MatBench's seed, in NumPy alone."""

import numpy as np

from jaxatoms.types import InputError

N_FOLD = 5
_SEED = 18012019  # MatBench v0.1, for every task


def matbench_fold(n: int, fold: int, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(train and validation records, test records) of one official fold, both ascending.

    Args:
      n: records of the task's file, in its order.
      fold: 0 to 4.
      labels: [n] classes of a classification task, whose shares every fold keeps; None for regression.

    Raises:
      InputError: another fold, or too few records.

    Source: docs/reference/finetuning.md, Splits; scikit-learn's `KFold(5, shuffle=True, random_state=18012019)`.
    """
    if not 0 <= fold < N_FOLD:
        raise InputError(f"fold {fold} does not exist; choose 0 to {N_FOLD - 1}")
    if n < N_FOLD:
        raise InputError(f"{n} structures are too few for {N_FOLD} folds; use the whole file")
    in_test = (_plain_folds(n) if labels is None else _stratified_folds(np.asarray(labels))) == fold
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _plain_folds(n: int) -> np.ndarray:
    """[n] fold in which each record is tested."""
    order = np.arange(n)
    np.random.RandomState(_SEED).shuffle(order)
    folds = np.empty(n, np.int64)
    for fold, records in enumerate(np.array_split(order, N_FOLD)):  # the first n % 5 are one longer
        folds[records] = fold
    return folds


def _stratified_folds(labels: np.ndarray) -> np.ndarray:
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    codes = np.argsort(np.argsort(first))[codes]  # classes by first appearance, as scikit-learn counts them
    ordered, n_class = np.sort(codes), len(first)
    allocation = [np.bincount(ordered[fold::N_FOLD], minlength=n_class) for fold in range(N_FOLD)]
    rng, folds = np.random.RandomState(_SEED), np.empty(len(labels), np.int64)
    for k in range(n_class):
        own = np.repeat(np.arange(N_FOLD), [counts[k] for counts in allocation])
        rng.shuffle(own)
        folds[codes == k] = own
    return folds

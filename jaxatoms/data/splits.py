"""Train, validation and test indices of a store: by group, as the file says, at random, or the downstream sets' own.

No group falls into two splits (frames of one molecule resemble each other), except a group that is the only
one. Saved splits carry the fingerprint of their store.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.folds import matbench_fold
from jaxatoms.data.readers.transition1x import SPLITS
from jaxatoms.data.registry import find_spec
from jaxatoms.data.store import Store
from jaxatoms.io import open_npz
from jaxatoms.types import InputError

# A group this many times larger than a held-out set stays in train. The reference's formulas are far smaller
# than its held-out sets, so this never acts there; it keeps small, uneven data sets from losing their train
# split.
_LARGEST_SHARE = 2.0
_RECORDS_PER_CHUNK = 16_384


class Split(NamedTuple):
    """Record indices, each [n] int64 ascending (random splits: in drawn order)."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


MD22_BUDGETS = {  # training and validation structures together
    "Ac-Ala3-NHMe": 6000,
    "DHA": 8000,
    "stachyose": 8000,
    "AT-AT": 3000,
    "AT-AT-CG-CG": 2000,
    "buckyball-catcher": 600,
    "double-walled_nanotube": 800,
}


def make_split(
    store: Store,
    rule: str = "group",
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    held_out: int | None = None,
) -> Split:
    """The split of a data set by its rule (`DatasetSpec.split_rule`).

    Args:
      rule: "official" takes the file's own split where it has one; otherwise, and for "group", by group; "record"
        draws records at random, whatever their group: near copies of a training structure may be held out.
      held_out: records that val and test each need at least (`DatasetSpec.held_out`), instead of the fractions; an
        excerpt of less than four times as many records goes by the fractions.

    Raises:
      InputError: an official split that tears a group apart.

    Example:
      >>> spec, store = open_dataset("demo:organic"); split = make_split(store, spec.split_rule)
    """
    if rule == "official" and "official_split" in store.extra_columns:
        return official_split(store)
    if rule == "record":
        return _record_split(len(store), seed, val_fraction, test_fraction)
    codes, names = store.groups
    if held_out is not None and 4 * held_out <= len(store):
        val_fraction = test_fraction = held_out / len(store)
    return group_split(
        codes, seed, val_fraction, test_fraction, _elements_of_groups(store, codes, len(names))
    )


def group_split(
    codes: np.ndarray,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    elements: np.ndarray | None = None,
) -> Split:
    """Whole groups in seeded order: into val until it is full, then test, the rest into train.

    A single group is split by record. Too few groups leave test, not train, empty (with a warning).

    Args:
      codes: [n] group of each record, 0..n_group-1.
      elements: [n_group, 121] bool; a group that alone holds an element stays in train, since an element
        absent from train would have no reference energy.

    Source: the procedure of reference `ani1x_splits.py`, whose own shuffle was unseeded.
    """
    sizes = np.bincount(codes)
    if len(sizes) == 1:
        return _record_split(len(codes), seed, val_fraction, test_fraction)
    elements = np.zeros((len(sizes), N_ELEMENT), bool) if elements is None else elements
    order = np.random.RandomState(seed).permutation(len(sizes))
    held_out = np.zeros(len(sizes), np.int8)  # 0 train, 1 val, 2 test
    for split, fraction in ((1, val_fraction), (2, test_fraction)):
        held_out[_choose(order[held_out[order] == 0], sizes, elements, fraction * len(codes))] = split
    if test_fraction > 0 and not (held_out == 2).any():
        warnings.warn(f"{len(sizes)} groups do not suffice for three splits: test is empty", stacklevel=3)
    return Split(*(np.flatnonzero(held_out[codes] == split) for split in range(3)))


def _choose(order: np.ndarray, sizes: np.ndarray, elements: np.ndarray, target: float) -> list[int]:
    """Groups in this order until they hold `target` records; at least one, if one can be spared."""
    chosen, n_record = [], 0
    if target <= 0 or len(order) < 2:
        return chosen
    groups_with = elements[order].sum(axis=0)  # [121] groups left in train that hold the element
    for group in order:
        # Val and test together must leave train a group.
        if n_record >= target or len(chosen) >= max(1, (len(order) - 1) // 2):
            break
        if sizes[group] <= _LARGEST_SHARE * target and (groups_with[elements[group]] > 1).all():
            groups_with -= elements[group]
            chosen.append(group)
            n_record += sizes[group]
    return chosen or [_smallest_to_spare(order, sizes, elements)]


def _smallest_to_spare(order: np.ndarray, sizes: np.ndarray, elements: np.ndarray) -> int:
    alone = elements & (elements[order].sum(axis=0) == 1)
    spare = order[~alone[order].any(axis=1)]
    spare = spare if len(spare) else order
    return int(spare[np.argmin(sizes[spare])])


def _elements_of_groups(store: Store, codes: np.ndarray, n_group: int) -> np.ndarray:
    """[n_group, 121] bool: the elements that occur in each group."""
    elements = np.zeros((n_group, N_ELEMENT), bool)
    for first in range(0, len(store), _RECORDS_PER_CHUNK):
        records = np.arange(first, min(first + _RECORDS_PER_CHUNK, len(store)))
        row, number = np.nonzero(store.element_counts(records))
        elements[codes[records[row]], number] = True
    return elements


def _record_split(n: int, seed: int, val_fraction: float, test_fraction: float) -> Split:
    # Rounded down, so that train keeps the records when there are only a few.
    n_val, n_test = int(n * val_fraction), int(n * test_fraction)
    return Split(*(np.sort(part) for part in random_split(n, n - n_val - n_test, n_val, seed)))


def official_split(store: Store) -> Split:
    """The split that the source file carries.

    Raises:
      InputError: the file has none, or a group of it lies in two splits.
    """
    codes, names = store.groups
    parts = store.column("official_split")
    lowest, highest = np.full(len(names), len(SPLITS)), np.full(len(names), -1)
    np.minimum.at(lowest, codes, parts)
    np.maximum.at(highest, codes, parts)
    torn = np.flatnonzero(lowest != highest)
    if len(torn):
        raise InputError(
            f"{store.source}: group '{names[torn[0]]}' lies in two official splits; download the file again"
        )
    return Split(*(np.flatnonzero(parts == split) for split in range(len(SPLITS))))


def random_split(n: int, n_train: int, n_val: int, seed: int = 42) -> Split:
    """A seeded shuffle of all n records, cut into train, val and (the rest) test.

    Raises:
      InputError: the parts are negative or exceed n.

    Source: docs/reference/finetuning.md, Splits: RandomState(42).shuffle(arange(n)), order train, val, test.
    """
    if n_train < 0 or n_val < 0 or n_train + n_val > n:
        raise InputError(
            f"a split into {n_train} train and {n_val} val does not fit {n} structures; lower the counts"
        )
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    return Split(*np.split(order, [n_train, n_train + n_val]))


def downstream_split(name: str, store: Store) -> Split:
    """The reference's split of a downstream data set, in drawn order; no run's seed changes it.

    Args:
      name: as `open_dataset` takes it; a path after '@' is ignored.
      store: the data set whole and in file order.

    Raises:
      InputError: no downstream data set, or fewer structures than the split needs.

    Source: docs/reference/finetuning.md, Splits: RandomState(42).shuffle(arange(n)), cut into train, val, test.

    Example:
      >>> spec, store = open_dataset("qm9:U_0"); split = downstream_split("qm9:U_0", store)
    """
    spec = find_spec(name.partition("@")[0])
    variant, n = spec.name.partition(":")[2], len(store)
    if spec.family == "matbench":
        task, fold = variant.split("/")
        return _fold_split(n, int(fold), store.column(spec.target) if task == "mp_is_metal" else None)
    if spec.family == "md22":
        n_val = int(0.05 * MD22_BUDGETS[variant])
        sizes = MD22_BUDGETS[variant] - n_val, n_val
    elif spec.family in ("spice", "qmof"):
        sizes = int(0.8 * n), n - int(0.8 * n) - int(0.1 * n)
    elif spec.family in ("rmd17", "qm9"):
        sizes = {"rmd17": (950, 50), "qm9": (n - 20_000, 10_000)}[spec.family]
    else:
        raise InputError(f"'{spec.name}' is no downstream data set; use its own split")
    if sizes[0] < 1 or sum(sizes) > n:
        raise InputError(
            f"{name}: {n} structures are too few for the published split; use the whole data set, or --split record"
        )
    return random_split(n, *sizes)


def _fold_split(n: int, fold: int, labels: np.ndarray | None) -> Split:
    rest, test = matbench_fold(n, fold, labels)
    train, val, _ = random_split(len(rest), int(0.9 * len(rest)), len(rest) - int(0.9 * len(rest)))
    return Split(rest[train], rest[val], test)


def save_split(path: Path | str, split: Split, store: Store) -> None:
    """Writes the indices, the names of the groups held out and the fingerprint of the store they belong to (npz)."""
    codes, names = store.groups
    held_out = {
        f"{part}_groups": np.array([names[code] for code in np.unique(codes[getattr(split, part)])], dtype=str)
        for part in ("val", "test")
    }
    with open(path, "wb") as file:  # an open file keeps numpy from appending .npz to the name
        np.savez_compressed(file, **split._asdict(), **held_out, fingerprint=np.array(store.fingerprint))


def load_split(path: Path | str, store: Store) -> Split:
    """The saved indices; a file of one's own needs the arrays `train`, `val` and `test` only.

    Raises:
      InputError: not a split file, one made for other records, or one that names a record twice or
        one that is not there.
    """
    with open_npz(path, "is not a readable split file", "make the split again") as saved:
        split = Split(*(saved[name].astype(np.int64) for name in Split._fields))
        fingerprint = str(saved["fingerprint"]) if "fingerprint" in saved else store.fingerprint
    if fingerprint != store.fingerprint:
        raise InputError(
            f"{path}: belongs to data with fingerprint {fingerprint[:12]}, but {store.source} now has "
            f"{store.fingerprint[:12]}; restore the data, or begin anew with the changed ones"
        )
    together = np.concatenate(split)
    if len(together) and (together.min() < 0 or together.max() >= len(store)):
        raise InputError(
            f"{path}: names record {together.max()} of {len(store)} in {store.path}; make the split again"
        )
    if len(np.unique(together)) != len(together):
        raise InputError(f"{path}: names a record twice; make the split again")
    return split

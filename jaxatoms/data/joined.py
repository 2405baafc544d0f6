"""A training set and the official validation set that lies beside it, read as one store (OC20, OC22).

Both are converted apart, each into its own store. Joined, the training records come first; the column
`official_split` says which are which, so that `task_split` finds the published split where it looks for it.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxatoms.data.registry import DatasetSpec, resolve
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.types import InputError, SystemBatch


class JoinedStore:
    """Two stores, one after the other; offers what `Store` offers to whoever reads records.

    Args:
      train: records 0..len(train)-1.
      val: the records after them.
    """

    def __init__(self, train: Store, val: Store):
        self.parts = (train, val)
        self.path, self.manifest = train.path, train.manifest  # the place of the training set stands for both
        self.n_node = np.concatenate([part.n_node for part in self.parts])
        self.energy = np.concatenate([part.energy for part in self.parts])

    def __len__(self) -> int:
        return len(self.n_node)

    def __reduce__(self):
        return JoinedStore, self.parts

    @property
    def source(self) -> str:
        """Where the training records came from, for messages."""
        return self.parts[0].source

    @property
    def fingerprint(self) -> str:
        """Hash of both contents."""
        return hashlib.sha256("\0".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @property
    def largest_element(self) -> int:
        """The largest atomic number."""
        return max(part.largest_element for part in self.parts)

    @property
    def periodic(self) -> bool:
        """Whether any record is periodic in any direction."""
        return any(part.periodic for part in self.parts)

    @property
    def groups(self) -> tuple[np.ndarray, list[str]]:
        """As `Store.groups`; a group of one part is another one than its namesake in the other."""
        (first, names), (second, others) = (part.groups for part in self.parts)
        return np.concatenate([first, second + np.int32(len(names))]), names + others

    @property
    def extra_columns(self) -> list[str]:
        """Names of the columns beside the usual ones that both parts have, and `official_split`."""
        shared = set.intersection(*(set(part.extra_columns) for part in self.parts))
        return sorted(shared | {"official_split"})

    def column(self, name: str) -> np.ndarray:
        """The per-record column of that name, in memory.

        Raises:
          InputError: no such column.
        """
        if name == "official_split":  # 0 train, 1 val
            return np.repeat(np.arange(2, dtype=np.int8), [len(part) for part in self.parts])
        return np.concatenate([part.column(name) for part in self.parts])

    def take(self, indices: np.ndarray) -> SystemBatch:
        """The records at these indices, in this order; see `Store.take`."""
        batches = [part.take(own) for part, own in self._runs(indices)]
        return SystemBatch(*(np.concatenate(column) for column in zip(*batches, strict=True)))

    def element_counts(self, indices: np.ndarray) -> np.ndarray:
        """[n_graph, 121] int32; see `Store.element_counts`."""
        return np.concatenate([part.element_counts(own) for part, own in self._runs(indices)])

    def elements(self, indices: np.ndarray) -> np.ndarray:
        """[121] bool; see `Store.elements`."""
        return np.any([part.elements(own) for part, own in self._runs(indices)], axis=0)

    def where(self, record: int) -> str:
        """The source and the record, as messages name them."""
        n_train = len(self.parts[0])
        return self.parts[int(record >= n_train)].where(record - n_train * int(record >= n_train))

    def _runs(self, indices: np.ndarray) -> Iterator[tuple[Store, np.ndarray]]:
        """Stretches of indices that lie in one part, as indices into that part."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        n_train = len(self.parts[0])
        for run in np.split(indices, np.flatnonzero(np.diff(indices >= n_train)) + 1):
            second = len(run) > 0 and run[0] >= n_train
            yield self.parts[int(second)], run - n_train * int(second)


def open_upstream(
    name: str,
    data_root: Path | str | None = None,
    cache_dir: Path | str | None = None,
    split_rule: str = "auto",
    *,
    must_validate: bool = True,
) -> tuple[DatasetSpec, Store | JoinedStore]:
    """`store.open_dataset` for a set to pretrain on: joined with its official validation set where it has one apart.

    Args:
      split_rule: see `task_split.task_split`; any but "auto" splits the training set alone.
      must_validate: False warns where the validation set is absent, instead of refusing: the set is then split by
        group, as `--split group` does.

    Raises:
      InputError: no validation set beside the training set, before anything is converted; or as `open_dataset`.

    Source: docs/reference/pretraining.md, Validation.
    """
    spec, source = resolve(name, data_root or os.environ.get("JAXATOMS_DATA") or None)
    if not spec.validation or split_rule != "auto":
        return open_dataset(name, data_root, cache_dir)
    folder = find_validation(spec, source)
    if folder is None:
        what = f"{name}: its published split trains on all of {source} and validates on {spec.validation[0]}"
        if must_validate:
            raise InputError(
                f"{what}, which is not beside it; put it there, or hold out a part of the data with --split group"
            )
        warnings.warn(f"{what}, which is not beside it; a tenth is held out by group instead", stacklevel=2)
        return open_dataset(name, data_root, cache_dir)
    _, val = open_dataset(f"{spec.name}@{folder}", data_root, cache_dir)
    spec, train = open_dataset(name, data_root, cache_dir)
    shared = {n for n in train.groups[1] if not n.startswith("#")} & set(val.groups[1])
    if shared:
        warnings.warn(f"{folder}: {len(shared)} of its systems, such as {min(shared)}, are also in {source}; "
                      "validation errors come out too small", stacklevel=2)  # fmt: skip
    return spec, JoinedStore(train, val)


def find_validation(spec: DatasetSpec, source: Path) -> Path | None:
    """The folder of the official validation set beside a training set, or beside the folder that holds it.

    Raises:
      InputError: it lies inside the training set, which would be trained on it.
    """
    inside = next((source / name for name in spec.validation if (source / name).is_dir()), None)
    if inside is not None:
        raise InputError(
            f"{source}: holds the validation set {inside.name} too; name the folder of the training set alone"
        )
    places = [place / name for place in list(source.absolute().parents)[:2] for name in spec.validation]
    return next((place for place in places if place.is_dir()), None)

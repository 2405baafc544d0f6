"""The one split that every command takes of a data set, so that what one of them trains on no other one tests on.

The published split or the file's own comes first, then groups, then records. Numbers of structures are taken inside its
training part; the test part never changes.
"""

import warnings
from pathlib import Path

import numpy as np

from jaxatoms.data.atom_energies import isolated_atoms
from jaxatoms.data.downstream import PUBLISHED
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.splits import Split, downstream_split, load_split, make_split
from jaxatoms.data.store import Store
from jaxatoms.types import InputError

_SEED = 42  # of the order in which `sizes` takes structures


def task_split(
    name: str, spec: DatasetSpec, store: Store, rule: str = "auto", sizes: tuple[int, int] | None = None
) -> Split:
    """The split of a data set, which depends on the data and the rule alone, never on a run's seed.

    Args:
      name: as `open_dataset` takes it, for messages.
      rule: "auto" takes the published split or the file's own where there is one, else keeps groups together, else
        draws records; "group" and "record" ask for these; anything else is the path of a saved split.
      sizes: (train, val) structures to keep of the training and validation parts, without isolated atoms; None keeps
        all.

    Raises:
      InputError: a set too small for its published split, a saved split of other data, more structures asked for than
        their part has.

    Example:
      >>> spec, store = open_dataset("demo:aspirin"); split = task_split("demo:aspirin", spec, store, sizes=(100, 50))
    """
    published = rule == "auto" and spec.family in PUBLISHED
    if published:
        split = downstream_split(name, store)
    elif rule in ("auto", "group", "record"):
        split = _isolated_atoms_to_train(store, _by_rule(name, spec, store, rule))
    else:
        split = load_split(Path(rule), store)
    if sizes is None:
        return split
    whole = split if published else _without_isolated_atoms(store, split)
    return _inside(name, whole, sizes, in_order=published)


def _by_rule(name: str, spec: DatasetSpec, store: Store, rule: str) -> Split:
    if rule != "auto":
        return make_split(store, rule, held_out=spec.held_out)
    has_own = "official_split" in store.extra_columns
    if spec.name == "file" and not has_own and store.manifest["n_group"] == 0:
        warnings.warn(
            f"{name} names no groups, so single structures are drawn for validation and test, and near copies of "
            "training structures may be among them; give related structures a common `group`, or use --split FILE.npz",
            stacklevel=3,
        )
    own_rule = "official" if has_own else spec.split_rule
    return make_split(store, own_rule, held_out=spec.held_out)


def _isolated_atoms_to_train(store: Store, split: Split) -> Split:
    """Isolated atoms fix reference energies, and a test on them says nothing."""
    isolated = isolated_atoms(store)
    if not np.isin(np.concatenate(split[1:]), isolated).any():
        return split
    train = np.sort(np.concatenate([split.train, *(part[np.isin(part, isolated)] for part in split[1:])]))
    return _without_isolated_atoms(store, split)._replace(train=train)


def _without_isolated_atoms(store: Store, split: Split) -> Split:
    """They are no structures to train on, so that a number of structures does not count them."""
    isolated = isolated_atoms(store)
    return Split(*(part[~np.isin(part, isolated)] for part in split))


def _inside(name: str, split: Split, sizes: tuple[int, int], in_order: bool) -> Split:
    """The first of each part in drawn order; published splits are drawn already."""
    kept = []
    for word, part, size in zip(("training", "validation"), split, sizes, strict=False):
        if size > len(part):
            raise InputError(
                f"{name}: asked for {size} {word} structures, but the {word} part of its split has {len(part)}; lower "
                "the number, or choose another --split"
            )
        order = np.arange(len(part)) if in_order else np.random.RandomState(_SEED).permutation(len(part))
        kept.append(part[order[:size]])
    return split._replace(train=kept[0], val=kept[1])

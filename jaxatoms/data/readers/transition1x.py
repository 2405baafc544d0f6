"""Transition1x file (split / formula / reaction) -> Systems. The file is in eV and A already.

The reactant, product and transition-state sub-groups repeat frames of their reaction and are ignored.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from jaxatoms.data.readers.checks import MIN_ATOMS, fail, open_hdf5, require_datasets
from jaxatoms.data.readers.molecules import iter_frames, pieces
from jaxatoms.types import System

VERSION = 1
SPLITS = ("train", "val", "test")
_NAMES = ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
_LAYOUT = (
    "of Transition1x: data|train|val|test/<formula>/<reaction>/"
    "{atomic_numbers, positions, wB97x_6-31G(d).energy, wB97x_6-31G(d).forces}"
)


def read(path: Path | str) -> Iterator[System]:
    """Yields every frame of the reactions with at least four atoms.

    It takes the groups train, val and test in this order, or `data` where they are absent.

    The group is `<formula>_<reaction>`.

    Raises:
      InputError: missing file, another layout, unknown element, NaN or infinite label.

    Source: docs/reference/datasets.md, Transition-1x.
    """
    for part in parts(path):
        yield from read_part(part)


def parts(path: Path | str) -> list[tuple]:
    """(file, reaction, ...): pieces of the file, in the order of `read`, that a conversion may do apart.

    Raises:
      InputError: missing file or another layout.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        found = [
            (record, len(reaction[_NAMES[1]]))
            for top in _top_groups(path, file)
            for record, reaction in _reactions(path, top, file[top])
        ]
    return [(str(path), *(found[i][0] for i in piece)) for piece in pieces([n for _, n in found])]


def read_part(part: tuple) -> Iterator[System]:
    """Yields one piece of `parts`."""
    path = Path(part[0])
    with open_hdf5(path) as file:
        for record in part[1:]:
            yield from iter_frames(path, record, file[record], _NAMES, unit=1.0, group=_group_name(record))


def official_split(path: Path | str) -> np.ndarray | None:
    """The official split of each record, in the order of `read`.

    Returns:
      [n] int8, index into SPLITS; None when the file has no split groups.

    Raises:
      InputError: missing file or another layout.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        tops = _top_groups(path, file)
        if tops == ("data",):
            return None
        sizes = [
            sum(len(reaction[_NAMES[1]]) for _, reaction in _reactions(path, top, file[top])) for top in tops
        ]
        return np.repeat(np.array([SPLITS.index(top) for top in tops], np.int8), sizes)


def _top_groups(path: Path, file: h5py.File) -> tuple[str, ...]:
    # In the official file `data` holds everything once more, so it is read only where it stands alone.
    tops = tuple(name for name in SPLITS if name in file) or (("data",) if "data" in file else ())
    if not tops:
        fail(path, "", "has none of the groups data, train, val, test", f"expected the layout {_LAYOUT}")
    return tops


def _reactions(path: Path, top: str, formulas: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    for formula, reactions in _subgroups(path, top, formulas):
        for name, reaction in _subgroups(path, f"{top}/{formula}", reactions):
            record = f"{top}/{formula}/{name}"
            if not isinstance(reaction, h5py.Group):
                fail(path, record, "is not a group", f"expected the layout {_LAYOUT}")
            require_datasets(path, record, reaction, ("atomic_numbers", *_NAMES), _LAYOUT)
            if len(reaction["atomic_numbers"]) >= MIN_ATOMS:
                yield record, reaction


def _subgroups(path: Path, record: str, group: h5py.Group | h5py.Dataset) -> Iterator[tuple[str, h5py.Group]]:
    if not isinstance(group, h5py.Group):
        fail(path, record, "is not a group", f"expected the layout {_LAYOUT}")
    yield from group.items()


def _group_name(record: str) -> str:
    return "_".join(record.split("/")[1:])

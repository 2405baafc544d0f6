"""OC22 S2EF-total shards -> Systems with total energies, eV and A."""

from collections.abc import Iterator
from pathlib import Path

from jaxatoms.data.readers import oc_lmdb
from jaxatoms.types import System

VERSION = 1
parts = oc_lmdb.parts


def read_part(part: tuple) -> Iterator[System]:
    """Yields one piece of `parts`; the group is the system id."""
    return oc_lmdb.read_part(part, group="")


def read(path: Path | str) -> Iterator[System]:
    """Yields every record of the shards below a folder, in the order of their names.

    Raises:
      InputError: no shards, a damaged one, or a faulty record (see `oc_lmdb.read_part`).

    Source: docs/reference/datasets.md, OC22.
    """
    for part in parts(path):
        yield from read_part(part)

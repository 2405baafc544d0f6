"""Tags of atoms on a slab: 0 sub-surface, 1 surface, 2 adsorbate; the one rule for readers and calculator."""

import itertools

import numpy as np

from jaxatoms.types import InputError

REMEDY = "set 0 sub-surface, 1 surface, 2 adsorbate (docs/prediction.md has a line for ASE's tags), or remove the tags"


def surface_tags(where: str, tags: np.ndarray | None, positions: np.ndarray, cell: np.ndarray) -> np.ndarray | None:
    """The tags that a network reads, of a structure that ASE holds.

    `ase.build` numbers the layers of a slab downwards (1 on top, 2 below it, ...) and leaves adsorbates at 0. Read as
    they stand, such tags turn an adsorbate into bulk, so they are refused: by their value, or where the layers of tags
    2, 1 and 0 lie above one another in this order.

    Args:
      where: name of the structure in messages.
      tags: [n_node] integers, or None.
      positions: [n_node, 3] A.
      cell: [3, 3] A, rows are lattice vectors; the layers lie along the third.

    Returns:
      [n_node] uint8, or None where nobody set tags (ASE then has zeros, which would mean "all sub-surface").

    Raises:
      InputError: tags other than 0, 1, 2, or those of `ase.build`.
    """
    if tags is None or not np.any(tags):
        return None
    tags = np.asarray(tags)
    bad = (tags < 0) | (tags > 2)
    if bad.any():
        raise InputError(f"{where}: tag {int(tags[np.argmax(bad)])}; {REMEDY}")
    if _layers_count_downwards(tags, positions, cell):
        raise InputError(f"{where}: tags that count the layers downwards, as ase.build sets them; {REMEDY}")
    return tags.astype(np.uint8)


def _layers_count_downwards(tags: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> bool:
    present = np.unique(tags)[::-1]
    if len(present) < 2:
        return False
    height = _height(positions, np.asarray(cell, np.float64))
    ranges = [(height[tags == tag].min(), height[tags == tag].max()) for tag in present]
    return all(below[1] < above[0] for below, above in itertools.pairwise(ranges))


def _height(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """[n_node] A above the vacuum, along the normal of the first two lattice vectors; along z without them."""
    normal = np.cross(cell[0], cell[1])
    length = np.linalg.norm(normal)
    normal = normal / length if length > 0 else np.array([0.0, 0.0, 1.0])
    height, period = positions @ normal, abs(cell[2] @ normal)
    if period < 1e-6:
        return height
    height = height % period
    order = np.sort(height)
    # Atoms that were wrapped across the border stand on the other side of the largest gap.
    gaps = np.diff(order, append=order[0] + period)
    return (height - order[(np.argmax(gaps) + 1) % len(order)]) % period

"""Tags of slabs: those of the networks pass, those of ase.build are refused."""

import ase.build
import numpy as np
import pytest

from jaxatoms.data.tags import surface_tags
from jaxatoms.types import InputError


def slab(layers, adsorbate="O"):
    atoms = ase.build.fcc111("Cu", (2, 2, layers), vacuum=8, periodic=True)
    if adsorbate:
        ase.build.add_adsorbate(atoms, adsorbate, 1.5)
    return atoms


def read(atoms):
    return surface_tags("here", atoms.get_tags(), atoms.positions, atoms.cell.array)


@pytest.mark.parametrize("atoms", [slab(1), slab(2), slab(2, ""), slab(4)])
def test_layer_numbers_of_ase_are_refused(atoms):
    with pytest.raises(InputError, match="here: .*set 0 sub-surface, 1 surface, 2 adsorbate"):
        read(atoms)
    atoms.positions += (0, 0, 0.5 * atoms.cell[2, 2])
    atoms.wrap()
    with pytest.raises(InputError):
        read(atoms)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_documented_line_turns_them_into_those_of_the_networks(layers):
    atoms = slab(layers)
    atoms.set_tags([{0: 2, 1: 1}.get(tag, 0) for tag in atoms.get_tags()])
    tags = read(atoms)
    assert tags.dtype == np.uint8
    assert tags[-1] == 2 and (tags == 1).sum() == 4
    atoms.positions[-1, 2] -= atoms.cell[2, 2]  # an image of the adsorbate
    np.testing.assert_array_equal(read(atoms), tags)


def test_tags_that_nobody_set_are_none():
    atoms = slab(2)
    atoms.set_tags(0)
    assert read(atoms) is None
    assert surface_tags("here", None, atoms.positions, atoms.cell.array) is None

"""Limits of neighbours that fall inside a shell of equal distances."""

import ase.build
import numpy as np
import pytest

from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.graphs.shells import n_parted, parted_limits, whole_limits


def parted(atoms, cutoff=6.0):
    n = np.array([len(atoms)])
    return parted_limits(
        *candidate_edges(atoms.positions, n, np.asarray(atoms.cell)[None], atoms.pbc[None], np.array([cutoff])), n[0]
    )


def test_shells_of_a_face_centred_crystal():
    """12, 6, 24, 12, 24 neighbours and so on."""
    found = parted(ase.build.bulk("Cu", cubic=True))
    for k in (12, 18, 42, 54, 78, 500):
        assert n_parted(found, [k]) == 0
    assert n_parted(found, [17]) == n_parted(found, [12, 20]) == 4
    assert whole_limits(found, 20, lambda k: (k,)) == [18, 42]
    assert whole_limits(found, 20, lambda k: (k, k // 2 + 3)) == [18, 78]


@pytest.mark.parametrize("atoms", [ase.Atoms("H"), ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])])
def test_few_atoms_have_no_shell(atoms):
    assert not parted(atoms).any()


def test_a_rattled_crystal_has_no_shell():
    atoms = ase.build.bulk("Cu", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    assert n_parted(parted(atoms, 4.5), range(1, 10)) == 0

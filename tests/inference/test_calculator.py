"""The calculator in people's hands: strained and grown cells, drifting atoms, tags, pickles, shells, ASE's rules."""

import copy
import pickle
import warnings

import ase.build
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.types import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A nano model whose forces are a gradient."""
    config = GemNetOCConfig(**NANO, direct_forces=False)
    record = {"cutoff": 6.0, "energy_std": 0.05, "force_std": 1.0}
    return checkpoints.write(tmp_path_factory.mktemp("calculator"), config, {"only": record})


@pytest.fixture(scope="module")
def exact(folder):
    return JaxAtomsCalculator(folder, dtype="float64")


@pytest.fixture(scope="module")
def single(folder):
    return JaxAtomsCalculator(folder)


def crystal(repeat=(1, 1, 1), seed=0) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", cubic=True) * repeat
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_strained_cells_of_three_sizes_take_three_compilations(single):
    """A scan of volumes and sizes: sixteen cells that are all different."""
    rng, before, energies = np.random.default_rng(0), single.n_compiled, []
    for i in range(16):
        atoms = crystal(((1, 1, 1), (2, 1, 1), (3, 1, 1))[i % 3], seed=i)
        strain = rng.uniform(-0.05, 0.05, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.calc = single
        energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 16
    assert single.n_compiled - before <= 3


def test_atoms_that_drift_through_many_cells_change_nothing(exact):
    """Energy, forces and stress are those of the atoms inside; the coordinates stay the user's."""
    atoms, rng = crystal(), np.random.default_rng(1)
    far = atoms.copy()
    far.positions += rng.integers(-40, 40, (4, 3)) @ np.asarray(far.cell)
    where = far.positions.copy()
    atoms.calc = exact
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    far.calc = exact
    assert far.get_potential_energy() == pytest.approx(energy, abs=1e-11)
    assert far.get_forces() == pytest.approx(forces, abs=1e-11)
    assert far.get_stress() == pytest.approx(stress, abs=1e-11)
    assert np.array_equal(far.positions, where)
    assert far.get_forces()[1] == pytest.approx(calculate_numerical_forces(far, eps=1e-4, iatoms=[1])[0], abs=1e-6)


def test_an_atom_that_leaves_the_cell_does_not_start_a_search(exact):
    atoms = crystal()
    atoms.positions[0] = (0.05, 0.1, 0.1)
    atoms.calc = exact
    atoms.get_potential_energy()
    searches = exact.n_search
    atoms.positions[0, 0] -= 0.1
    atoms.get_potential_energy()
    assert exact.n_search == searches


def test_a_change_of_tags_is_a_change(single):
    atoms = crystal()
    atoms.set_tags([2, 2, 2, 2])
    atoms.calc = single
    before = atoms.get_potential_energy()
    atoms.set_tags([0, 0, 0, 2])
    assert single.calculation_required(atoms, ["energy"])
    assert abs(atoms.get_potential_energy() - before) > 1e-6
    atoms.set_tags([0, 0, 0, 3])
    with pytest.raises(InputError, match="tag 3; set 0 sub-surface"):
        atoms.get_potential_energy()


def test_charges_are_no_change(single):
    atoms = crystal()
    atoms.calc = single
    atoms.get_potential_energy()
    atoms.set_initial_charges([0.1] * 4)
    assert not single.calculation_required(atoms, ["energy", "forces"])


@pytest.mark.parametrize("duplicate", [lambda calc: pickle.loads(pickle.dumps(calc)), copy.deepcopy])
def test_a_pickled_calculator_keeps_settings_and_results(folder, single, duplicate, monkeypatch):
    atoms = crystal()
    atoms.calc = single
    energy = atoms.get_potential_energy()
    monkeypatch.chdir(folder.parent)
    other = duplicate(JaxAtomsCalculator(folder.relative_to(folder.parent), dtype="float64", skin=0.5, max_neighbors=9))
    assert (other._dtype, other._skin.skin, other._limit) == (np.float64, 0.5, 9)
    copied = duplicate(single)
    monkeypatch.undo()
    assert copied.get_potential_energy(atoms) == energy and copied.n_compiled == 0


def test_what_is_handed_out_is_a_copy(single):
    atoms = crystal()
    atoms.calc = single
    first = atoms.get_forces()
    expected = first.copy()
    first[:] = 7
    atoms.get_stress()[:] = 7
    assert np.array_equal(atoms.get_forces(), expected)
    with pytest.raises(ValueError, match="read-only"):
        single.results["forces"][:] = 7


def test_a_molecule_has_no_stress(single):
    atoms = ase.build.molecule("CH3OH")
    atoms.calc = single
    with pytest.raises(PropertyNotImplementedError, match="stress needs a structure that is periodic"):
        atoms.get_stress()
    atoms.center(vacuum=3)  # a box does not make it periodic
    assert np.isfinite(atoms.get_forces()).all() and "stress" not in single.results
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    assert single.get_property("stress", atoms, allow_calculation=False) is None


def test_it_keeps_the_rules_that_ase_tests_its_own_calculators_by(single):
    """After ase/test/test_calc_properties.py, test_singlepointcalc.py and calculators' documented contract."""
    atoms = crystal()
    atoms.calc = single
    properties = atoms.get_properties(["energy", "free_energy", "forces", "stress"])
    assert properties["forces"].shape == (4, 3) and properties["stress"].shape == (6,)
    assert isinstance(properties["energy"], float)
    assert atoms.get_potential_energy(force_consistent=True) == properties["free_energy"] == properties["energy"]
    assert not single.calculation_required(atoms, ["energy", "forces", "stress"])
    assert single.calculation_required(atoms, ["dipole"])
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    assert single.atoms == atoms and single.atoms is not atoms
    atoms.positions[0] += 0.01
    assert single.check_state(atoms) == ["positions"]
    assert single.get_property("energy", atoms, allow_calculation=False) is None
    single.reset()
    assert single.atoms is None and single.results == {}
    moved = atoms.get_forces()
    assert not np.allclose(moved, properties["forces"])
    single.calculate(atoms, ["forces"], ["positions"])  # as ASE calls it, and without a cache
    assert np.array_equal(single.results["forces"], moved)
    assert single.todict() == {}


def test_a_limit_inside_a_shell_is_said_once(folder):
    perfect = ase.build.bulk("Cu", cubic=True)
    calc = JaxAtomsCalculator(folder, max_neighbors=30)
    words = r"limit of 30 neighbours .* at 4 of 4 atoms.* = 18 or 42 keeps .* main graph, 158 in all four"
    with pytest.warns(UserWarning, match=words):
        calc.get_potential_energy(perfect)
    perfect.set_cell(1.01 * perfect.cell, scale_atoms=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calc.get_potential_energy(perfect)


def test_cells_of_one_crystal_agree_where_no_shell_is_parted(folder):
    crystal = ase.build.bulk("Cu", cubic=True)
    crystal.positions[1] += 0.1  # forces that are not zero
    calc = JaxAtomsCalculator(folder, max_neighbors=160)
    one, other = (calc.get_forces(crystal * repeat) for repeat in ((2, 1, 1), (1, 1, 2)))
    assert one == pytest.approx(other, abs=1e-4 * np.abs(one).max())  # float32

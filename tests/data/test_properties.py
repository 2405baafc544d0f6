"""Properties of a file's structures and atoms: found by name, normalised, masked where missing, refused where vague."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream_task import constants_record, open_downstream, with_constants
from jaxatoms.data.readers import ase_file
from jaxatoms.types import InputError


def _molecule(i):
    atoms = ase.build.molecule(["H2O", "CH4", "NH3"][i % 3])
    atoms.rattle(0.1, seed=i)
    charges = 0.1 * atoms.numbers - (0.1 * atoms.numbers).mean()
    atoms.arrays |= {"q": charges, "kind": np.arange(len(atoms))}
    atoms.info |= {"dipole": charges @ atoms.positions, "gap": 1.0 + 0.1 * i}
    return atoms


def _written(path, change=lambda i, atoms: None, n=30):
    structures = [_molecule(i) for i in range(n)]
    for i, atoms in enumerate(structures):
        change(i, atoms)
    ase.io.write(path, structures)
    return f"file:{path}"


@pytest.fixture
def opened(tmp_path):
    def open_file(targets, change=lambda i, atoms: None):
        name = _written(tmp_path / "own.extxyz", change)
        return open_downstream(name, cache_dir=str(tmp_path / "cache"), targets=targets)

    return open_file


def test_real_numbers_per_atom_and_dipoles_are_read_and_whole_numbers_are_not(tmp_path):
    _written(tmp_path / "own.extxyz", n=2)
    first, second = ase_file.read(tmp_path / "own.extxyz")
    assert set(first.atom_extra) == {"atom_q"} and len(second.atom_extra["atom_q"]) == len(second.positions)
    np.testing.assert_allclose(first.extra["vector_dipole"], _molecule(0).info["dipole"], rtol=1e-7)


def test_results_of_a_calculator_count_too(tmp_path):
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = _molecule(1)
    del atoms.info["dipole"]
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, magmoms=np.linspace(0, 1, 5), dipole=np.arange(3.0))
    ase.io.write(tmp_path / "own.traj", atoms)
    (system,) = ase_file.read(tmp_path / "own.traj")
    np.testing.assert_allclose(system.atom_extra["atom_magmoms"], np.linspace(0, 1, 5))
    np.testing.assert_allclose(system.extra["vector_dipole"], np.arange(3.0))


def test_labels_are_normalised_and_come_back_from_the_record(opened):
    task, split = opened("q,dipole,gap")
    targets = Corpus((task,)).build(samples_of(0, split.train))[2]
    assert targets.properties.shape == (len(split.train), 4) and targets.atom_properties.shape[1] == 1
    assert np.isnan(targets.energy).all() and np.isnan(targets.forces).all()
    q, dipole, gap = (targets.atom_properties[:, 0], targets.properties[:, :3], targets.properties[:, 3])
    for values in (q, gap):
        assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(1, rel=1e-3)
    assert np.sqrt((dipole**2).mean()) == pytest.approx(1, rel=1e-3)
    part = task.facts.part("gap")
    np.testing.assert_allclose(gap * part.std + part.mean, task.store.column("target_gap")[split.train], rtol=1e-5)
    again = with_constants(task, constants_record(task))
    assert again.facts == task.facts


def test_what_is_missing_is_masked_and_the_rest_counts(opened):
    def without(i, atoms):
        if i % 3 == 0:
            del atoms.info["gap"]
        if i % 3 == 1:
            atoms.arrays["q"][0] = np.nan
        if i % 3 == 2:
            del atoms.arrays["q"]

    task, _ = opened("gap,q", without)
    samples = samples_of(0, np.arange(3))
    systems, _, targets = Corpus((task,)).build(samples)
    first, second = systems.n_node[:2]
    assert np.isnan(targets.properties[0]).all() and np.isfinite(targets.properties[1:]).all()
    known = np.isfinite(targets.atom_properties[:, 0])
    assert known[:first].all() and not known[first] and known[first + 1 : first + second].all()
    assert not known[first + second :].any()


def test_the_dipole_of_a_charged_structure_is_moved_to_its_centre_of_mass(opened):
    def charged(i, atoms):
        atoms.info |= {"charge": 1.0, "dipole_origin": np.array([5.0, 0, 0])}
        atoms.info["dipole"] = np.array([0.5, 0.0, 0.0])

    task, _ = opened("dipole", charged)
    targets = Corpus((task,)).build(samples_of(0, np.arange(1)))[2]
    expected = np.array([5.5, 0, 0]) - _molecule(0).get_center_of_mass()
    np.testing.assert_allclose(targets.properties[0] * task.facts.parts[0].std, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "change", "words"),
    [
        ("dipole", lambda i, a: a.info.update(charge=1.0), "structure 0: has a dipole and a charge, .*dipole_origin"),
        ("dipole,gap", lambda i, a: a.set_cell([9, 9, 9]) or a.set_pbc(True), "has a dipole and is periodic"),
        ("gap,energy", lambda i, a: None, "energy and gap cannot be learnt together"),
        ("gap,target_gap", lambda i, a: None, "names target_gap twice"),
        ("q,mu", lambda i, a: None, "no column 'mu'; it has atom_q, target_gap, vector_dipole"),
        ("q,gap", lambda i, a: a.info.update(gap=1.0), "the training targets do not vary"),
        ("q,gap", lambda i, a: a.arrays["q"].fill(np.inf), "structure 0: atom_q is infinite"),
    ],
)
def test_vague_targets_are_refused_in_one_line(opened, targets, change, words):
    with pytest.raises(InputError, match=words) as error:
        opened(targets, change)
    assert "\n" not in str(error.value)


def test_properties_of_one_name_are_told_apart(opened):
    def both(i, atoms):
        atoms.info["q"] = 0.5 * i

    task, _ = opened("target_q,atom_q", both)
    assert task.facts.learnt == ("target_q", "atom_q")
    assert task.facts.part("target_q").reduction == "mean" and task.facts.part("atom_q").reduction == "atom"


def test_values_that_are_not_learnt_are_not_looked_at(opened):
    def damaged(i, atoms):
        atoms.info["dipole"] = np.full(3, np.nan)
        atoms.arrays["q"][:] = np.inf

    task, _ = opened("gap,target_gap_2", lambda i, atoms: damaged(i, atoms) or atoms.info.update(gap_2=0.1 * i))
    assert task.facts.learnt == ("gap", "gap_2")


def test_a_stress_of_six_numbers_is_no_property_of_six_atoms(tmp_path):
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = ase.build.molecule("CH3OH")
    atoms.set_cell([9, 9, 9])
    atoms.set_pbc(True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, stress=np.linspace(0, 1, 6))
    ase.io.write(tmp_path / "own.traj", atoms)
    (system,) = ase_file.read(tmp_path / "own.traj")
    assert system.atom_extra is None and system.extra["stress"].shape == (3, 3)

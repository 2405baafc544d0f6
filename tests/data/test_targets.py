"""What --targets says, and where reference energies come from."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data.atom_energies import atom_energies, isolated_atoms
from jaxatoms.data.downstream_task import constants_record, open_downstream, with_constants
from jaxatoms.data.store import open_dataset
from jaxatoms.data.targets import DEFAULT_WEIGHTS, parse_targets, potential_weights
from jaxatoms.types import InputError

FREE = {"H": -13.6, "C": -1030.0, "O": -2041.0}
BOUND = -4.0  # eV per atom of every structure


def _labelled(symbols, rng, cell=None, stress=None, energy_shift=0.0):
    n = len(Atoms(symbols))
    atoms = Atoms(symbols, rng.uniform(0, 1, (n, 3)) + np.arange(n)[:, None], cell=cell, pbc=cell is not None)
    energy = sum(FREE[s] + BOUND for s in atoms.get_chemical_symbols()) + energy_shift
    results = {"energy": energy, "forces": rng.normal(size=(n, 3))}
    atoms.calc = SinglePointCalculator(atoms, **results | ({} if stress is None else {"stress": stress}))
    return atoms


def _alone(symbol, **options):
    atoms = Atoms(symbol, [[0.0, 0, 0]], **options)
    atoms.calc = SinglePointCalculator(atoms, energy=FREE[symbol], forces=np.zeros((1, 3)))
    atoms.info["config_type"] = "IsolatedAtom"
    return atoms


@pytest.fixture
def opened(tmp_path):
    """`opened(frames)`: their name as a data set and their store."""

    def write(frames, keys=""):
        ase.io.write(tmp_path / "own.extxyz", frames)
        name = f"file:{tmp_path / 'own.extxyz'}{keys}"
        return name, open_dataset(name, cache_dir=tmp_path / "cache")[1]

    return write


def test_targets_are_names_with_or_without_weights():
    assert parse_targets("energy:1,forces:10, stress:0.5") == {"energy": 1.0, "forces": 10.0, "stress": 0.5}
    assert parse_targets("gap") == {"gap": None}
    assert potential_weights(parse_targets("forces")) == {}
    assert potential_weights(parse_targets("stress,energy:3")) == {"energy": 3.0, "stress": DEFAULT_WEIGHTS["stress"]}


@pytest.mark.parametrize("text, words", [
    ("energy:1,energy:2", "twice"), ("energy,", "an empty name"), ("energy:-1", "'-1' is no weight"),
    ("forces:many", "'many' is no weight"), ("forces:nan", "is no weight"),
])  # fmt: skip
def test_targets_that_make_no_sense_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_targets(text)


def test_isolated_atoms_are_those_without_neighbours(opened):
    bulk = _labelled("C", np.random.default_rng(0), cell=[2.5] * 3)
    boxed = [_alone("O", cell=[20.0] * 3, pbc=True), _alone("C", cell=[20, 20, 3], pbc=True)]
    _, store = opened([_alone("H"), bulk, *boxed])
    assert isolated_atoms(store).tolist() == [0, 2]


def test_energies_of_isolated_atoms_get_the_mean_of_the_structures_on_top(opened):
    rng = np.random.default_rng(0)
    frames = [_labelled(s, rng) for s in ("CH4", "C2H4", "CH3OH")] + [_alone(s) for s in FREE]
    _, store = opened(frames)
    found = atom_energies(store, np.arange(3))
    assert (found.kind, found.shift) == ("isolated", pytest.approx(BOUND))
    for z, symbol in ((1, "H"), (6, "C"), (8, "O")):
        assert found.reference.coeff[z] == pytest.approx(FREE[symbol] + BOUND)
    assert found.reference.span is None  # one composition alone would not fix three energies
    assert atom_energies(store, np.arange(3), "fit").kind == "fit"


def test_an_element_without_an_isolated_atom_is_fitted_or_refused(opened):
    rng = np.random.default_rng(0)
    _, store = opened([_labelled("CH4", rng), _labelled("C2H4", rng), _alone("H")])
    assert atom_energies(store, np.arange(2)).kind == "fit"
    with pytest.raises(InputError, match="no isolated atom with an energy of C.*--e0s fit"):
        atom_energies(store, np.arange(2), "isolated")


def test_reference_energies_from_a_file(opened, tmp_path):
    rng = np.random.default_rng(0)
    _, store = opened([_labelled("CH4", rng), _labelled("C2H4", rng)])
    file = tmp_path / "e0s.json"
    file.write_text(json.dumps({"H": FREE["H"], "6": FREE["C"]}))
    found = atom_energies(store, np.arange(2), str(file))
    assert found.kind == "file" and found.reference.coeff[6] == pytest.approx(FREE["C"] + BOUND)
    found.reference.save(tmp_path / "again.npz")
    again = atom_energies(store, np.arange(2), str(tmp_path / "again.npz"))
    assert again.shift == pytest.approx(0) and again.reference.coeff[1] == pytest.approx(FREE["H"] + BOUND)
    short, odd = ('{"H": -13.6}', "no reference energy of C"), ('{"Xx": 1}', "no reference energies")
    for text, words in (short, odd, ("[]", "no reference energies")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            atom_energies(store, np.arange(2), str(file))


def test_a_potential_has_energies_in_the_unit_of_its_forces(opened, tmp_path):
    rng = np.random.default_rng(0)
    frames = [_labelled("CH4" if i % 2 else "C2H4", rng, energy_shift=rng.normal()) for i in range(30)]
    name, store = opened([*frames, *(_alone(s) for s in FREE)])
    task, split = open_downstream(name, cache_dir=tmp_path / "cache", targets="energy:1,forces:10")
    assert task.std == task.facts.force_std and task.mean == 0
    used = np.concatenate(split)
    assert len(used) == 30 and not np.isin(isolated_atoms(store), used).any()
    systems = store.take(used)
    labels = task.targets(systems, used)
    expected = np.array([frames[i].get_potential_energy() for i in used])
    reference = task.facts.reference(systems.atomic_numbers, systems.n_node)
    np.testing.assert_allclose(labels.energy * task.facts.force_std, expected - reference, atol=1e-3)
    assert labels.stress is None
    again = with_constants(task, json.loads(json.dumps(constants_record(task))))
    assert (again.facts.references, again.facts.span) == (task.facts.references, task.facts.span)
    assert (again.mean, again.std, again.facts.force_std) == (task.mean, task.std, task.facts.force_std)


def test_stress_is_learnt_where_it_is(opened, tmp_path):
    rng = np.random.default_rng(0)
    voigt = np.arange(6.0)
    frames = [_labelled("C2H4", rng, cell=[6.0] * 3, stress=voigt if i % 2 else None) for i in range(30)]
    name, store = opened(frames)
    task, split = open_downstream(name, cache_dir=tmp_path / "cache", targets="forces,stress")
    labels = task.targets(store.take(split.train), split.train)
    known = np.isfinite(labels.stress).all(axis=(1, 2))
    np.testing.assert_array_equal(known, split.train % 2 == 1)
    matrix = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    np.testing.assert_allclose(labels.stress[known][0] * task.facts.force_std, matrix, rtol=1e-5)


@pytest.mark.parametrize("targets, e0s, words", [
    ("forces,stress", "auto", "has no stress; leave stress out"),
    ("energy,gap", "auto", "cannot be learnt together"),
    ("forces", "fit", "no energies are learnt"),
    ("energy,forces", "nowhere.json", "nowhere.json: no reference energies"),
])  # fmt: skip
def test_targets_that_the_data_do_not_have_are_refused(opened, tmp_path, targets, e0s, words):
    name, _ = opened([_labelled("CH4", np.random.default_rng(i)) for i in range(30)])
    with pytest.raises(InputError, match=words):
        open_downstream(name, cache_dir=tmp_path / "cache", targets=targets, e0s=e0s)


def test_stress_without_a_cell_is_refused_by_its_record(opened, tmp_path):
    rng = np.random.default_rng(0)
    frames = [_labelled("C2H4", rng, cell=[6.0] * 3, stress=np.ones(6)) for _ in range(20)]
    frames.insert(3, _labelled("C2H4", rng, stress=np.zeros(6)))
    name, _ = opened(frames)
    with pytest.raises(InputError, match="structure 3: has a stress and no cell"):
        open_downstream(name, cache_dir=tmp_path / "cache", targets="forces,stress")


def test_virials_and_prefixed_keys_are_read_in_the_sign_of_ase(opened):
    rng = np.random.default_rng(0)
    atoms = [_labelled("C2H4", rng, cell=[5.0, 6.0, 7.0]) for _ in range(3)]
    virial = np.diag([1.0, 2.0, 3.0])
    for one in atoms:
        one.info["REF_virial"], one.info["REF_energy"] = virial, one.get_potential_energy()
    _, store = opened(atoms, "#REF_energy")
    np.testing.assert_allclose(store.column("stress")[0], -virial / 210.0)
    _, store = opened(atoms, "#,,REF_virial")
    np.testing.assert_allclose(store.column("stress")[2], -virial / 210.0)
    with pytest.raises(InputError, match="no stress under 'other'"):
        opened(atoms, "#,,other")

"""Labelling from the command line: round trips through both formats, failures, resuming, checkpoints, refusals."""

import json
import re

import ase.build
import ase.io
import h5py
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from fixtures import checkpoints
from fixtures.nano import NANO

from experiments import label
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.data.store import open_dataset
from jaxatoms.inference import inputs
from jaxatoms.labels import files
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.tools.drafts import Journal
from jaxatoms.units import HARTREE

EMT_NAME, FAILING = "ase.calculators.emt:EMT", "fixtures.calculators:Failing"
NAMES = ("CH4", "CH3OH", "CH3CH2OH", "CH3OCH3", "C2H4", "H2O")


def molecules(names=NAMES):
    out = [ase.build.molecule(name) for name in names]
    for i, atoms in enumerate(out):
        atoms.rattle(0.05, seed=i)
        atoms.info["name"] = f"molecule {i}"
    return out


@pytest.fixture
def source(tmp_path):
    """Molecules of several formulas, two isomers among them; the first has a wrong energy and an earlier method."""
    structures = molecules()
    structures[0].info["label_checkpoint"] = "of an earlier labelling"
    structures[0].calc = SinglePointCalculator(structures[0], energy=0.0, forces=np.zeros((5, 3)))
    ase.io.write(tmp_path / "in.extxyz", structures)
    return tmp_path / "in.extxyz"


@pytest.fixture
def mixed(tmp_path):
    """Six molecules, of which numbers 1 and 4 hold nitrogen."""
    ase.io.write(tmp_path / "mixed.extxyz", molecules(("CH4", "NH3", "CH3OH", "C2H6", "HCN", "C2H4")))
    return tmp_path / "mixed.extxyz"


def run(source, out, *options, method=EMT_NAME):
    arguments = ["--structures", str(source), "--out", str(out), "--with", method]
    return label.main([*arguments, "--quiet", *options])


def refused(capsys, *arguments, **method):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **method)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and len(text.splitlines()) == 1, text
    return text


def assert_labelled(ours, calculator):
    """The results are those of ASE's own call of the calculator at the positions read back."""
    own = ours.copy()
    own.calc = calculator
    assert ours.get_potential_energy() == pytest.approx(own.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(ours.get_forces(), own.get_forces(), atol=1e-5)


def test_extended_xyz_holds_results_input_and_method(source, tmp_path):
    assert run(source, tmp_path / "out.extxyz") == 0
    out = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [atoms.info["name"] for atoms in out] == [f"molecule {i}" for i in range(len(NAMES))]
    for atoms in out:
        assert_labelled(atoms, EMT())
        assert atoms.info["label_method"] == EMT_NAME and atoms.info["label_ase"] == f"ase {ase.__version__}"
        assert "label_checkpoint" not in atoms.info
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.json"))
    store = open_dataset(f"file:{tmp_path / 'out.extxyz'}", cache_dir=tmp_path / "cache")[1]
    stored = store.take(np.arange(len(store)))
    np.testing.assert_allclose(stored.energy, [atoms.get_potential_energy() for atoms in out])
    np.testing.assert_allclose(stored.forces, np.concatenate([atoms.get_forces() for atoms in out]), atol=1e-6)
    assert not any("label" in name for name in store.extra_columns), "the method is no label"


def test_a_crystal_gets_stress(tmp_path):
    crystal = ase.build.bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=0)
    ase.io.write(tmp_path / "in.traj", crystal)
    run(tmp_path / "in.traj", tmp_path / "out.extxyz")
    out = ase.io.read(tmp_path / "out.extxyz")
    crystal.calc = EMT()
    np.testing.assert_allclose(out.get_stress(), crystal.get_stress(), atol=1e-8)


def test_the_data_set_ani1x_reads_an_h5_file(source, tmp_path, capsys):
    run(source, tmp_path / "out.h5")
    assert "1 structures of the input have fewer than 4 atoms" in capsys.readouterr().out
    with h5py.File(tmp_path / "out.h5") as file:
        assert set(file) == {"CH4", "CH4O", "C2H6O", "C2H4", "H2O"} and file.attrs["label_method"] == EMT_NAME
        assert file["C2H6O/wb97x_dz.energy"].shape == (2,), "isomers share a formula"
    store = open_dataset(f"ani1x@{tmp_path / 'out.h5'}", cache_dir=tmp_path / "cache")[1]
    assert len(store) == len(NAMES) - 1
    for i in range(len(store)):
        stored = store.take(np.array([i]))
        atoms = ase.Atoms(stored.atomic_numbers, stored.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=stored.energy[0], forces=stored.forces)
        assert_labelled(atoms, EMT())
    given = molecules(NAMES[:-1])
    for atoms in given:
        atoms.calc = EMT()
    energies = store.take(np.arange(len(store))).energy
    np.testing.assert_allclose(sorted(energies), sorted(a.get_potential_energy() for a in given), atol=1e-5)


def test_an_h5_file_without_its_unit_is_judged_by_its_energies(source, tmp_path, capsys):
    """The release itself says no unit: energies of EMT are then taken for another unit than Hartree."""
    run(source, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "a") as file:
        assert file["CH4/wb97x_dz.energy"][0] * HARTREE == pytest.approx(2.02, abs=0.1)
        del file.attrs["energy_unit"]
    with pytest.raises(ValueError, match="in another unit"):
        open_dataset(f"ani1x@{tmp_path / 'out.h5'}", cache_dir=tmp_path / "cache")


def _periodic(atoms):
    atoms.pbc, atoms.cell = True, [9, 9, 9]


@pytest.mark.parametrize(("change", "words"), [
    (_periodic, "in.xyz: structure 1: is periodic, which an .h5 file cannot hold; choose --out with .extxyz"),
    (lambda atoms: atoms.set_initial_charges([1, 0, 0, 0]), "structure 1: has initial_charges"),
])  # fmt: skip
def test_what_the_layout_of_ani1x_cannot_hold_is_refused_before_any_calculation(tmp_path, capsys, change, words):
    structures = molecules(("CH4", "NH3"))
    change(structures[1])
    ase.io.write(tmp_path / "in.xyz", structures, format="extxyz")
    assert words in refused(capsys, tmp_path / "in.xyz", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", ["out.extxyz", "out.h5"])
def test_a_failure_stops_the_command_which_then_goes_on_without_it(mixed, tmp_path, capsys, name):
    words = r"mixed.extxyz: structure 1: the calculation failed \(CalculationFailed: SCF not converged in 250 cycles\)"
    out = tmp_path / name
    assert re.search(words, refused(capsys, mixed, out, method=FAILING))
    assert not out.exists()
    assert run(mixed, out, "--on-failure", "skip", method=FAILING) == 0
    said = capsys.readouterr().out
    assert "4 structures -> " in said and "2 structures were left out" in said
    record = json.loads((tmp_path / f"{name}.failures.json").read_text())
    assert [row["structure"] for row in record["failures"]] == [1, 4] and record["label_method"] == FAILING
    assert all("SCF not converged" in row["reason"] for row in record["failures"])
    if name.endswith("xyz"):
        assert [a.info["name"][-1] for a in ase.io.read(out, ":")] == ["0", "2", "3", "5"]
    else:
        with h5py.File(out) as file:
            assert set(file) == {"CH4", "CH4O", "C2H6", "C2H4"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("how", ["nan", "none"])
def test_results_that_are_none_are_written_nowhere(mixed, tmp_path, how):
    options = ("--on-failure", "skip", "--options", json.dumps({"how": how}))
    run(mixed, tmp_path / "out.extxyz", *options, method=FAILING)
    assert len(ase.io.read(tmp_path / "out.extxyz", ":")) == 4
    run(mixed, tmp_path / "out.extxyz")  # nothing fails: the list of an earlier command goes
    assert not (tmp_path / "out.extxyz.failures.json").exists()


def test_a_file_of_failures_alone_gives_no_output(tmp_path, capsys):
    ase.io.write(tmp_path / "in.extxyz", molecules(("NH3", "N2")))
    options = (tmp_path / "in.extxyz", tmp_path / "out.extxyz", "--on-failure", "skip")
    assert "every calculation failed, the first with structure 0" in refused(capsys, *options, method=FAILING)
    assert [path.name for path in tmp_path.glob("out*")] == []
    assert run(*options) == 0, "the failures are not remembered"


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("name", ["out.extxyz", "out.h5"])
def test_a_killed_labelling_goes_on_where_it_ended(mixed, tmp_path, monkeypatch, name, torn):
    """Killed before a commit, or (torn) after the files grew and before the journal said so."""
    monkeypatch.setattr(label, "BATCH_MOST", 2)
    run(mixed, tmp_path / f"whole_{name}", "--on-failure", "skip", method=FAILING)
    commit, attempt = Journal.commit, label.label_all

    def die(self, n, chunks):
        if self.done == 2:
            for draft in self.drafts:
                _ = torn and self.drafts[draft].append(chunks[draft])
            raise KeyboardInterrupt
        commit(self, n, chunks)

    monkeypatch.setattr(Journal, "commit", die)
    with pytest.raises(SystemExit):
        run(mixed, tmp_path / name, "--on-failure", "skip", method=FAILING)
    assert not (tmp_path / name).exists()
    monkeypatch.setattr(Journal, "commit", commit)
    seen = []
    monkeypatch.setattr(label, "label_all", lambda method, structures, workers: (
        seen.append(outcome.index) or outcome for outcome in attempt(method, structures, workers)))
    run(mixed, tmp_path / name, "--on-failure", "skip", method=FAILING)
    assert seen == [2, 3, 4, 5]
    if name.endswith("xyz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()
    else:
        assert_same_h5(tmp_path / name, tmp_path / f"whole_{name}")
    failures = [json.loads((tmp_path / f"{n}.failures.json").read_text()) for n in (name, f"whole_{name}")]
    assert failures[0] == failures[1]
    assert not list(tmp_path.glob(".*"))


def assert_same_h5(path, other):
    with h5py.File(path) as one, h5py.File(other) as two:
        assert list(one) == list(two)
        for formula in one:
            for key in one[formula]:
                np.testing.assert_array_equal(one[formula][key][()], two[formula][key][()])


def test_a_kill_while_the_h5_file_is_written_loses_nothing(mixed, tmp_path, monkeypatch):
    write = files.write_ani1x

    def die(path, *arguments):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_ani1x", die)
    with pytest.raises(SystemExit):
        run(mixed, tmp_path / "out.h5", "--on-failure", "skip", method=FAILING)
    assert not (tmp_path / "out.h5").exists()
    monkeypatch.setattr(files, "write_ani1x", write)
    run(mixed, tmp_path / "out.h5", "--on-failure", "skip", method=FAILING)
    assert len(json.loads((tmp_path / "out.h5.failures.json").read_text())["failures"]) == 2
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file) == 4
    assert not list(tmp_path.glob(".*"))


def test_another_method_does_not_go_on(mixed, tmp_path, capsys):
    refused(capsys, mixed, tmp_path / "out.extxyz", method=FAILING)
    text = refused(capsys, mixed, tmp_path / "out.extxyz", "--options", '{"how": "nan"}', method=FAILING)
    assert "was begun with label_options" in text


def test_workers_write_the_same_file(source, tmp_path):
    run(source, tmp_path / "one.extxyz")
    run(source, tmp_path / "two.extxyz", "--workers", "2")
    assert (tmp_path / "one.extxyz").read_bytes() == (tmp_path / "two.extxyz").read_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A nano model with one energy and one force head; knows the elements 1..39."""
    return checkpoints.write(tmp_path_factory.mktemp("nano"), GemNetOCConfig(**NANO), {"only": {"energy_std": 2.0}})


def test_a_checkpoint_labels_what_it_knows(checkpoint, tmp_path):
    gold = ase.Atoms("Au2", [[0, 0, 0], [0, 0, 2.5]])
    ase.io.write(tmp_path / "in.extxyz", [*molecules(("CH4", "CH3OH")), gold])
    run(tmp_path / "in.extxyz", tmp_path / "out.h5", "--on-failure", "skip", method=str(checkpoint))
    run(tmp_path / "in.extxyz", tmp_path / "out.xyz", "--on-failure", "skip", "--task", "only", method=str(checkpoint))
    (failure,) = json.loads((tmp_path / "out.h5.failures.json").read_text())["failures"]
    assert failure["structure"] == 2 and "was not trained on the elements 79" in failure["reason"]
    calculator = JaxAtomsCalculator(str(checkpoint))
    for atoms in ase.io.read(tmp_path / "out.xyz", ":", format="extxyz"):
        assert atoms.info["label_task"] == "only" and atoms.info["label_weights"] == inputs.weights(checkpoint)
        own = atoms.copy()
        own.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(own.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), own.get_forces(), atol=1e-4)


def test_options_without_effect_are_refused(checkpoint, source, tmp_path, capsys):
    out = tmp_path / "out.extxyz"
    for option in (("--workers", "2"), ("--options", '{"skin": 2}')):
        assert f"{option[0]} has no effect with a checkpoint" in refused(capsys, source, out, *option,
                                                                         method=str(checkpoint))  # fmt: skip
    assert "--task has no effect with a calculator" in refused(capsys, source, out, "--task", "x")


@pytest.mark.parametrize(("out", "options", "words"), [
    ("out.db", (), "its suffix must be .extxyz, .xyz, .h5"),
    ("in.extxyz", (), "--out is --structures"),
    ("out.extxyz", ("--workers", "0"), "--workers must be positive"),
    ("out.extxyz", ("--on-failure", "pass"), "--on-failure must be stop or skip, got 'pass'"),
    ("none/out.extxyz", (), "cannot write"),
])  # fmt: skip
def test_bad_settings_are_refused(source, tmp_path, capsys, out, options, words):
    assert words in refused(capsys, source, tmp_path / out, *options)


def test_an_empty_file_is_refused(tmp_path, capsys):
    (tmp_path / "in.extxyz").write_text("")
    assert "in.extxyz" in refused(capsys, tmp_path / "in.extxyz", tmp_path / "out.extxyz")

"""Energies, forces and stress learnt together: metrics, record, and a calculator whose results are derivatives."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from experiments import evaluate, finetune, predict
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.data.corpus import Corpus
from jaxatoms.data.downstream_task import open_downstream
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.runs import energy_zero
from jaxatoms.training.checkpoint_files import read_meta

SHORT = ["--max-steps", "6", "--batch-size", "4", "--batch-shapes", "1", "--cutoff", "4", "--max-neighbors", "12"]


def _frames(n=48, seed=0):
    """Strained and displaced Cu and CuAu cells with EMT's labels, stress in two of three, and both atoms alone."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        atoms = bulk("Cu", a=3.7, cubic=True)
        atoms.symbols[rng.permutation(4)[: i % 3]] = "Au"
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.rattle(0.08, seed=i)
        yield _labelled(atoms, with_stress=i % 3 != 0)
    for symbol in ("Cu", "Au"):
        yield _labelled(Atoms(symbol, [[0, 0, 0]]), with_stress=False)


def _labelled(atoms: Atoms, with_stress: bool) -> Atoms:
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if with_stress:
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("alloy") / "alloy.extxyz"
    ase.io.write(path, list(_frames()))
    return path


def _run(file, run_dir, init, *options):
    words = ["--downstream", f"file:{file}", "--init", str(init), "--run-dir", str(run_dir), *SHORT, *options]
    assert finetune.main(words) == 0
    return run_dir


@pytest.fixture(scope="module")
def run(nano_run, file, tmp_path_factory):
    return _run(file, tmp_path_factory.mktemp("run") / "run", nano_run, "--targets", "energy:5,forces:10,stress:1")


def test_every_target_is_evaluated_in_its_unit(run):
    test = json.loads((run / "test.json").read_text())["last_ema"]
    assert (test["unit"], test["energy"]["unit"], test["stress"]["unit"]) == ("meV/A", "meV/atom", "meV/A^3")
    assert test["stress"]["mae_gpa"] == pytest.approx(test["stress"]["mae"] * 0.1602177, rel=1e-5)
    assert 0 < test["stress"]["n"] < test["energy"]["n"]  # not every test structure has a stress
    summary = json.loads((run / "summary.json").read_text())
    measures = {"force_mae_mev_per_angstrom", "energy_mae_mev_per_atom", "stress_mae_mev_per_cubic_angstrom", "loss"}
    assert set(summary["validation"]) == measures
    assert set(summary["validation_mean_baselines"]) == {"forces", "energy", "stress"}
    assert {path.name for path in run.glob("test_stress_*")} == {
        f"test_stress_{kind}_{weights}_ema.png" for kind in ("parity", "errors") for weights in ("last", "best")
    }


def test_the_reference_energies_are_those_of_the_isolated_atoms(run, file):
    record = read_meta(run / "checkpoints" / "last")["tasks"][0]
    assert "energy_zero" not in record and record["energy_std"] == record["force_std"]
    alone = {a.numbers[0]: a.get_potential_energy() for a in ase.io.read(file, ":") if len(a) == 1}
    constants = json.loads((run / "data" / "constants.json").read_text())["references"]
    shift = {z: constants[str(z)] - energy for z, energy in alone.items()}
    assert shift[29] == pytest.approx(shift[79]) and record["reference"].keys() == constants.keys()


def test_the_zero_of_the_energy_is_fitted_to_the_network(run, file):
    """Six steps do not teach it; the mean error of the training energies is nearly zero all the same."""
    frames = [atoms for atoms in ase.io.read(file, ":") if len(atoms) == 4]
    calculator = JaxAtomsCalculator(f"{run}/checkpoints/last")
    errors = [calculator.get_potential_energy(atoms) - atoms.get_potential_energy() for atoms in frames]
    assert abs(np.mean(errors)) < 0.2 * np.std([atoms.get_potential_energy() for atoms in frames])
    test, before = (json.loads((run / name).read_text()) for name in ("test.json", "test_before.json"))
    assert test["last_ema"]["energy"]["mae"] < 2 * test["last_ema"]["energy"]["mean_baseline_mae"]
    assert before[0]["energy"]["mae"] < 2 * before[0]["energy"]["mean_baseline_mae"]
    assert evaluate.main(["--run", str(run)]) == 0
    again = json.loads((run / "test.json").read_text())
    for weights in ("last_ema", "best_ema"):
        assert again[weights]["energy"]["mae"] == pytest.approx(test[weights]["energy"]["mae"], rel=1e-4)


def test_the_calculator_gives_derivatives_of_its_energy(run, file):
    atoms = next(a for a in ase.io.read(file, ":") if len(a) == 4)
    atoms.calc = JaxAtomsCalculator(f"{run}/checkpoints/last", dtype="float64")
    forces, stress, volume = atoms.get_forces(), atoms.get_stress(voigt=False), atoms.get_volume()

    def energy(change):
        other = atoms.copy()
        change(other)
        other.calc = atoms.calc
        return other.get_potential_energy()

    step = 1e-4
    for i, axis in ((0, 0), (2, 1)):
        moved = np.zeros((4, 3))
        moved[i, axis] = step
        slope = (energy(lambda a: a.translate(moved)) - energy(lambda a: a.translate(-moved))) / (2 * step)  # noqa: B023
        assert -slope == pytest.approx(forces[i, axis], rel=1e-5, abs=1e-7)
    for i, j in ((0, 0), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        cells = [atoms.cell.array @ (np.eye(3) + sign * strain) for sign in (1, -1)]
        high, low = (energy(lambda a: a.set_cell(cell, scale_atoms=True)) for cell in cells)  # noqa: B023
        assert (high - low) / (2 * step * volume) == pytest.approx(stress[i, j], rel=1e-5, abs=1e-8)


def test_what_is_learnt_is_predicted(run, file, tmp_path):
    out = tmp_path / "out.extxyz"
    structures = tmp_path / "in.extxyz"
    ase.io.write(structures, [a for a in ase.io.read(file, ":") if len(a) > 1][:3])
    assert predict.main(["--checkpoint", str(run), "--structures", str(structures), "--out", str(out)]) == 0
    atoms = ase.io.read(out)
    calculator = JaxAtomsCalculator(str(run))
    again = ase.io.read(structures)
    again.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(atoms.get_stress(), again.get_stress(), atol=1e-6)


def test_the_start_and_the_reference_energies_are_told(nano_run, file, tmp_path, capsys):
    run = _run(file, tmp_path / "run", nano_run, "--targets", "energy,forces", "--lr", "1e-30")
    told = capsys.readouterr().out
    assert "reference energies (eV), of isolated atoms" in told and "Au" in told
    summary = json.loads((run / "summary.json").read_text())
    assert summary["validation"] == pytest.approx(summary["validation_before"], rel=1e-6)
    assert "did not improve" in told
    (before,) = json.loads((run / "test_before.json").read_text())
    after = json.loads((run / "test.json").read_text())["last_ema"]
    for one, two in ((before, after), (before["energy"], after["energy"])):
        assert one["mae"] == pytest.approx(two["mae"], rel=1e-6) and one["n"] == two["n"]


@pytest.mark.slow
def test_direct_forces_with_energies(nano_run, file, tmp_path, refusal):
    options = ["--targets", "energy:5,forces:10", "--forces", "direct", "--quiet"]
    run = _run(file, tmp_path / "run", nano_run, *options)
    atoms = next(a for a in ase.io.read(file, ":") if len(a) == 4)
    atoms.calc = JaxAtomsCalculator(str(run))
    assert np.isfinite(atoms.get_potential_energy()) and atoms.get_forces().shape == (4, 3)
    words = ["--downstream", f"file:{file}", "--init", str(nano_run), "--run-dir", str(tmp_path / "no"), *SHORT]
    assert "stress is a derivative" in refusal(finetune, [*words, "--targets", "stress,forces", "--forces", "direct"])


@pytest.mark.slow
def test_a_label_key_of_the_stress_reaches_the_reader(nano_run, file, tmp_path):
    """The comma before the third key is no comma between data sets."""
    frames = [atoms for atoms in ase.io.read(file, ":") if len(atoms) == 4][:20]
    for atoms in frames:
        atoms.info["my_stress"] = np.eye(3) * 0.01
    ase.io.write(tmp_path / "named.extxyz", frames)
    name = f"{tmp_path / 'named.extxyz'}#,,my_stress"
    options = ["--targets", "forces,stress", "--quiet", "--remat", "auto", "--split", "record"]
    run = _run(name, tmp_path / "run", nano_run, *options)
    assert json.loads((run / "test.json").read_text())["last_ema"]["stress"]["n"] > 0


def test_an_element_outside_the_fit_of_the_zero_keeps_its_reference(file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy_zero, "ENERGY_PROBE", 1)  # one structure: of copper alone, or with gold
        task, split = open_downstream(f"file:{file}", targets="energy,forces")
        corpus = Corpus((task,))
        pure = np.array([r for r in split.train if not (task.store.take(np.array([r])).atomic_numbers == 79).any()])
        probe = energy_zero.energy_probe(corpus, 0, pure, 0, [])
    zeros = lambda batch: ModelOutput(np.zeros(len(batch.energy)), None)  # noqa: E731
    fitted = energy_zero.fit_energy_zero(probe, zeros)
    assert fitted.coeff[79] == task.facts.references[79] and fitted.coeff[29] != task.facts.references[29]

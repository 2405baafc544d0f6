"""Several properties of structures and atoms learnt together: reported by name, predicted into the file, kept apart."""

import json

import ase.build
import ase.io
import numpy as np
import pytest

import jaxatoms
from experiments import evaluate, finetune, predict
from jaxatoms.training.checkpoint_files import read_meta

NAMES = ["gap", "q", "dipole"]


def _molecules(n=36):
    for i in range(n):
        atoms = ase.build.molecule(["CH3OH", "CH4", "H2O"][i % 3])
        atoms.rattle(0.1, seed=i)
        charges = 0.1 * atoms.numbers - (0.1 * atoms.numbers).mean()
        atoms.info |= {"dipole": charges @ atoms.positions, "group": f"{i}"}
        if i % 4:  # the others lack a gap
            atoms.info["gap"] = 2.0 + 0.01 * i
        if i % 5:
            atoms.arrays["q"] = charges
        yield atoms


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("properties") / "molecules.extxyz"
    ase.io.write(path, list(_molecules()))
    return path


@pytest.fixture(scope="module")
def run(nano_run, file, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    words = ["--downstream", f"file:{file}", "--targets", "gap,q:2,dipole", "--init", str(nano_run), "--lr", "1e-2",
             "--max-steps", "6", "--batch-size", "6", "--batch-shapes", "1", "--cutoff", "5"]  # fmt: skip
    assert finetune.main([*words, "--run-dir", str(run_dir)]) == 0
    return run_dir


def test_every_property_is_reported_by_name_and_in_its_unit(run):
    test = json.loads((run / "test.json").read_text())["last_ema"]
    assert test["property"] == "gap" and set(test["properties"]) == {"q", "dipole"}
    more = test["properties"]
    assert more["dipole"]["unit"] == "e A" and set(more["q"]["by_element"]) <= {"C", "H", "O"}
    split = np.load(run / "data" / "split.npz")["test"]
    assert test["n"] == sum(i % 4 > 0 for i in split)  # masked one by one
    assert test["properties"]["dipole"]["n"] == len(split)
    summary = json.loads((run / "summary.json").read_text())
    assert {f"mae_{name}" for name in NAMES} <= set(summary["validation"])
    assert set(summary["validation_mean_baselines"]) == set(NAMES)
    assert summary["validation"]["loss"] < summary["validation_before"]["loss"]


def test_a_linear_function_of_the_starting_features_stands_beside_them(run):
    (before,) = json.loads((run / "test_before.json").read_text())
    probe = before["linear_probe"]
    assert set(probe) == set(NAMES) and all(0 <= own["test"] < 1 and own["n_train"] for own in probe.values())
    assert probe["q"]["test"] < before["properties"]["q"]["mae"]  # charges here follow from the elements


def test_predictions_are_those_of_the_test(run, file, tmp_path):
    assert predict.main(["--checkpoint", f"{run}@last", "--structures", str(file), "--out", str(tmp_path / "o.extxyz"),
                         "--quiet"]) == 0  # fmt: skip
    given, found = (ase.io.read(path, ":") for path in (file, tmp_path / "o.extxyz"))
    split = np.load(run / "data" / "split.npz")["test"]
    test = json.loads((run / "test.json").read_text())["last_ema"]
    more = test["properties"]
    gaps = [abs(found[i].info["target_gap"] - given[i].info["gap"]) for i in split if "gap" in given[i].info]
    assert np.mean(gaps) == pytest.approx(test["mae"], rel=1e-4)
    charges = [abs(found[i].arrays["atom_q"] - given[i].arrays["q"]) for i in split if "q" in given[i].arrays]
    assert np.concatenate(charges).mean() == pytest.approx(more["q"]["mae"], rel=1e-4)
    dipole = lambda atoms: atoms.info.get("dipole", atoms.calc.results.get("dipole") if atoms.calc else None)  # noqa: E731
    dipoles = [np.abs(found[i].info["vector_dipole"] - dipole(given[i])) for i in split]
    assert np.mean(dipoles) == pytest.approx(more["dipole"]["mae"], rel=1e-4)


def test_evaluation_repeats_the_test_of_the_run(run):
    before = json.loads((run / "test.json").read_text())["best_ema"]
    assert evaluate.main(["--run", str(run), "--samples", "all"]) == 0
    after = json.loads((run / "test.json").read_text())["best_ema"]
    both = (found["properties"]["q"]["mae"] for found in (after, before))
    assert next(both) == pytest.approx(next(both), rel=1e-6)


def test_the_model_has_properties_and_no_calculator(run):
    model = jaxatoms.load_model(run)
    assert model.kind == "properties" and read_meta(run)["head"]["outputs"] == ["mean", "atom", "dipole"]
    prediction = model.predict(ase.build.molecule("H2O"))[0]
    assert prediction.energy is None and prediction.properties["atom_q"].shape == (3,)
    with pytest.raises(jaxatoms.types.InputError, match="predicts a property of structures, not energies and forces"):
        model.calculator()


def test_replay_of_energies_is_refused(nano_run, file, tmp_path, refusal):
    words = ["--downstream", f"file:{file}", "--targets", "gap,q", "--init", str(nano_run), "--replay", "demo:organic"]
    message = refusal(finetune, [*words, "--run-dir", str(tmp_path / "run")])
    assert "--replay mixes in energies and forces" in message


def test_a_periodic_structure_gets_no_dipole(run, tmp_path):
    crystal = ase.build.bulk("C", cubic=True)
    prediction = jaxatoms.load_model(run).predict(crystal)[0]
    assert set(prediction.properties) == {"target_gap", "atom_q"}

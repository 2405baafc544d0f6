"""Standard deviations from a fine-tuning run: fitted, predicted, refused for other weights, and those of ensembles."""

import dataclasses
import json
import pickle
import shutil

import ase.build
import ase.db
import ase.io
import jax
import numpy as np
import pytest
import run_folders
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from fixtures import checkpoints
from fixtures.nano import NANO

import jaxatoms
from experiments import predict, uncertainty
from jaxatoms.ase import EnsembleCalculator, JaxAtomsCalculator
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.data.references import LinearReference
from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.inference.model import restore_model
from jaxatoms.inference.prediction import Prediction, Predictor, Record
from jaxatoms.inference.uncertainty import energy_and_features, fitted_uncertainty
from jaxatoms.io import write_json
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_data import open_parts, save_parts
from jaxatoms.runs.finetune_record import task_record
from jaxatoms.training.checkpoint_files import find_damage, resolve_checkpoint
from jaxatoms.types import InputError
from jaxatoms.uncertainty import last_layer
from jaxatoms.uncertainty.files import FILE

WITHOUT_EDGES = GemNetOCConfig(**NANO, direct_forces=False)


def _frames(n=80, seed=0):
    """Strained and displaced cells of copper and gold, of four and eight atoms; each fifth has no energy."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        atoms = ase.build.bulk("Cu", a=3.7, cubic=True) * (1 + i % 2, 1, 1)
        atoms.symbols[rng.permutation(len(atoms))[: i % 3]] = "Au"
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.rattle(0.08, seed=i)
        atoms.calc = EMT()
        results = {"forces": atoms.get_forces()} | ({} if i % 5 == 0 else {"energy": atoms.get_potential_energy()})
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("alloy") / "alloy.extxyz"
    ase.io.write(path, list(_frames()))
    return path


def _write_run(folder, names, targets="energy,forces", fitted=(), **head):
    """A run folder as fine-tuning leaves it, with random weights; `fitted`: data sets with a fitted zero."""
    settings = FinetuneConfig(downstream=",".join(names), init="scratch", run_dir=str(folder), targets=targets,
                              split="record", cutoff=4.0, max_neighbors=12)  # fmt: skip
    head = HeadSpec(**{"kind": "gradient", "heads": len(names)} | head)
    parts = open_parts(settings, WITHOUT_EDGES, None)
    zeros = [LinearReference.fit(p.task.store, p.split.train) if i in fitted else None for i, p in enumerate(parts)]
    records = [task_record(part, head, zero).to_json() | {"energy_std": 0.1}
               for part, zero in zip(parts, zeros, strict=True)]  # fmt: skip
    checkpoints.write_finetuned(folder, WITHOUT_EDGES, head, records[0], others=tuple(records[1:]))
    save_parts(folder / "data", parts)
    write_json(folder / "config.json", dataclasses.asdict(settings))
    write_json(folder / "summary.json", {"finished": True})
    return folder


@pytest.fixture(scope="module")
def run(nano, file, tmp_path_factory):
    """A run whose uncertainty is fitted."""
    folder = _write_run(tmp_path_factory.mktemp("run") / "run", [f"file:{file}"])
    with pytest.MonkeyPatch.context() as patch:
        # A few validation structures of a network that has learnt nothing do not tell a good zeta.
        patch.setattr(last_layer, "RIDGES", last_layer.RIDGES[:1])
        assert uncertainty.main(["--run", str(folder), "--batch-edges", "512"]) == 0
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    """One for all tests, so that its programs are compiled once."""
    return Predictor(restore_model(str(run)), None, 512)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(run, tmp_path / "copy")


def _known(file, n=3) -> list[Atoms]:
    return [atoms for atoms in ase.io.read(file, ":") if "energy" in atoms.calc.results][:n]


def _predict(checkpoint, structures, out, *options):
    ase.io.write(out.with_name("in.extxyz"), structures)
    words = ["--checkpoint", *map(str, checkpoint), "--structures", str(out.with_name("in.extxyz")), "--out", str(out)]
    assert predict.main([*words, "--quiet", *options]) == 0
    return ase.io.read(out, ":")


# --- one checkpoint -----------------------------------------------------------------------------------


def test_the_record_and_the_plot_of_a_run(run):
    record = json.loads((run / "uncertainty.json").read_text())
    split = np.load(run / "data" / "split.npz")
    assert record["unit"] == "eV/atom" and record["checkpoint"] == resolve_checkpoint(run).name
    assert 0 < record["n_train"] < len(split["train"]), "structures without an energy do not count"
    assert 0 < record["val"]["n"] <= len(split["val"]) and 0 < record["test"]["n"] <= len(split["test"])
    # Calibrated on validation, where squared standardised errors have the mean 1 by construction.
    assert record["val"]["rms_standardised"] == pytest.approx(1, rel=1e-4)
    assert record["alpha"] > 0 and record["zeta"] > 0 and 0 <= record["test"]["coverage_1"] <= 1
    assert (run / "uncertainty.png").stat().st_size > 1000
    assert find_damage(resolve_checkpoint(run)) is None, "the checkpoint stays whole"


def test_errors_are_those_of_the_predicted_energies(run, predictor, file):
    """The figures again from predictions: mean absolute error and mean standard deviation per atom."""
    record = json.loads((run / "uncertainty.json").read_text())
    frames, split = ase.io.read(file, ":"), np.load(run / "data" / "split.npz")
    test = [frames[i] for i in split["test"] if "energy" in frames[i].calc.results]
    pairs = list(zip(predictor.predict_atoms(test), test, strict=True))
    errors = [(found.energy - atoms.get_potential_energy()) / len(atoms) for found, atoms in pairs]
    std = [found.energy_std / len(atoms) for found, atoms in pairs]
    assert record["test"]["n"] == len(test)
    assert record["test"]["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-3)
    assert record["test"]["mean_std"] == pytest.approx(np.mean(std), rel=1e-3)


def test_every_way_to_predict_gives_the_same(run, predictor, file, tmp_path, capsys):
    structures = _known(file)
    found = _predict([run], structures, tmp_path / "out.extxyz")
    assert "; energy_std of the last layer" in capsys.readouterr().out
    std = [atoms.info["energy_std"] for atoms in found]
    assert np.isfinite(std).all() and min(std) > 0
    assert predict._row(found[0])["energy_std"] == std[0], "a database has it too"
    assert [p.energy_std for p in predictor.predict_atoms(structures)] == pytest.approx(std, rel=1e-4)
    calculator = JaxAtomsCalculator(str(run))
    for atoms, expected in zip(structures, std, strict=True):
        assert calculator.get_property("energy_std", atoms) == pytest.approx(expected, rel=1e-3)
    assert "energy_std" in pickle.loads(pickle.dumps(calculator)).implemented_properties
    assert not JaxAtomsCalculator(str(run), uncertainty=False).implemented_properties[4:]


def test_ase_takes_a_calculator_with_more_results(run, file, tmp_path):
    (atoms,) = _known(file, 1)
    atoms.calc = JaxAtomsCalculator(str(run))
    BFGS(atoms, logfile=None, trajectory=str(tmp_path / "path.traj")).run(fmax=1e-3, steps=1)
    assert atoms.calc.results["energy_std"] > 0 and "energy" in atoms.calc.export_properties()
    ase.io.write(tmp_path / "one.extxyz", atoms)
    ase.db.connect(tmp_path / "one.db").write(atoms)
    assert ase.io.read(tmp_path / "one.extxyz").get_potential_energy() == pytest.approx(atoms.get_potential_energy())


def test_a_structure_far_from_the_training_data_is_less_certain(predictor, file):
    known = _known(file)
    far = [known[0].copy() for _ in range(3)]
    for atoms, scale in zip(far, (0.8, 1.2, 1.4), strict=True):
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    found = predictor.predict_atoms([*known, *far])
    std = [prediction.energy_std / len(prediction.forces) for prediction in found]
    assert min(std[3:]) > 3 * max(std[:3]), std


def test_without_a_fitted_uncertainty_nothing_is_asked_of_the_network(run, copied):
    model = restore_model(str(run))
    fitted = fitted_uncertainty(model, 0)
    assert fitted is not None and fitted_uncertainty(model, 1) is None
    (resolve_checkpoint(copied) / FILE).unlink()
    assert Predictor(restore_model(str(copied)), None, 512).fitted is None
    assert "energy_std" not in JaxAtomsCalculator(str(copied)).implemented_properties


def test_standard_deviations_of_the_input_are_not_copied(run, file):
    (atoms,) = _known(file, 1)
    atoms.info |= {"energy_std": 5.0, "data": {"energy_std": 5.0, "arrays": {"forces_std": np.ones(4)}, "more": 1}}
    atoms.arrays["forces_std"] = np.ones(len(atoms))
    found = predict.labelled(Record(0, atoms, None), Prediction(energy=1.0))
    assert found.info == {"data": {"arrays": {}, "more": 1}} and "forces_std" not in found.arrays
    assert atoms.info["data"]["energy_std"] == 5.0, "the input stays as it was"


def test_raw_weights_are_said_to_have_none(run):
    raw = Predictor(restore_model(str(run), raw_weights=True), None, 512)
    assert raw.fitted is None and "fitted for the averaged weights" in predict._about_std(raw)


def test_other_weights_are_refused(copied, file):
    step = resolve_checkpoint(copied)
    marker = json.loads((step / "complete.json").read_text())
    (step / "complete.json").write_text(json.dumps(marker | {"more": 1}))
    for use in (lambda: jaxatoms.predict(copied, _known(file, 1)), lambda: JaxAtomsCalculator(str(copied))):
        with pytest.raises(InputError, match="fitted for other weights .* run experiments.uncertainty again"):
            use()
    assert uncertainty.main(["--run", str(copied), "--samples", "20", "--batch-edges", "512"]) == 0
    assert fitted_uncertainty(restore_model(str(copied)), 0) is not None
    assert json.loads((copied / "uncertainty.json").read_text())["n_train"] == 20


def test_a_killed_prediction_does_not_go_on_with_another_uncertainty(copied, file, tmp_path):
    out = tmp_path / "out.extxyz"
    config = predict.PredictConfig(checkpoint=(str(copied),), structures=str(file), out=str(out))
    predict.open_outputs(config, predict.open_predictor(config))[1].commit(1, {"failures": {}, "out": b"1"})
    assert predict.open_outputs(config, predict.open_predictor(config))[1].done == 1
    (resolve_checkpoint(copied) / FILE).unlink()
    with pytest.raises(InputError, match="begun with the fitted uncertainty"):
        predict.open_outputs(config, predict.open_predictor(config))


def test_what_has_no_uncertainty_is_refused(run, copied, tmp_path, refusal):
    def said(folder, *options):
        return refusal(uncertainty, ["--run", str(folder), *options])

    pretrained = run_folders.pretraining(tmp_path / "pretrained")
    assert "is a pretraining run" in said(pretrained)
    assert "is no folder of experiments.finetune" in said(tmp_path / "none")
    assert "--checkpoint must be best or last" in said(run, "--checkpoint", "first")
    summary = copied / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"finished": False}))
    assert "has not finished training" in said(copied)


@pytest.mark.parametrize(("head", "words"), [
    (HeadSpec(kind="direct"), "predicts forces alone; fine-tune with --targets energy,forces"),
    (HeadSpec(kind="scalar", n_class=2), "predicts classes"),
    (HeadSpec(kind="scalar", reduction="max"), "is not linear in features"),
    (None, "has the heads of pretraining"),
])  # fmt: skip
def test_heads_that_are_not_linear_are_refused(run, head, words):
    model = restore_model(str(run))
    meta = read_checkpoint_meta(run)
    object.__setattr__(meta, "head", head)
    with pytest.raises(InputError, match=words):
        uncertainty.check_linear(model._replace(meta=meta))


@pytest.fixture(scope="module")
def unlabelled(file):
    """The same structures without energies."""
    frames = ase.io.read(file, ":")
    for atoms in frames:
        atoms.calc.results.pop("energy", None)
    ase.io.write(file.with_name("unlabelled.extxyz"), frames)
    return file.with_name("unlabelled.extxyz")


def test_a_run_whose_data_have_no_energies_is_refused(nano, unlabelled, tmp_path, refusal):
    run = _write_run(tmp_path / "run", [f"file:{unlabelled}"], "forces")
    said = refusal(uncertainty, ["--run", str(run)])
    assert "no energies to calibrate on" in said and "--targets energy,forces" in said


def test_every_head_with_energies_has_its_own(nano, file, unlabelled, tmp_path, capsys):
    run = _write_run(tmp_path / "run", [f"file:{unlabelled}", f"file:{file}"], "forces", fitted=(1,))
    assert uncertainty.main(["--run", str(run), "--batch-edges", "512"]) == 0
    assert "unlabelled.extxyz: left out, since its" in capsys.readouterr().out
    assert not (run / "uncertainty.json").exists() and (run / "uncertainty-1.png").exists()
    assert json.loads((run / "uncertainty-1.json").read_text())["name"] == f"file:{file}"
    model = restore_model(str(run))
    assert Predictor(model, "unlabelled", 512).fitted is None
    assert Predictor(model, "alloy", 512).fitted is not None


@pytest.mark.slow
def test_a_scalar_has_its_standard_deviation_beside_it(nano, cells, tmp_path, capsys):
    run = _write_run(tmp_path / "run", ["demo:gap"], None, kind="scalar", reduction="mean")
    assert uncertainty.main(["--run", str(run), "--samples", "40"]) == 0
    record = json.loads((run / "uncertainty.json").read_text())
    assert record["n_train"] == record["val"]["n"] == 40 and not record["unit"].endswith("/atom")
    (found,) = _predict([run], cells[1:], tmp_path / "out.extxyz")
    column = next(name for name in found.info if name.endswith("_std"))
    assert found.info[column] > 0 and column.removesuffix("_std") in found.info and "energy_std" not in found.info
    assert f"{column} of the last layer" in capsys.readouterr().out


# --- several checkpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two potentials with random weights."""
    folder = tmp_path_factory.mktemp("members")
    record = {"property": "forces", "energy_std": 0.3, "cutoff": 4.0, "max_neighbors": 12}
    head = HeadSpec(kind="gradient")
    return [checkpoints.write_finetuned(folder / str(i), WITHOUT_EDGES, head, record, seed=i) for i in range(2)]


@pytest.fixture(scope="module")
def cells() -> list[Atoms]:
    atoms = [ase.build.bulk("Cu", a=3.7, cubic=True), ase.build.molecule("CH3OH")]
    for one in atoms:
        one.rattle(0.1, seed=0)
    return atoms


@pytest.fixture(scope="module")
def together(members, cells, tmp_path_factory):
    """What the command writes for both members."""
    return _predict(members, cells, tmp_path_factory.mktemp("both") / "both.extxyz")


def test_an_ensemble_is_the_mean_of_its_members(members, cells, together):
    predictors = [Predictor(restore_model(str(member)), None, 4096) for member in members]
    predictors[1].share_programs(predictors[0])
    each = [predictor.predict_atoms(cells) for predictor in predictors]
    assert predictors[0].n_compiled == predictors[1].n_compiled == 1, "two members of one network share a program"
    for one, two, both in zip(*each, together, strict=True):
        assert both.get_potential_energy() == pytest.approx(np.mean([one.energy, two.energy]), rel=1e-5)
        assert both.info["energy_std"] == pytest.approx(np.std([one.energy, two.energy], ddof=1), rel=1e-4)
        forces = [one.forces, two.forces]
        np.testing.assert_allclose(both.get_forces(), np.mean(forces, axis=0), atol=1e-5)
        expected = np.linalg.norm(np.std(forces, axis=0, ddof=1), axis=1)
        np.testing.assert_allclose(both.arrays["forces_std"], expected, atol=1e-5)
    row = predict._row(together[0])
    np.testing.assert_array_equal(row["arrays"]["forces_std"], together[0].arrays["forces_std"])


def test_the_ensemble_calculator_agrees(members, cells, together, tmp_path):
    found, atoms = together[0], cells[0].copy()
    atoms.calc = calculator = EnsembleCalculator(list(map(str, members)))
    assert atoms.get_potential_energy() == pytest.approx(found.get_potential_energy(), rel=1e-5)
    assert calculator.get_property("energy_std", atoms) == pytest.approx(found.info["energy_std"], rel=1e-3)
    np.testing.assert_allclose(calculator.get_property("forces_std", atoms), found.arrays["forces_std"], atol=1e-4)
    stress = [member.get_stress(atoms) for member in calculator.members]
    np.testing.assert_allclose(atoms.get_stress(), np.mean(stress, axis=0), atol=1e-6)
    ase.io.write(tmp_path / "one.extxyz", atoms)
    again = pickle.loads(pickle.dumps(calculator))
    assert again.results["energy"] == calculator.results["energy"] and len(again.members) == 2
    atoms.positions[0] += 0.1
    assert atoms.get_potential_energy() != pytest.approx(found.get_potential_energy(), rel=1e-5)
    with pytest.raises(InputError, match="a list of two or more checkpoints"):
        EnsembleCalculator(str(members[0]))


def test_members_must_predict_the_same(members, cells, tmp_path, refusal):
    record = {"property": "target_gap", "energy_std": 1.0}
    make = lambda name, **head: checkpoints.write_finetuned(  # noqa: E731
        tmp_path / name, WITHOUT_EDGES, HeadSpec(kind="scalar", **head), record
    )
    scalar, classes = make("scalar"), [make("one", n_class=2), make("two", n_class=2)]
    ase.io.write(tmp_path / "in.extxyz", cells)
    words = ["--structures", str(tmp_path / "in.extxyz"), "--out", str(tmp_path / "out.extxyz")]

    def said(*given):
        return refusal(predict, ["--checkpoint", *map(str, given), *words])

    assert "do not predict the same; give checkpoints of one kind and target" in said(members[0], scalar)
    assert "is given twice" in said(scalar, scalar)
    assert "predicts classes, which have no mean" in said(*classes)
    assert "--features are those of one network" in said(*members, "--features", "x.npz")
    assert "--checkpoint needs one or several" in said()


def test_energies_and_features_are_those_of_the_model(predictor, file):
    """One program gives both."""
    records = [Record(i, atoms, system_from_atoms("memory", str(i), atoms, "")) for i, atoms in enumerate(_known(file))]
    batch = next(iter(predictor._plan("memory", records).batches()))
    energy, features = jax.device_get(energy_and_features(predictor.model)(batch))
    weights = np.asarray(predictor.model.module.out_energy.layers[-1].kernel[...], np.float64)[:, 0]
    assert features[0].astype(np.float64) @ weights == pytest.approx(float(energy[0]), rel=1e-5)

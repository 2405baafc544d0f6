"""Fine-tuning from the command line: every kind of head, transfer, freezing, resuming, evaluation, refusals."""

import json
import re
import shutil

import ase.io
import jax
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import jaxatoms
from experiments import evaluate, finetune, predict
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.runs import finetune_setup, start
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.checkpoint_files import read_meta

FAST = ["--max-steps", "4", "--batch-size", "4", "--batch-shapes", "1", "--val-samples", "8", "--test-samples", "12",
        "--budget", "small", "--lr", "1e-3", "--quiet"]  # fmt: skip


def _run(run_dir, *options):
    assert finetune.main([*FAST, "--run-dir", str(run_dir), *options]) == 0
    return run_dir


@pytest.fixture(scope="module")
def gradient(nano_run, tmp_path_factory):
    """A run with gradient forces from a pretrained model."""
    return _run(tmp_path_factory.mktemp("ft") / "run", "--downstream", "demo:aspirin", "--init", str(nano_run))


@pytest.fixture(scope="module")
def scalar(nano_run, tmp_path_factory):
    """A run that learns a number per structure."""
    options = ["--downstream", "demo:gap", "--init", str(nano_run), "--train", "heads"]
    return _run(tmp_path_factory.mktemp("ft") / "run", *options)


def _json(path):
    return json.loads(path.read_text())


def _params(run_dir, name="last", part="params"):
    return restore(run_dir / "checkpoints" / name, None, only=(part,))[0]


def test_a_run_reports_its_test_errors_in_the_papers_unit(gradient):
    test, summary = _json(gradient / "test.json"), _json(gradient / "summary.json")
    for name in ("last_ema", "best_ema"):
        report = test[name]
        assert report["unit"] == "meV/A" and report["n"] == 12 * 21
        assert report["mae"] == pytest.approx(np.mean([e["mae"] for e in report["by_component"].values()]))
        assert report["rmse"] ** 2 == pytest.approx(np.mean([e["rmse"] ** 2 for e in report["by_component"].values()]))
        for parts in (report["by_element"], report["by_size"]):
            assert sum(e["n"] for e in parts.values()) == 12 * 21
            assert all(e["mae"] <= e["rmse"] for e in parts.values())
    assert summary["finished"] and summary["head"]["kind"] == "gradient" and summary["upstream"] == "demo:organic"
    assert summary["compiled_shapes"] == 1
    origin = summary["origin"]
    assert (origin["budget"]["n"], origin["budget"]["steps"], origin["settings"]["epochs"]) == (40, 8, 2)
    assert origin["samples_seen"] == 10 * origin["step"] and "best" in origin["named"]
    assert origin["checkpoint"] == f"step_{origin['step']:08d}"
    meta = read_meta(gradient)
    assert meta["origin"] == origin == _json(gradient / "resolved.json")["origin"]
    plots = {f"test_{kind}_{weights}_ema.png" for kind in ("parity", "errors") for weights in ("last", "best")}
    assert {path.name for path in gradient.glob("test_*.png")} == plots


def test_the_end_compares_with_the_start_and_with_the_mean_of_the_labels(gradient, scalar, capsys):
    """The baselines, calculated here from the data set itself."""
    with np.load(gradient / "data" / "split.npz") as split:
        records = evaluation.draw(split["val"], 8)
    store = jaxatoms.open_dataset("demo:aspirin")
    forces = store.take(records).forces
    mean = 1000 * np.abs(forces - forces.mean(axis=0)).mean()
    assert _json(gradient / "summary.json")["validation_mean_baselines"] == {"forces": pytest.approx(mean, rel=1e-5)}
    capsys.readouterr()
    for run, of in ((gradient, "demo:aspirin"), (scalar, "demo:gap")):
        _run(run, *_options_of(run), "--resume")
        summary, told = _json(run / "summary.json"), capsys.readouterr().out
        row = next(line for line in told.splitlines() if line.startswith("validation")).split()
        measure = next(name for name in summary["validation"] if name != "loss")
        before, after = (summary[name][measure] for name in ("validation_before", "validation"))
        probe = [own["validation"] for own in _json(run / "test_before.json")[0]["linear_probe"].values()]
        expected = [before, *probe, after, *summary["validation_mean_baselines"].values()]
        assert row[1:] == [f"{value:.4g}" for value in expected] and len(probe) == (of == "demo:gap"), of


def _options_of(run) -> list[str]:
    config = _json(run / "config.json")
    frozen = ["--train", "heads"] if config["train"] == "heads" else []
    return ["--downstream", config["downstream"], "--init", config["init"], *frozen]


def test_the_backbone_comes_from_the_average_and_the_reference_mode_from_the_raw_weights(nano_run):
    averaged, raw = (_params(nano_run, part=part) for part in ("ema", "params"))
    name = "backbone/bases/mlp_rbf_aint/kernel/value"
    base = dict(downstream="demo:aspirin", init=str(nano_run), quiet=True, forces="direct", budget="small")
    for mode, source in (("ema", averaged), ("reference", raw)):
        params = finetune_setup.prepare(FinetuneConfig(init_mode=mode, **base), None).model.params
        flat = {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree.leaves_with_path(params)}
        np.testing.assert_array_equal(flat[name], source[f"{'ema' if mode == 'ema' else 'params'}/{name}"])
        own, theirs = (n + "kernel/value" for n in ("embedding/", "embedding/atom_embedding/"))
        taken = np.array_equal(flat[own], source[f"{'ema' if mode == 'ema' else 'params'}/{theirs}"])
        assert taken == (mode == "ema")


def test_smooth_quadruplets_are_the_checkpoint_s_unless_asked_for(nano_run):
    base = dict(downstream="demo:aspirin", init=str(nano_run), quiet=True, forces="direct", budget="small")
    for choice, smooth in (("auto", False), ("yes", True)):
        run = finetune_setup.prepare(FinetuneConfig(smooth_quadruplets=choice, **base), None)
        assert run.model_config.smooth_quadruplets is smooth
        assert run.checkpoint_meta().model["smooth_quadruplets"] is smooth


def test_new_potentials_of_files_are_smooth_and_those_of_the_paper_and_resumed_ones_are_not(tmp_path, nano):
    frames = [molecule("CH3OH") for _ in range(10)]
    for i, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.random.default_rng(i).normal(size=(6, 3)))
    ase.io.write(tmp_path / "own.extxyz", frames)
    base = dict(init="scratch", model=str(nano), quiet=True, budget="small", batch_size=2)
    for name, options, smooth in (
        (f"file:{tmp_path / 'own.extxyz'}", {}, True), (f"file:{tmp_path / 'own.extxyz'}", {"forces": "direct"}, False),
        ("demo:aspirin", {}, False), (f"file:{tmp_path / 'own.extxyz'}", {"smooth_quadruplets": "no"}, False),
    ):  # fmt: skip
        run = finetune_setup.prepare(FinetuneConfig(downstream=name, **base, **options), None)
        assert run.model_config.smooth_quadruplets is smooth, (name, options)
    parts, recipe = run.parts, run.recipe
    (tmp_path / "resolved.json").write_text(json.dumps({"model": {"smooth_quadruplets": False}}))
    config = FinetuneConfig(downstream=name, **base)
    assert finetune_setup._smooth(config, run.model_config, parts, recipe, tmp_path / "resolved.json") == "no"
    assert finetune_setup._smooth(config, run.model_config, parts, recipe, None) == "yes"


def test_a_checkpoint_that_was_fine_tuned_for_the_same_goes_on_with_its_head(gradient, tmp_path):
    """The unit of the labels is another one here, since fewer training structures have another spread of forces."""
    options = ["--n-train", "20", "--n-val", "8", "--max-steps", "1"]
    run = _run(tmp_path / "run", "--downstream", "demo:aspirin", "--init", str(gradient), *options)
    (start_errors,) = _json(run / "test_before.json")
    units = [read_meta(one)["tasks"][0]["energy_std"] for one in (gradient, run)]
    assert abs(units[0] / units[1] - 1) > 1e-3
    assert start_errors["mae"] == pytest.approx(_json(gradient / "test.json")["best_ema"]["mae"], rel=1e-4)
    record = finetune_setup.prepare(FinetuneConfig(downstream="demo:gap", init=str(gradient), quiet=True), None)
    assert start._fitting_factor(read_checkpoint_meta(gradient), record.head, record.checkpoint_meta().tasks[0]) is None


def test_a_run_means_its_best_checkpoint_and_the_last_can_be_named(nano_run):
    best, last = (start.find_init(f"{nano_run}{word}") for word in ("", "@last"))
    assert best.origin["named"][0] == "best" and last.origin["step"] == 8 and "last" in last.origin["named"]
    assert best.origin["weights"] and len(best.origin["weights"]) == 16
    words = start.describe_origin(last.origin)
    assert "@last: step 8 of 8 (" in words and "80 of 80 samples" in words
    assert start.find_init("scratch").origin == {"upstream": "scratch"}


def test_scale_factors_stay_with_their_weights_unless_they_are_refitted(nano_run):
    kept = {n.removeprefix("constants/"): v for n, v in _params(nano_run, part="constants").items()}
    base = dict(downstream="demo:aspirin", init=str(nano_run), quiet=True, forces="direct", budget="small")
    changed = {}
    for refit in (False, True):
        model = finetune_setup.prepare(FinetuneConfig(refit_scales=refit, **base), None).model
        flat = {jax.tree_util.keystr(k, simple=True, separator="/"): v
                for k, v in jax.tree.leaves_with_path(model.constants)}  # fmt: skip
        factors = [name for name in flat if "scale_factor" in name]
        changed[refit] = sum(not np.array_equal(flat[name], kept[name]) for name in factors) / len(factors)
    assert changed[False] == 0 and changed[True] > 0.9


def test_a_frozen_backbone_does_not_move_and_the_head_does(scalar, nano_run):
    start, end = _params(nano_run, part="ema"), _params(scalar)
    for name, array in end.items():
        if "backbone" in name:
            np.testing.assert_array_equal(array, start[name.replace("params/", "ema/")])
    test = _json(scalar / "test.json")["last_ema"]
    assert test["n"] == 12 and test["mean_baseline_mae"] > 0


def test_resuming_continues_bit_exactly(gradient, nano_run, tmp_path, monkeypatch, capsys):
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) == 1)
    options = ["--downstream", "demo:aspirin", "--init", str(nano_run)]
    _run(tmp_path / "run", *options)
    monkeypatch.undo()
    assert "--resume" in capsys.readouterr().out
    assert _json(tmp_path / "run" / "summary.json")["steps"] == 2
    resolved = _json(tmp_path / "run" / "resolved.json")
    resolved["origin"]["step"] = 1  # --init holds another run by now, as it were
    (tmp_path / "run" / "resolved.json").write_text(json.dumps(resolved))
    _run(tmp_path / "run", *options, "--resume")
    assert _json(tmp_path / "run" / "summary.json")["origin"] == resolved["origin"]
    one, two = _params(gradient), _params(tmp_path / "run")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert _json(gradient / "test.json")["last_ema"] == _json(tmp_path / "run" / "test.json")["last_ema"]


def test_resuming_a_finished_run_tests_only_what_was_not_tested(gradient, nano_run, capsys, tmp_path):
    run_dir = shutil.copytree(gradient, tmp_path / "run")
    options = ["--downstream", "demo:aspirin", "--init", str(nano_run), "--resume"]
    _run(run_dir, *options)
    assert "all its 4 steps and its test: there is nothing to do" in capsys.readouterr().out
    assert _json(run_dir / "summary.json") == _json(gradient / "summary.json")
    (run_dir / "test.json").unlink()
    _run(run_dir, *options)
    assert "only the test remains" in capsys.readouterr().out
    assert _json(run_dir / "test.json")["last_ema"] == _json(gradient / "test.json")["last_ema"]


def test_evaluate_gives_the_errors_of_the_run(gradient, capsys):
    before = _json(gradient / "test.json")
    assert evaluate.main(["--run", str(gradient), "--samples", "12"]) == 0
    after = _json(gradient / "test.json")
    assert after["last_ema"]["mae"] == pytest.approx(before["last_ema"]["mae"], rel=1e-5)
    assert "MAE" in capsys.readouterr().out


def test_a_quick_evaluation_does_not_replace_the_test(gradient):
    """Tables and studies read test.json of the run folder."""
    before = (gradient / "test.json").read_bytes()
    assert evaluate.main(["--run", str(gradient), "--samples", "3"]) == 0
    assert (gradient / "test.json").read_bytes() == before
    assert _json(gradient / "samples_3" / "test.json")["n_structure"] == 3
    (gradient / "samples_3" / "test.json").unlink()


def test_predictions_that_are_not_finite_are_left_out_of_plots(tmp_path):
    """A histogram up to infinity raised, and a finished run had no test.json."""
    names = {what: tmp_path / f"{what}.png" for what in ("parity", "errors")}
    label = np.arange(4.0)
    for predicted in (np.array([0.1, np.inf, 2.1, np.nan]), np.full(4, np.inf)):
        evaluation.plot(names, evaluation.Predictions(predicted, label, np.ones(4), None), ("eV", 1.0), "title")
        assert names["errors"].stat().st_size > 1000


def test_errors_of_earlier_weights_are_replaced(tmp_path):
    now = {"last_ema": 9, "best_ema": 6}
    place = lambda n, own=0: evaluate.folder_of(tmp_path, "val.json", n, now, own)  # noqa: E731
    assert place(5) == tmp_path and place(5, own=6) == tmp_path / "samples_5", "the run's own test is still to be made"
    (tmp_path / "val.json").write_text(json.dumps({"n_structure": 7, "steps": now}))
    assert place(7) == tmp_path and place(6) == tmp_path / "samples_6"
    (tmp_path / "val.json").write_text(json.dumps({"n_structure": 7, "steps": {"last_ema": 3, "best_ema": 3}}))
    assert place(6) == tmp_path


def test_a_fine_tuned_model_predicts_structures_with_forces_of_its_energy(gradient, tmp_path):
    import ase.io

    from jaxatoms.data.store import open_dataset

    _, store = open_dataset("demo:aspirin")
    systems, atoms = store.take(np.arange(2)), []
    for part in range(2):
        own = slice(21 * part, 21 * part + 21)
        atoms.append(ase.Atoms(systems.atomic_numbers[own], systems.positions[own]))
    moved = atoms[0].copy()
    moved.positions[3, 1] += 0.01
    back = atoms[0].copy()
    back.positions[3, 1] -= 0.01
    ase.io.write(tmp_path / "in.extxyz", [*atoms, moved, back])
    options = ["--checkpoint", str(gradient), "--structures", str(tmp_path / "in.extxyz")]
    assert predict.main([*options, "--out", str(tmp_path / "out.extxyz")]) == 0
    first, _, up, down = ase.io.read(tmp_path / "out.extxyz", ":")
    slope = -(up.get_potential_energy() - down.get_potential_energy()) / 0.02
    assert slope == pytest.approx(first.get_forces()[3, 1], rel=0.05, abs=2e-3)


def test_from_scratch_with_direct_forces(nano, tmp_path):
    options = ["--downstream", "demo:aspirin", "--init", "scratch", "--model", str(nano), "--forces", "direct"]
    summary = _json(_run(tmp_path / "run", *options) / "summary.json")
    assert summary["head"]["kind"] == "direct" and summary["upstream"] == "scratch"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--downstream", "demo:aspirin", "--n-train", "990", "--n-val", "10"], "the training part .* has 800"),
        (["--downstream", "demo:gap", "--targets", "target_mu"], "no column 'target_mu'"),
        (["--downstream", "matbench:phonons/9"], "9"),
        (["--downstream", "demo:aspirin", "--lr", "-1"], "--lr must be positive"),
        (["--downstream", "demo:aspirin", "--forces", "both"], "--forces must be auto or gradient or direct"),
        (["--downstream", "demo:aspirin", "--n-train", "9"], "belong together"),
        (["--downstream", "demo:aspirin", "--init", "nowhere"], "nowhere"),
        (["--downstream", "demo:aspirin", "--model", "gemnet_oc_s"], "other dimensions than gemnet_oc_s"),
        (["--downstream", "qm9:U_0", "--targets", "target_mu"], "names its own target"),
    ],
)
def test_a_bad_setting_is_one_line(nano_run, tmp_path, refusal, options, words):
    init = [] if "--init" in options else ["--init", str(nano_run)]
    assert re.search(words, refusal(finetune, [*options, *init, "--run-dir", str(tmp_path / "r")]))


def test_a_checkpoint_of_other_dimensions_cannot_be_resumed_into(gradient, nano_run, refusal):
    options = ["--downstream", "demo:gap", "--init", str(nano_run), "--run-dir", str(gradient)]
    assert "holds a run already" in refusal(finetune, options)
    assert "another run" in refusal(finetune, [*options, "--resume"])


def test_the_test_split_is_not_shown_before_training_ended(gradient, tmp_path, refusal):
    (tmp_path / "config.json").write_text((gradient / "config.json").read_text())
    assert "has not finished" in refusal(evaluate, ["--run", str(tmp_path)])
    assert "no folder of experiments.finetune or" in refusal(evaluate, ["--run", str(tmp_path / "none")])


def test_vibrations_and_relaxation_with_a_fine_tuned_model(gradient, tmp_path):
    import ase
    from ase.optimize import BFGS
    from ase.vibrations import Vibrations

    from jaxatoms.ase import JaxAtomsCalculator
    from jaxatoms.data.store import open_dataset

    _, store = open_dataset("demo:aspirin")
    frame = store.take(np.arange(1))
    atoms = ase.Atoms(frame.atomic_numbers, frame.positions)
    atoms.calc = JaxAtomsCalculator(gradient, dtype="float64")
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.02).run(fmax=1e-3, steps=5)
    assert atoms.get_potential_energy() < before
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), indices=[0, 3])
    vibrations.run()
    energies = vibrations.get_energies()
    assert len(energies) == 6 and np.isfinite(energies).all()

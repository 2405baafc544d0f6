"""A pretraining run from the command line: its folder, exact resume, prediction, refusals."""

import json
import os

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fixtures.nano import NANO

from experiments import predict, pretrain
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "nano.json").write_text(json.dumps(NANO))
    pairs = {
        "--upstream": "demo:organic", "--n": "60", "--epochs": "2", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(folder / "nano.json"), "--val-samples": "20", "--val-every": "0.5", "--log-every": "1",
        "--cache-dir": str(folder / "cache"), "--lr": "1e-2",
    }  # fmt: skip
    os.environ["JAXATOMS_CACHE"] = str(folder / "cache")  # compiled programs too
    return folder, [word for pair in pairs.items() for word in pair] + ["--quiet"]


@pytest.fixture(scope="module")
def finished(settings):
    folder, options = settings
    assert pretrain.main([*options, "--run-dir", str(folder / "whole")]) == 0
    return folder / "whole"


def _train_losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


def test_the_run_folder_is_complete(finished):
    for name in (
        "config.json",
        "resolved.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "data/split.npz",
        "data/linref.npz",
        "tensorboard",
        "checkpoints/best",
        "checkpoints/last",
    ):
        assert (finished / name).exists(), name
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 12 and summary["samples_seen"] == 120
    assert summary["compiled_shapes"] == summary["batch_shapes"] == 1


def test_resuming_continues_bit_exactly(settings, finished, monkeypatch, capsys):
    folder, options = settings
    run_dir = folder / "stopped"
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) >= 4)
    assert pretrain.main([*options, "--run-dir", str(run_dir)]) == 0
    assert "--resume" in capsys.readouterr().out
    stopped_at = max(_train_losses(run_dir))
    assert stopped_at < 12
    monkeypatch.undo()
    assert pretrain.main([*options, "--run-dir", str(run_dir), "--resume"]) == 0
    assert _train_losses(run_dir) == _train_losses(finished)
    ours, _ = restore(run_dir / "checkpoints" / "last")
    reference, _ = restore(finished / "checkpoints" / "last")
    assert ours.keys() == reference.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], reference[name], err_msg=name)


def test_predictions_do_not_depend_on_the_batch(finished, tmp_path):
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    molecules = [water, Atoms("CO2", [[0, 0, 0], [1.16, 0, 0], [-1.16, 0, 0]])]
    ase.io.write(tmp_path / "in.extxyz", molecules)
    results = []
    for size in ("1", "200"):
        out = tmp_path / f"out{size}.extxyz"
        options = ["--checkpoint", str(finished), "--structures", str(tmp_path / "in.extxyz"), "--out", str(out)]
        assert predict.main([*options, "--batch-edges", size]) == 0
        results.append(ase.io.read(out, ":"))
    for one, many in zip(*results, strict=True):
        assert one.get_potential_energy() == pytest.approx(many.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(one.get_forces(), many.get_forces(), atol=1e-5)
    assert [len(a) for a in results[0]] == [3, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--upstream", "demo:organc"], ["demo:organc", "did you mean", "demo:organic"]),
        (["--upstream", "ani1x"], ["--data-root"]),
        (["--n", "1e9"], ["1000000000", "489", "--n all"]),
        (["--n", "2.5"], ["2.5"]),
        (["--n", "0"], ["0"]),
        (["--epochs", "0"], ["--epochs", "positive"]),
        (["--model", "gemnet_oc_xl"], ["gemnet_oc_xl", "gemnet_oc_s"]),
        (["--run-dir", "/proc/no/run"], ["/proc/no/run"]),
        (["--batch-sise", "3"], ["--batch-size"]),
    ],
)
def test_a_bad_setting_is_one_line_with_a_remedy(settings, tmp_path, monkeypatch, refusal, change, words):
    monkeypatch.delenv("JAXATOMS_DATA", raising=False)
    message = refusal(pretrain, [*settings[1], "--run-dir", str(tmp_path / "run"), *change])
    for word in words:
        assert word in message


def test_a_finished_run_is_not_overwritten(settings, finished, refusal):
    assert "--resume" in refusal(pretrain, [*settings[1], "--run-dir", str(finished)])


def test_resuming_with_another_setting_names_it(settings, finished, refusal):
    options = [*settings[1], "--run-dir", str(finished), "--resume", "--seed", "1"]
    assert "seed was 0, now 1" in refusal(pretrain, options)


def test_a_truncated_checkpoint_falls_back_and_says_so(settings, finished, capsys, tmp_path):
    import shutil

    run_dir = tmp_path / "damaged"
    shutil.copytree(finished, run_dir)
    newest = max((run_dir / "checkpoints").glob("step_*"))
    (newest / "meta.json").write_text("{")
    assert pretrain.main([*settings[1], "--run-dir", str(run_dir), "--resume"]) == 0
    assert newest.name in capsys.readouterr().out
    assert _train_losses(run_dir) == _train_losses(finished)


def test_a_nan_label_names_file_and_record(settings, tmp_path, refusal):
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=float("nan"), forces=np.zeros((3, 3)))
    ase.io.write(tmp_path / "bad.extxyz", [atoms] * 12)
    options = [*settings[1], "--run-dir", str(tmp_path / "run"), "--upstream", f"file:{tmp_path / 'bad.extxyz'}"]
    message = refusal(pretrain, options)
    assert "bad.extxyz" in message and "structure 0" in message


def test_a_plan_trains_nothing(settings, tmp_path, capsys):
    run_dir = tmp_path / "planned"
    assert pretrain.main([*settings[1], "--run-dir", str(run_dir), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "60 x 2 = 120 samples" in text and "memory" in text and not run_dir.exists()

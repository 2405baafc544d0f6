"""Pretraining from the command line where things go wrong; `test_resume.py` has the plain course of a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from fixtures.nano import NANO

from experiments import pretrain
from jaxatoms.runs.pretrain_config import RESUMABLE, PretrainConfig
from jaxatoms.runs.pretraining import prepare
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.types import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Options of a run of 12 steps that validates after each, one shape."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "nano.json").write_text(json.dumps(NANO))
    pairs = {
        "--upstream": "demo:organic", "--n": "60", "--epochs": "2", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(folder / "nano.json"), "--val-samples": "20", "--val-every": "0.1", "--log-every": "1",
        "--cache-dir": str(folder / "cache"), "--lr": "1e-2",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXATOMS_CACHE", str(folder / "cache"))
        yield folder, [word for pair in pairs.items() for word in pair] + ["--quiet"]


@pytest.fixture(scope="module")
def whole(settings):
    """The folder of an uninterrupted run."""
    folder, options = settings
    assert pretrain.main([*options, "--run-dir", str(folder / "whole")]) == 0
    return folder / "whole"


@pytest.fixture(scope="module")
def stopped(settings, whole):
    """The folder of a run in a process of its own that got SIGTERM, and what it printed."""
    folder, options = settings
    run_dir, environment = folder / "stopped", os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "experiments.pretrain", *options, "--run-dir", str(run_dir)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None and max(_losses(run_dir), default=0) < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
    return run_dir, process.returncode, text


def _losses(run_dir, split="train"):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {r["step"]: r["loss"] for r in records if r["split"] == split}


def _summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def _assert_same_arrays(one, two):
    (ours, _), (reference, _) = restore(one / "checkpoints" / "last"), restore(two / "checkpoints" / "last")
    assert ours.keys() == reference.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], reference[name], err_msg=name)


def test_every_step_and_validation_is_recorded_once(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    places = [(r["split"], r["step"]) for r in lines]
    assert sorted(places) == [("train", s) for s in range(1, 13)] + [("val", s) for s in range(13)]
    train = next(r for r in lines if r["split"] == "train")
    assert {"loss", "energy_loss", "force_loss", "grad_norm", "learning_rate", "occupancy"} <= set(train)
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG" and list((whole / "tensorboard").iterdir())


def test_the_summary_agrees_with_the_records(whole):
    summary, val = _summary(whole), _losses(whole, "val")
    budget = {"n": 60, "epochs": 2, "samples": 120, "steps": 12, "samples_per_step": 10, "left_out": 0}
    assert summary["budget"] == budget | {"n_per_task": {"demo:organic": 60}} and summary["samples_seen"] == 120
    assert summary["best_validation_loss"] == min(loss for step, loss in val.items() if step)
    assert summary["validation"]["loss"] == val[12] and summary["validation_before"]["loss"] == val[0]
    assert summary["compiled_shapes"] == 1 and 0 < summary["occupancy"] <= 1
    assert summary["structures_per_second"] > 0 and summary["peak_memory_gib"]["host"] > 0
    resolved = json.loads((whole / "resolved.json").read_text())
    assert resolved["total_steps"] == 12 and resolved["steps_per_epoch"] == 6 and len(resolved["budgets"]) == 1


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_loss(whole):
    val = {step: loss for step, loss in _losses(whole, "val").items() if step}
    assert (whole / "checkpoints" / "best").read_text().strip() == f"step_{min(val, key=val.get):08d}"
    assert (whole / "checkpoints" / "last").read_text().strip() == "step_00000012"


def test_sigterm_saves_and_the_printed_command_continues_bit_exactly(whole, stopped):
    run_dir, code, text = stopped
    last = [line for line in text.splitlines() if "continue with:" in line]
    assert code == 0 and len(last) == 1, text
    done = max(_losses(run_dir))
    assert 2 <= done < 12 and f"stopped and saved at step {done}/12" in last[0]
    assert not _summary(run_dir)["finished"] and _summary(run_dir)["steps"] == done
    assert (run_dir / "checkpoints" / "last").read_text().strip() == f"step_{done:08d}"
    words = last[0].split("python -m experiments.pretrain")[1].split()
    assert pretrain.main(words) == 0
    for split in ("train", "val"):
        assert _losses(run_dir, split) == _losses(whole, split)
    _assert_same_arrays(run_dir, whole)
    assert _summary(run_dir)["finished"] and _summary(run_dir)["samples_seen"] == 120
    assert _summary(run_dir)["validation_before"] == _summary(whole)["validation_before"]


@pytest.fixture(scope="module")
def called(settings):
    """The folder of a run with calls of four steps, of which two accumulated batches make one."""
    folder, options = settings
    assert pretrain.main([*options, *CALLS, "--run-dir", str(folder / "called")]) == 0
    return folder / "called"


CALLS = ["--steps-per-call", "4", "--accumulate", "2", "--batch-size", "5", "--val-every", "1"]


def test_calls_of_several_steps_give_the_losses_of_single_ones(whole, called):
    assert list(_losses(called)) == list(range(1, 13)) and list(_losses(called, "val")) == [0, 6, 12]
    # Scale factors are fitted on batches drawn in another order, here of five, so the runs begin with slightly
    # different models; equality to 1e-6 is tested in tests/training.
    np.testing.assert_allclose(list(_losses(called).values()), list(_losses(whole).values()), rtol=1e-2)
    assert _summary(called)["samples_seen"] == 120 and _summary(called)["compiled_shapes"] == 2  # calls of 4, and of 1


def test_a_run_with_calls_resumes_bit_exactly(settings, called, tmp_path, monkeypatch):
    options = [*settings[1], *CALLS, "--run-dir", str(tmp_path / "run")]
    polls = iter([False, True])
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls, True))
    assert pretrain.main(options) == 0
    assert _summary(tmp_path / "run")["steps"] == 5  # a call of four and a single step
    monkeypatch.undo()
    assert pretrain.main([*options, "--resume"]) == 0
    assert _losses(tmp_path / "run") == _losses(called)
    _assert_same_arrays(tmp_path / "run", called)


def test_no_step_saves_the_untrained_network_with_fitted_scale_factors(settings, whole, tmp_path):
    assert pretrain.main([*settings[1], "--max-steps", "0", "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == summary["compiled_shapes"] == 0
    untrained, meta = restore(tmp_path / "run", None, only=("params", "ema", "constants"))
    trained, _ = restore(whole, None, only=("params", "constants"))
    assert meta["step"] == 0 and meta["budget"]["steps"] == 12 and meta["budget"]["samples"] == 120
    factors = [name for name in trained if name.startswith("constants")]
    assert factors and all(np.array_equal(untrained[name], trained[name]) for name in factors)
    assert any(not np.array_equal(untrained[name], trained[name]) for name in trained)
    with pytest.raises(InputError, match="--max-steps must be at least 0"):
        PretrainConfig(upstream="demo:organic", max_steps=-1)


def test_resuming_a_finished_run_says_so_and_keeps_its_numbers(settings, whole, tmp_path, capsys):
    _, options = settings
    run_dir = _copy(whole, tmp_path / "run")
    loud = [word for word in options if word != "--quiet"]
    assert pretrain.main([*loud, "--run-dir", str(run_dir), "--resume"]) == 0
    assert _summary(run_dir) == _summary(whole)
    text = capsys.readouterr().out
    assert "has made all its 12 steps: there is nothing to do" in text and "structures/s" not in text


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(settings, whole, tmp_path):
    # What SIGKILL leaves then: config and the validation of step 0, no checkpoint.
    _, options = settings
    run_dir = _copy(whole, tmp_path / "run", without="checkpoints")
    (run_dir / "checkpoints" / ".step_00000002.tmp").mkdir(parents=True)
    first = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    (run_dir / "metrics.jsonl").write_text("".join(first))
    assert pretrain.main([*options, "--run-dir", str(run_dir), "--resume"]) == 0
    assert _losses(run_dir) == _losses(whole)


def _copy(source, target, without=""):
    return shutil.copytree(source, target, ignore=lambda folder, names: {without} & set(names))


def test_a_short_array_file_in_the_newest_checkpoint_falls_back_and_reaches_the_same_end(
    settings, whole, tmp_path, capsys
):
    _, options = settings
    run_dir = _copy(whole, tmp_path / "run")
    newest = run_dir / "checkpoints" / "step_00000012"
    victim = max((p for p in (newest / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert pretrain.main([*options, "--run-dir", str(run_dir), "--resume"]) == 0
    text = capsys.readouterr().out
    assert "step_00000012 is damaged" in text and "falling back" in text and "resuming at step" in text
    assert _losses(run_dir) == _losses(whole)
    _assert_same_arrays(run_dir, whole)


def test_resuming_without_any_whole_checkpoint_is_refused(settings, whole, tmp_path, refusal):
    run_dir = _copy(whole, tmp_path / "run")
    for marker in run_dir.rglob("complete.json"):
        marker.unlink()
    message = refusal(pretrain, [*settings[1], "--run-dir", str(run_dir), "--resume"])
    assert "no complete checkpoint" in message and "new run directory" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--lr", "1e-3"], ["lr was 0.01, now 0.001"]),
        (["--epochs", "3"], ["epochs was 2, now 3"]),
        (["--n", "61"], ["n was '60', now '61'"]),
        (["--batch-size", "12"], ["batch_size was 10, now 12"]),
        (["--upstream", "demo:aspirin"], ["upstream was 'demo:organic'"]),
    ],
)
def test_resuming_with_another_setting_names_it_with_both_values(settings, whole, refusal, change, words):
    message = refusal(pretrain, [*settings[1], "--run-dir", str(whole), "--resume", *change])
    assert all(word in message for word in words)


def test_settings_that_do_not_enter_the_result_may_change_on_resume():
    assert set(RESUMABLE) <= set(PretrainConfig.__dataclass_fields__)
    for name in ("upstream", "n", "epochs", "lr", "seed", "edge_dropout", "ema_decay", "batch_size", "precision"):
        assert name not in RESUMABLE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--upstream", "ani1"], ["ani1", "did you mean 'ani1x'"]),
        (["--upstream", "ani1x", "--data-root", "/nowhere"], ["/nowhere does not exist"]),
        (["--upstream", "file:/nowhere.extxyz"], ["/nowhere.extxyz"]),
        (["--upstream", "file:"], ["file:PATH"]),
        (["--batch-size", "100"], ["100", "60", "--batch-size"]),
        (["--batch-size", "0"], ["--batch-size", "positive"]),
        (["--batch-edges", "50"], ["50", "--batch-edges"]),
        (["--batch-shapes", "5"], ["--batch-shapes"]),
        (["--edge-dropout", "1"], ["--edge-dropout"]),
        (["--ema-decay", "1"], ["--ema-decay"]),
        (["--precision", "fp16"], ["--precision", "tf32", "fp16"]),
        (["--loss-scales", "none"], ["--loss-scales", "jmp"]),
        (["--val-every", "0"], ["--val-every"]),
        (["--lr", "-1"], ["--lr", "positive"]),
        (["--accumulate", "0"], ["--accumulate", "positive"]),
        (["--steps-per-call", "0"], ["--steps-per-call", "positive"]),
        (["--steps-per-call", "2", "--compile-for", "v5e:4x4"], ["--compile-for", "--steps-per-call"]),
        (["--model", "/nowhere.json"], ["/nowhere.json"]),
        (["--kernels", "triton"], ["--kernels", "mosaic_gpu", "triton"]),
        (["--kernels", "mosaic_gpu"], ["--kernels mosaic_gpu", "--precision bfloat16"]),
        (["--kernels", "mosaic_gpu", "--precision", "bfloat16"], ["--kernels mosaic_gpu", "H100"]),
        (["--kernels", "pallas_tpu", "--precision", "bfloat16"], ["--kernels pallas_tpu", "TPUs"]),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(settings, tmp_path, refusal, change, words):
    message = refusal(pretrain, [*settings[1], "--run-dir", str(tmp_path / "run"), *change])
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("before", "now"), [(True, "pallas_tpu"), (False, "auto"), (None, "auto")])
def test_the_kernel_of_runs_of_earlier_versions_is_understood(before, now):
    record = {"upstream": "demo:organic"} | ({} if before is None else {"fused_residual": before})
    assert cli.with_defaults(PretrainConfig, record)["kernels"] == now


def test_kernels_for_a_network_without_any_are_refused(tmp_path):
    """Else the run would go on without them, and its record would name them."""
    config = PretrainConfig(
        upstream="demo:organic", n="all", model="equiformer_v2_31m", kernels="mosaic_gpu", precision="bfloat16",
        cache_dir=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(InputError, match="--kernels mosaic_gpu: equiformer_v2 has no layer with kernels"):
        prepare(config, None, shapes_only=True)


@pytest.mark.parametrize("option", ["--lr", "--val-every"])
def test_a_setting_that_is_not_a_number_is_refused(option):
    with pytest.raises(InputError):
        PretrainConfig(upstream="demo:organic", **{option[2:].replace("-", "_"): float("nan")})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("energy", ["structure 7", "energy"]),
        ("forces", ["structure 7", "forces"]),
        ("position", ["structure 7", "positions"]),
        ("element", ["structure 7", "element"]),
    ],
)
def test_a_faulty_record_of_a_file_is_named(settings, tmp_path, refusal, fault, words):
    frames = []
    for i in range(12):
        rng = np.random.default_rng(i)
        base = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        atoms = Atoms("NH3", base + 0.05 * rng.normal(size=(4, 3)))
        atoms.info["energy"], atoms.arrays["forces"] = -50.0 + i, rng.normal(size=(4, 3))
        frames.append(atoms)
    if fault == "energy":
        frames[7].info["energy"] = float("nan")
    elif fault == "forces":
        frames[7].arrays["forces"][2, 1] = np.nan
    elif fault == "position":
        frames[7].positions[0, 0] = np.nan
    else:
        frames[7].numbers[1] = 0
    path = tmp_path / "frames.extxyz"
    ase.io.write(path, frames, format="extxyz")
    options = [*settings[1], "--n", "all", "--run-dir", str(tmp_path / "run"), "--upstream", f"file:{path}"]
    message = refusal(pretrain, options)
    assert "frames.extxyz" in message and all(word in message for word in words), message


def test_a_run_directory_that_is_a_file_is_refused(settings, tmp_path, refusal):
    (tmp_path / "run").write_text("")
    assert "--run-dir" in refusal(pretrain, [*settings[1], "--run-dir", str(tmp_path / "run")])


def test_a_stop_before_the_first_step_of_a_resume_loses_nothing(settings, whole, tmp_path, monkeypatch, capsys):
    # Two interruptions in a row, the second right after the start.
    run_dir = _copy(whole, tmp_path / "run")
    for name in ("step_00000012", "best", "last"):
        victim = run_dir / "checkpoints" / name
        victim.rename(run_dir / name)
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: True)
    assert pretrain.main([*settings[1], "--run-dir", str(run_dir), "--resume"]) == 0
    assert max(_losses(run_dir)) <= 12
    monkeypatch.undo()
    assert pretrain.main([*settings[1], "--run-dir", str(run_dir), "--resume"]) == 0
    assert _losses(run_dir) == _losses(whole)
    _assert_same_arrays(run_dir, whole)

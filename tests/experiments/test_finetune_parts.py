"""Fine-tuning a part of a network: the rest stays, checkpoints hold the whole, and runs resume exactly."""

import json

import numpy as np
import pytest

from experiments import evaluate, finetune
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore

OPTIONS = ["--downstream", "demo:gap", "--max-steps", "4", "--batch-size", "4", "--batch-shapes", "1", "--val-samples",
           "8", "--test-samples", "12", "--lr", "1e-2", "--log-every", "1", "--quiet"]  # fmt: skip


def _run(run_dir, init, *options):
    assert finetune.main([*OPTIONS, "--init", str(init), "--run-dir", str(run_dir), *options]) == 0
    return run_dir


def _arrays(run, *tops, which="last"):
    return restore(run / "checkpoints" / which, None, only=tops)[0]


@pytest.fixture(scope="module")
def low_rank(nano_run, tmp_path_factory):
    return _run(tmp_path_factory.mktemp("lora") / "run", nano_run, "--train", "lora:2")


def test_the_optimiser_holds_what_is_trained_and_the_summary_counts_it(low_rank):
    arrays = _arrays(low_rank, "opt_state", "params")
    moments = sum(array.size for name, array in arrays.items() if "/mu/" in f"{name}/")
    summary = json.loads((low_rank / "summary.json").read_text())
    assert moments == summary["trained_parameters"] < summary["parameters"]
    assert summary["parameters"] == sum(array.size for name, array in arrays.items() if name.startswith("params/"))


def test_the_checkpoint_holds_the_whole_model_with_corrections_added(low_rank):
    arrays = _arrays(low_rank, "ema", "trained", "frozen")
    name = "backbone/int_blocks/0/dense_ca/kernel"
    down, up = (arrays[f"trained/ema/{name}#{factor}"] for factor in ("down", "up"))
    assert np.abs(up).max() > 0
    np.testing.assert_allclose(arrays[f"ema/{name}/value"], arrays[f"frozen/{name}"] + down @ up, rtol=1e-6, atol=1e-7)
    assert not any("#" in name for name in arrays if name.startswith("ema/"))


def test_merged_predictions_are_those_of_the_run(low_rank):
    """The test at the end of the run used the parts, `experiments.evaluate` reads the merged weights."""
    before = json.loads((low_rank / "test.json").read_text())
    assert evaluate.main(["--run", str(low_rank), "--samples", "12"]) == 0
    after = json.loads((low_rank / "test.json").read_text())
    for weights in ("last_ema", "best_ema"):
        assert after[weights]["mae"] == pytest.approx(before[weights]["mae"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora:2", "last:1"])
def test_resuming_continues_bit_exactly(train, nano_run, tmp_path, monkeypatch):
    whole = _run(tmp_path / "whole", nano_run, "--train", train)
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) == 1)
    _run(tmp_path / "cut", nano_run, "--train", train)
    monkeypatch.undo()
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["steps"] == 2
    _run(tmp_path / "cut", nano_run, "--train", train, "--resume")
    ours, theirs = (_arrays(run, "params", "ema", "opt_state", "trained") for run in (whole, tmp_path / "cut"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_what_is_frozen_by_name_does_not_move(nano_run, tmp_path):
    run = _run(tmp_path / "run", nano_run, "--freeze", "embedding*,backbone/bases/*")
    start, end = _arrays(nano_run, "ema", which="best"), _arrays(run, "params")
    for name, array in end.items():
        own = name.removeprefix("params/").replace("embedding/kernel", "embedding/atom_embedding/kernel")
        if "bases" in name or own.startswith("embedding"):
            np.testing.assert_array_equal(array, start[f"ema/{own}"], err_msg=name)
    moved = "backbone/int_blocks/0/dense_ca/kernel/value"
    assert np.abs(end[f"params/{moved}"] - start[f"ema/{moved}"]).max() > 1e-4


@pytest.mark.slow
def test_a_corrected_model_is_a_start_for_others(low_rank, tmp_path):
    """Fine-tuning again begins with the merged weights."""
    run = _run(tmp_path / "again", low_rank, "--train", "heads")
    merged = _arrays(low_rank, "ema", which="best")
    name = "backbone/int_blocks/0/dense_ca/kernel/value"
    np.testing.assert_array_equal(_arrays(run, "params")[f"params/{name}"], merged[f"ema/{name}"])


@pytest.mark.slow
def test_settings_of_earlier_versions_are_understood(low_rank, nano_run, tmp_path):
    run = _run(tmp_path / "run", nano_run, "--train", "heads")
    config = json.loads((run / "config.json").read_text())
    del config["train"], config["targets"]
    (run / "config.json").write_text(json.dumps(config | {"freeze_backbone": True, "target": None}))
    assert evaluate.main(["--run", str(run), "--samples", "4"]) == 0
    assert finetune.main(["--config", str(run / "config.json"), "--resume"]) == 0


@pytest.mark.parametrize("train, words", [
    ("lora:4", "choose a rank below"), ("lora", "--train must be"), ("last:9", "the network has 1 blocks"),
])  # fmt: skip
def test_refusals(nano_run, tmp_path, refusal, train, words):
    options = [*OPTIONS, "--init", str(nano_run), "--run-dir", str(tmp_path / "run"), "--train", train]
    assert words in refusal(finetune, options)

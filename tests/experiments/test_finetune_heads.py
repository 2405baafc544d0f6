"""Heads that no shipped set has, from the file to the test errors: two classes, and the electronic spatial extent."""

import json

import numpy as np
import pytest
from fixtures.native_downstream import write_matbench, write_qm9

from experiments import evaluate, finetune

FAST = ["--n-train", "24", "--n-val", "4", "--max-steps", "4", "--batch-size", "4", "--batch-shapes", "1",
        "--cutoff", "4", "--max-neighbors", "8", "--test-samples", "all", "--budget", "small", "--quiet"]  # fmt: skip


def _tested(nano_run, folder, *options) -> dict:
    run = folder / "run"
    assert finetune.main([*FAST, "--init", str(nano_run), "--run-dir", str(run), *options]) == 0
    found = json.loads((run / "test.json").read_text())
    assert evaluate.main(["--run", str(run), "--samples", "all"]) == 0
    again = json.loads((run / "test.json").read_text())["last_ema"]
    numbers = {name: value for name, value in found["last_ema"].items() if isinstance(value, float)}
    assert numbers and {name: again[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    return found


@pytest.mark.slow
def test_two_classes(nano_run, tmp_path):
    values = [i % 3 == 0 for i in range(40)]
    file = write_matbench(tmp_path / "matbench_mp_is_metal.json.gz", n=40, target="is_metal", values=values)
    cache = ["--cache-dir", str(tmp_path / "cache")]
    found = _tested(nano_run, tmp_path, "--downstream", f"matbench:mp_is_metal/0@{file}", *cache)
    assert found["n_structure"] == 8
    for name in ("last_ema", "best_ema"):
        report = found[name]
        assert report["balanced_accuracy"] == pytest.approx(np.mean(list(report["recall"].values())))
        assert 0 <= report["accuracy"] <= 1 and report["n"] == 8


@pytest.mark.slow
def test_spatial_extent(nano_run, tmp_path):
    file = write_qm9(tmp_path / "dsgdb9nsd.xyz.tar.bz2", indices=range(1, 41))
    cache = ["--cache-dir", str(tmp_path / "cache")]
    found = _tested(nano_run, tmp_path, "--downstream", f"qm9:R_2_Abs@{file}", "--split", "record", *cache)
    assert found["last_ema"]["n"] == 4 and found["last_ema"]["unit"] == "a0^2"
    assert np.isfinite([found["last_ema"]["mae"], found["last_ema"]["rmse"]]).all()

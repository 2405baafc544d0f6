"""Fine-tuning on several devices, and with accumulated batches, is fine-tuning on one with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Three steps an epoch, of 8, 8 and 4 structures: on eight devices the last leaves four of them empty.
COMMON = ["--n-train", "20", "--n-val", "8", "--batch-shapes", "1", "--val-samples", "8", "--test-samples", "12",
          "--max-steps", "6", "--lr", "1e-3", "--log-every", "1", "--quiet"]  # fmt: skip
KINDS = {
    "direct forces": ["--downstream", "demo:aspirin", "--forces", "direct"],
    "a scalar": ["--downstream", "demo:gap"],
}
RUNS = {
    "one": ["--batch-size", "8"],
    "eight": ["--batch-size", "8", "--devices", "8", "--shard-optimizer"],
    "two pieces": ["--batch-size", "4", "--accumulate", "2", "--devices", "4"],
}
PROGRAM = "import json, sys; from experiments.finetune import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"


@pytest.fixture(scope="module", params=KINDS)
def runs(request, nano_run, tmp_path_factory):
    """{name: folder} of the same fine-tuning, cut in three ways, in one process with eight simulated devices."""
    folder = tmp_path_factory.mktemp("devices")
    found = {name: folder / name.replace(" ", "_") for name in RUNS}
    start = [*KINDS[request.param], "--init", str(nano_run), *COMMON]
    argvs = [[*start, *RUNS[name], "--run-dir", str(path)] for name, path in found.items()]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(argvs)], env=env, cwd=folder, capture_output=True,
                          text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def _series(run: Path, split: str, name: str) -> np.ndarray:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([r[name] for r in records if r["split"] == split and name in r])


@pytest.mark.slow
def test_losses_validations_and_tests_are_those_of_one_device(runs):
    one = runs["one"]
    losses = _series(one, "train", "loss")
    assert len(losses) == 6 and losses[0] != losses[-1]
    test = json.loads((one / "test.json").read_text())["last_ema"]["mae"]
    for name in ("eight", "two pieces"):
        np.testing.assert_allclose(_series(runs[name], "train", "loss"), losses, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(_series(runs[name], "val", "loss"), _series(one, "val", "loss"), rtol=1e-5)
        assert json.loads((runs[name] / "test.json").read_text())["last_ema"]["mae"] == pytest.approx(test, rel=1e-5)
        summary = json.loads((runs[name] / "summary.json").read_text())
        assert summary["samples_seen"] == 48 and summary["devices"] == {"eight": 8, "two pieces": 4}[name]

"""Fine-tuning on several devices, and with accumulated batches, is fine-tuning on one with the whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import finetune

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
    "calls of two": ["--batch-size", "8", "--steps-per-call", "2"],
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
    for name in ("eight", "two pieces", "calls of two"):
        np.testing.assert_allclose(_series(runs[name], "train", "loss"), losses, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(_series(runs[name], "val", "loss"), _series(one, "val", "loss"), rtol=1e-5)
        assert json.loads((runs[name] / "test.json").read_text())["last_ema"]["mae"] == pytest.approx(test, rel=1e-5)
        summary = json.loads((runs[name] / "summary.json").read_text())
        devices = {"eight": 8, "two pieces": 4, "calls of two": 1}
        assert summary["samples_seen"] == 40 and summary["devices"] == devices[name]


@pytest.mark.slow
def test_two_processes_give_the_losses_and_the_test_of_one(nano_run, tmp_path):
    start = [*KINDS["direct forces"], "--init", str(nano_run), *COMMON, *RUNS["one"]]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "experiments.finetune", *start, "--run-dir"]
    join = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commands = [[*words, str(tmp_path / "two"), *join, str(i)] for i in (0, 1)]
    both = [subprocess.Popen(command, env=env, cwd=tmp_path, **pipes) for command in commands]
    ended = [(process.communicate(timeout=600)[1], process.returncode) for process in both]
    assert all(code == 0 for _, code in ended), [error[-2000:] for error, _ in ended]
    assert subprocess.run([*words, str(tmp_path / "one")], env=env, cwd=tmp_path).returncode == 0
    one, two = tmp_path / "one", tmp_path / "two"
    np.testing.assert_allclose(_series(two, "train", "loss"), _series(one, "train", "loss"), rtol=2e-6)
    maes = [json.loads((run / "test.json").read_text())["last_ema"]["mae"] for run in (one, two)]
    assert maes[1] == pytest.approx(maes[0], rel=1e-5)
    assert json.loads((two / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_batches_filled_by_edges(nano_run, tmp_path):
    options = [*KINDS["a scalar"], "--init", str(nano_run), *COMMON, "--batch-edges", "2000"]
    assert finetune.main([*options, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] and summary["samples_seen"] > 6
    assert summary["compiled_shapes"] <= summary["batch_shapes"]

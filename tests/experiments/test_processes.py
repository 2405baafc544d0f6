"""Pretraining from the command line in two processes: to the end, after the death of one, and on other devices."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.nano import NANO

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """(folder, options) of a run of 24 steps that validates and saves often."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "nano.json").write_text(json.dumps(NANO))
    pairs = {
        "--upstream": "demo:organic", "--n": "60", "--epochs": "4", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(folder / "nano.json"), "--val-samples": "20", "--val-every": "0.34", "--log-every": "1",
        "--cache-dir": str(folder / "cache"), "--lr": "1e-2", "--part-headroom": "1.3",
    }  # fmt: skip
    return folder, [word for pair in pairs.items() for word in pair] + ["--quiet"]


def _start(options: list[str], n_process: int, n_device: int) -> list[subprocess.Popen]:
    """Processes of one run, with `n_device` devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n_device}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.pretrain", *options]
    join = ["--coordinator", f"localhost:{port}", "--num-processes", str(n_process), "--process-id"]
    own = [command if n_process == 1 else [*command, *join, str(i)] for i in range(n_process)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen(c, env=env, cwd=ROOT, **pipes) for c in own]


def _finish(processes: list[subprocess.Popen]) -> str:
    """What process 0 printed; all must have ended well."""
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error[-3000:]
    return outputs[0][0]


def _losses(run_dir: Path, split: str = "train") -> dict[int, float]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {r["step"]: r["loss"] for r in found if r["split"] == split}


def _assert_same_losses(one: Path, two: Path, **tolerance):
    for split in ("train", "val"):
        ours, expected = _losses(one, split), _losses(two, split)
        assert list(ours) == list(expected)
        np.testing.assert_allclose(list(ours.values()), list(expected.values()), **tolerance)


@pytest.fixture(scope="module")
def whole(settings):
    """The folder of an uninterrupted run of two processes."""
    folder, options = settings
    _finish(_start([*options, "--run-dir", str(folder / "whole")], 2, 1))
    return folder / "whole"


@pytest.fixture(scope="module")
def broken(settings, whole):
    """The folder of such a run of which one process was killed after a checkpoint, and what the other one did."""
    folder, options = settings
    run_dir = folder / "broken"
    first, second = _start([*options, "--run-dir", str(run_dir)], 2, 1)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None and max(_losses(run_dir), default=0) < 8:
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    try:
        first.communicate(timeout=150)
    finally:
        first.kill()
    return run_dir, first.returncode


def test_two_processes_train_validate_save_and_finish(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == STEPS and summary["processes"] == summary["devices"] == 2
    assert list(_losses(whole)) == list(range(1, STEPS + 1)) and max(_losses(whole, "val")) == STEPS
    assert (whole / "checkpoints" / "last").read_text().strip() == f"step_{STEPS:08d}"
    assert (whole / "checkpoints" / "best").exists() and (whole / "curves.png").exists()


def test_the_others_end_when_one_process_dies(broken):
    _, code = broken
    assert code not in (0, None), "a run that lost a process must not report success"


def test_a_run_that_lost_a_process_resumes_bit_exactly(settings, whole, broken, tmp_path):
    run_dir = shutil.copytree(broken[0], tmp_path / "run")
    assert 0 < max(_losses(run_dir)) < STEPS
    _finish(_start([*settings[1], "--run-dir", str(run_dir), "--resume"], 2, 1))
    _assert_same_losses(run_dir, whole, rtol=0)


@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (2, 2)])
def test_it_resumes_on_another_number_of_devices(settings, whole, broken, tmp_path, processes, devices):
    run_dir = shutil.copytree(broken[0], tmp_path / "run")
    _finish(_start([*settings[1], "--run-dir", str(run_dir), "--resume"], processes, devices))
    _assert_same_losses(run_dir, whole, rtol=1e-3)
    assert json.loads((run_dir / "summary.json").read_text())["devices"] == processes * devices

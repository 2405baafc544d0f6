"""One device and many: the same losses; one process and many: the same run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("parallel_run.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def _start(n_host_device: int, **args) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n_host_device}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), json.dumps(args)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def _values(result: dict, name: str) -> np.ndarray:
    return np.array([metrics[name] for metrics in result["losses"]])


def _assert_same_run(one: dict, many: dict):
    n = len(many["losses"])
    for name in ("loss", "energy_loss", "force_loss"):
        np.testing.assert_allclose(_values(many, name), _values(one, name)[:n], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(_values(many, "grad_norm"), _values(one, "grad_norm")[:n], rtol=1e-5)
    for name, value in one["sums"].items() if n == len(one["losses"]) else ():
        assert many["sums"][name] == pytest.approx(value, rel=1e-5), name


@pytest.fixture(scope="module")
def one(cache):
    return _finish(_start(1, devices=1, steps=50, cache=cache))


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(one, cache):
    many = _finish(_start(8, devices=8, steps=50, shapes=2, cache=cache))
    assert len(many["losses"]) == 50 and one["losses"][0]["loss"] != one["losses"][-1]["loss"]
    _assert_same_run(one, many)
    assert many["compilations"] <= 2


@pytest.mark.slow
def test_spread_optimiser_states_change_no_loss(one, cache):
    many = _finish(_start(4, devices=4, steps=20, zero=True, cache=cache))
    _assert_same_run(one, many)
    assert np.prod(many["moment_shard"]) * 4 == np.prod(many["moment"])


@pytest.mark.slow
def test_accumulated_parts_and_calls_of_several_steps_give_the_same_losses_on_two_devices(one, cache):
    many = _finish(_start(2, devices=2, steps=22, accumulate=3, steps_per_call=4, zero=True, cache=cache))
    assert len(many["losses"]) == 22
    _assert_same_run(one, many)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_losses_of_one(processes, one, cache):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    args = dict(devices=4, steps=10, cache=cache, coordinator=coordinator, processes=processes)
    results = [_finish(p) for p in [_start(4 // processes, process=i, **args) for i in range(processes)]]
    assert all(result["losses"] == results[0]["losses"] for result in results)
    _assert_same_run(one, results[0])
    assert results[0]["compilations"] == 1

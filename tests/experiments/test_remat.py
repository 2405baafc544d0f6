"""`--remat`: decided by the settings, by a resumed run's record, or by the memory that a step needs."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import pretrain
from jaxatoms.runs import finetune_setup, remat
from jaxatoms.runs.compile_for import report_for
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.types import InputError

GIB = 2**30


def _unasked():
    raise AssertionError("nothing needs to be compiled")


@pytest.fixture
def memory(monkeypatch):
    """Sets what the device has left."""
    return lambda size: monkeypatch.setattr(remat, "available_bytes", lambda device: size)


def test_a_plain_answer_compiles_nothing():
    assert remat.decide("yes", _unasked) and not remat.decide("no", _unasked)


@pytest.mark.parametrize(("needed", "decision"), [(8 * GIB, False), (9.5 * GIB, True), (20 * GIB, True)])
def test_blocks_are_recomputed_where_the_step_would_not_fit(memory, capsys, needed, decision):
    memory(10 * GIB)
    assert remat.decide("auto", lambda: int(needed)) is decision
    assert f"needs {needed / GIB:.1f} GiB of 10.0" in "".join(capsys.readouterr())


def test_a_resumed_run_keeps_its_decision(tmp_path, memory):
    memory(0)
    (tmp_path / "resolved.json").write_text(json.dumps({"model": {"remat": False}}))
    assert not remat.decide("auto", _unasked, tmp_path / "resolved.json")


def test_this_machine_has_memory():
    assert remat.available_bytes(jax.devices()[0]) > 2**20


def _pretrain(nano, run_dir, *options):
    fixed = {
        "--upstream": "demo:organic", "--n": "20", "--epochs": "1", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(nano), "--val-samples": "10", "--val-every": "2", "--run-dir": str(run_dir),
    }  # fmt: skip
    return pretrain.main([word for pair in fixed.items() for word in pair] + ["--quiet", *options])


@pytest.mark.slow
def test_pretraining_recomputes_where_memory_is_short_and_learns_the_same(nano, tmp_path, memory):
    memory(1)
    assert _pretrain(nano, tmp_path / "short", "--remat", "auto") == 0
    assert _pretrain(nano, tmp_path / "plain") == 0
    decisions = [
        json.loads((tmp_path / name / "resolved.json").read_text())["model"]["remat"] for name in ("short", "plain")
    ]
    assert decisions == [True, False]
    short, plain = (restore(tmp_path / name / "checkpoints" / "last")[0] for name in ("short", "plain"))
    for name in plain:
        np.testing.assert_allclose(short[name], plain[name], rtol=1e-3, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_fine_tuning_decides_by_memory_too(nano_run, tmp_path, memory):
    options = {
        "--downstream": "demo:aspirin", "--init": str(nano_run), "--max-steps": "1", "--test-samples": "4",
        "--val-samples": "4", "--run-dir": str(tmp_path / "run"), "--remat": "auto",
    }  # fmt: skip
    memory(1)
    config = cli.parse(FinetuneConfig, [word for pair in options.items() for word in pair])

    assert finetune_setup.prepare(config, None).model_config.remat
    memory(2**40)
    assert not finetune_setup.prepare(config, None).model_config.remat


def test_a_topology_has_no_memory_to_ask_for(nano, tmp_path):
    with pytest.raises(InputError, match="--remat yes or no"):
        report_for(PretrainConfig(upstream="demo:organic", remat="auto", compile_for="v5e:2x2"), sys.stdout)

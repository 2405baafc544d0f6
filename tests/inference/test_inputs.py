"""Identities of data sets, checkpoints and files, and what a command line is made from."""

import shutil

import numpy as np
import pytest
from fixtures.xyz import write_xyz

from jaxatoms.inference import inputs
from jaxatoms.training.checkpoint import CheckpointStore


@pytest.fixture
def xyz(tmp_path):
    return write_xyz(tmp_path / "data.extxyz")


def test_a_data_set_is_known_by_its_records_wherever_it_lies(tmp_path, xyz):
    cache = str(tmp_path / "cache")
    before = inputs.dataset(f"file:{xyz}", None, cache)
    (tmp_path / "elsewhere").mkdir()
    assert inputs.dataset(f"file:{shutil.copy(xyz, tmp_path / 'elsewhere')}", None, cache) == before
    write_xyz(xyz, shift=0.2)
    assert inputs.dataset(f"file:{xyz}", None, cache) not in (before, None)
    assert inputs.dataset(f"file:{tmp_path / 'none.xyz'}", None, cache) is None


def save(folder, value):
    """A checkpoint below `folder`; returns its identity."""
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(1, {"w": np.full(3, value)}, {"made": value}, "best")
    return inputs.weights(folder)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    first = save(tmp_path / "a", 1.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert inputs.weights(tmp_path / "b") == inputs.weights(tmp_path / "b/checkpoints/best") == first
    shutil.rmtree(tmp_path / "a")
    assert inputs.weights(tmp_path / "a") is None
    assert save(tmp_path / "a", 2.0) != first


def test_a_command_is_made_from_what_its_options_name(tmp_path, xyz):
    (tmp_path / "model.json").write_text("{}")
    words = ["experiments.pretrain", "--upstream", f"file:{xyz},demo:oxide", "--model", str(tmp_path / "model.json"),
             "--n", "4", "--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), "--init=none"]
    found = inputs.of_command(words)
    assert set(found) == {f"--upstream file:{xyz}", "--upstream demo:oxide", f"--model {tmp_path / 'model.json'}",
                          "--init none"}  # fmt: skip
    assert found["--init none"] is None and all(found[name] for name in found if name != "--init none")


def test_what_changed_is_named():
    assert inputs.changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]
    assert inputs.changed(None, {"a": 1}) == ["a"]

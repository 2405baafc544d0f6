"""The record of a checkpoint: exact round trip through JSON, earlier records, refusals in one line."""

import dataclasses
import json

import numpy as np
import pytest

from jaxatoms.data.task_record import PropertyRecord, TaskRecord
from jaxatoms.inference.checkpoint_meta import VERSION, CheckpointMeta, read_checkpoint_meta
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.training.finetuning import Plateau
from jaxatoms.types import InputError

TASK = {"name": "own", "energy_std": 0.5, "force_std": 1.0, "cutoff": 8.0, "max_neighbors": 30, "reference": {"1": 0}}
OLD = {"model": {"layout": 2}, "tasks": [TASK], "step": 7, "best": 0.5, "metrics": {"loss": 0.5}}


def test_an_earlier_record_has_no_version():
    meta = CheckpointMeta.from_json(OLD, "here")
    assert (meta.version, meta.step, meta.head, meta.config, meta.origin) == (0, 7, None, {}, None)
    assert meta.tasks[0].to_json() == TaskRecord.from_json(TASK, "here").to_json()


@pytest.mark.parametrize("more", [
    {}, {"head": {"kind": "scalar", "reduction": "max", "n_class": 0, "dropout": 0.5}}, {"reductions": ["mean"]},
    {"config": {"upstream": "ani1x"}, "budget": {"steps": 3}, "seed": 0, "validated_at": 5},
    {"plateau": {"factor": 0.8}, "upstream": "ani1x", "origin": {"upstream": "ani1x"}},
])  # fmt: skip
def test_a_record_survives_json(more):
    told = json.loads(json.dumps(CheckpointMeta.from_json(OLD | more, "here").to_json()))
    assert told["version"] == VERSION and {name: told[name] for name in more} == more
    assert json.loads(json.dumps(CheckpointMeta.from_json(told, "here").to_json())) == told


def test_losses_before_the_first_best_are_infinite_again_after_a_checkpoint(tmp_path):
    """JSON has no infinity: a run that was resumed before its plateau rule began ended there with a traceback."""
    meta = CheckpointMeta.from_json(OLD | {"best": None, "plateau": Plateau()._asdict()}, "here")
    with CheckpointStore(tmp_path) as store:
        path = store.save(7, {"w": np.zeros(2)}, meta.to_json(), "best")
    assert "Infinity" not in (path / "meta.json").read_text()
    again = read_checkpoint_meta(path)
    assert again.best == float("inf") and Plateau(**again.plateau) == Plateau()
    assert Plateau(**again.plateau).after(0.3, patience=1).best == 0.3


def test_properties_with_references_can_be_saved(tmp_path):
    """Keys of JSON are text: a run for qm9:U_0,gap ended at its first checkpoint."""
    record = PropertyRecord("target_U_0", "sum", 0.0, 1.0, "eV", {1: -13.6, 8: -2041.0})
    task = dataclasses.replace(TaskRecord.from_json(TASK, "here"), properties=(record,))
    with CheckpointStore(tmp_path) as store:
        path = store.save(1, {"w": np.zeros(2)}, CheckpointMeta(model={"layout": 2}, tasks=(task,)).to_json(), "best")
    assert read_checkpoint_meta(path).tasks[0].properties == (record,)


def test_a_head_is_typed():
    meta = CheckpointMeta.from_json(OLD | {"head": {"kind": "direct"}}, "here")
    assert meta.head == HeadSpec(kind="direct")


@pytest.mark.parametrize(("record", "words"), [
    ({"tasks": []}, "here has no usable record .it lacks model.; convert it first"),
    (OLD | {"mood": 1}, r"unknown fields \(mood\); use a newer jaxatoms"),
    (OLD | {"version": VERSION + 1}, f"version {VERSION + 1}; use a newer"),
    (OLD | {"head": {"sort": 1}}, "no usable head record"),
    (OLD | {"tasks": [{"name": "own"}]}, "here: the head 'own' lacks energy_std"),
])  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_line(record, words):
    with pytest.raises(InputError, match=words) as caught:
        CheckpointMeta.from_json(record, "here")
    assert "\n" not in str(caught.value)

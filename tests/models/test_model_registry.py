"""Records of networks: what an earlier version saved under the same dimensions is refused by name."""

import dataclasses
import json

import pytest
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.inference.model import restore_model
from jaxatoms.io import write_json
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.gemnet_oc.config import SMALL, TINY, GemNetOCConfig
from jaxatoms.models.registry import check_layout, config_from_record, model_record, presets
from jaxatoms.runs import session, start
from jaxatoms.runs.pretrain_config import RESUMABLE, PretrainConfig
from jaxatoms.types import InputError


@pytest.mark.parametrize("name", presets())
def test_a_record_gives_its_configuration_back(name):
    record = json.loads(json.dumps(model_record(presets()[name])))
    assert config_from_record(record) == presets()[name]
    check_layout(record, None, "here")


@pytest.mark.parametrize("config,head,words", [
    (TINY, None, "gemnet_oc_tiny.*pretrain again"),
    (SMALL, None, None),
    (SMALL, HeadSpec(kind="scalar", reduction="mean"), None),
    (SMALL, HeadSpec(kind="gradient"), None),
    (SMALL, HeadSpec(kind="scalar", reduction="extent"), "R_2_Abs.*fine-tune again"),
    (SMALL, HeadSpec(kind="scalar", reduction="mean", n_class=2), "classes.*fine-tune again"),
])  # fmt: skip
def test_records_without_a_layout(config, head, words):
    model = dataclasses.asdict(config)
    if words is None:
        return check_layout(model, head, "here")
    with pytest.raises(InputError, match=f"^here was saved by an earlier version.*{words}$"):
        check_layout(model, head, "here")


def test_every_way_to_an_earlier_checkpoint_says_why_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "model_record", dataclasses.asdict)
    run = checkpoints.write(tmp_path, GemNetOCConfig(**NANO), {"only": {}})
    config = PretrainConfig(upstream="demo:organic", resume=True)
    write_json(run / "config.json", dataclasses.asdict(config))
    write_json(run / "resolved.json", {"model": NANO})
    for load in (
        lambda: restore_model(str(run)),
        lambda: start.find_init(str(run)),
        lambda: session.check_run_dir(run, config, RESUMABLE),
    ):
        with pytest.raises(InputError, match=f"{tmp_path}.* was saved by an earlier version of jaxatoms"):
            load()

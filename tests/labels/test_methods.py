"""What `--with` names is found or refused in one line, and describes itself."""

import importlib.metadata
import json

import ase
import pytest
from ase.calculators.emt import EMT
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.inference import inputs
from jaxatoms.labels.methods import RECORDED, CheckpointMethod, find_method
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.types import InputError


def test_a_calculator_is_made_with_its_options_and_recorded_with_its_version():
    method = find_method("ase.calculators.emt:EMT", '{"asap_cutoff":true}')
    made = method.calculator()
    assert isinstance(made, EMT) and made.parameters.asap_cutoff is True
    record = method.record()
    assert record["label_method"] == "ase.calculators.emt:EMT"
    assert json.loads(record["label_options"]) == {"asap_cutoff": True}
    assert record["label_package"] == f"ase {importlib.metadata.version('ase')}"
    assert record["label_ase"] == f"ase {ase.__version__}"
    assert set(record) <= set(RECORDED)


def test_a_module_of_no_package_has_no_version():
    assert find_method("fixtures.calculators:Failing").record()["label_package"] == "fixtures (no version)"


@pytest.mark.parametrize(("name", "options", "words"), [
    ("tblite_that_is_missing.ase:TBLite", "{}", "tblite_that_is_missing is not installed; install it, as in `pip inst"),
    ("ase.calculators.no_such:EMT", "{}", "the installed ase has no module ase.calculators.no_such"),
    ("ase.calculators.emt:Emt", "{}", "has no Emt; check its name"),
    ("runs/nowhere", "{}", "no checkpoint at runs/nowhere; .* module:factory, such as"),
    ("ase.calculators.emt:EMT", "{method", "is not JSON"),
    ("ase.calculators.emt:EMT", "[1]", "is no JSON object"),
])  # fmt: skip
def test_what_cannot_be_found_is_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        find_method(name, options)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("fixtures.calculators:Failing", '{"no": 1}', r"options .*\(TypeError: .*check --options"),
    ("fixtures.calculators:EnergyOnly", "{}", "has no forces; choose another one"),
    ("fixtures.calculators:needs_missing_package", "{}", "module no_such_package_of_anyone is not installed"),
    ("os:getcwd", "{}", "has no energy and no forces"),
])  # fmt: skip
def test_what_cannot_be_made_is_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        find_method(name, options).calculator()


def test_a_checkpoint_is_named_by_its_weights_and_its_head(tmp_path):
    run = checkpoints.write(tmp_path / "run", GemNetOCConfig(**NANO), {"first": {}, "second": {}})
    method = find_method(str(run), task="second")
    assert method == CheckpointMethod(str(run), "second")
    record = method.record()
    assert record["label_weights"] == inputs.weights(run) and record["label_task"] == "second"
    assert record["label_checkpoint"] == str(run) and set(record) <= set(RECORDED)

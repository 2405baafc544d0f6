"""A finished pretraining run of a model that is just large enough to have every part."""

import json

import pytest
from fixtures.nano import NANO

from experiments import pretrain


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """A JSON file of dimensions; JAXATOMS_CACHE points beside it for the whole session."""
    folder = tmp_path_factory.mktemp("nano")
    (folder / "nano.json").write_text(json.dumps(NANO))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXATOMS_CACHE", str(folder / "cache"))
        yield folder / "nano.json"


@pytest.fixture(scope="session")
def nano_run(nano):
    """The folder of a finished run of 8 steps."""
    run_dir = nano.parent / "pretrained"
    options = {
        "--upstream": "demo:organic", "--n": "40", "--epochs": "2", "--batch-size": "10", "--batch-shapes": "1",
        "--model": str(nano), "--val-samples": "20", "--val-every": "2", "--run-dir": str(run_dir),
    }  # fmt: skip
    assert pretrain.main([word for pair in options.items() for word in pair] + ["--quiet"]) == 0
    return run_dir


@pytest.fixture
def refusal(capsys):
    """`refusal(command, options)`: the one line with which a command refuses its options."""

    def run(command, options) -> str:
        capsys.readouterr()  # what was said before
        with pytest.raises(SystemExit) as stop:
            command.main(options)
        message = capsys.readouterr().err.strip()
        assert stop.value.code == 2 and message.startswith("error: ") and "\n" not in message, message
        return message

    return run

"""What a training command does around its loop."""

from types import SimpleNamespace

import pytest

from jaxatoms.runs.session import Session, check_run_dir
from jaxatoms.types import InputError


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 40])
def test_a_validation_loss_that_is_not_finite_ends_the_run(loss, step):
    """No weights could be the best: the run went on to its end and failed there."""
    names = ("checkpoints", "log", "constants", "arrays", "meta")
    session = Session(**dict.fromkeys(names), metrics=lambda params: {"loss": loss}, save_every=1)
    with pytest.raises(InputError, match=f"the validation loss is {loss} at step {step}: .* experiments.data check"):
        session.validate(step, SimpleNamespace(ema=None))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_resume_that_finds_no_run_says_that_it_starts_one(tmp_path, capsys, quiet):
    config = SimpleNamespace(resume=True, quiet=quiet)
    assert not check_run_dir(tmp_path / "moved", config, ())
    said = "" if quiet else f"{tmp_path / 'moved'} holds no run to resume: a new one starts there\n"
    assert capsys.readouterr().out == said

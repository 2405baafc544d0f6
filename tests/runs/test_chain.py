"""A chain and what its steps are made from: data, checkpoints and files that changed since are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.xyz import write_xyz

from jaxatoms.runs.chain import Step, print_chain, run_chain
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.types import InputError


class Ended:
    """A process that has ended well."""

    def poll(self):
        return 0


class Commands:
    """Stands in for processes: a pretraining leaves a checkpoint that no other one equals, every step its proof."""

    def __init__(self):
        self.calls = []

    def __call__(self, argv, slot, jobs):
        self.calls.append(argv[0])
        folder = Path(argv[argv.index("--run-dir") + 1])
        with CheckpointStore(folder / "checkpoints") as store:
            store.save(1, {"w": np.zeros(1)}, {"run": len(self.calls)}, "best")
        (folder / "done.json").write_text("{}")
        return Ended()


def make_steps(out: Path, data: Path) -> list[Step]:
    cache = ("--cache-dir", str(out / "cache"))
    first, then = out / "pre", out / "ft"
    return [
        Step("pretrain", ("pre", "--upstream", f"file:{data}", "--run-dir", str(first)), first / "done.json",
             places=cache),
        Step("fine-tune", ("ft", "--downstream", "demo:aspirin", "--init", str(first), "--run-dir", str(then)),
             then / "done.json", places=cache),
    ]  # fmt: skip


@pytest.fixture
def chain(tmp_path):
    """(function that runs a chain of two steps, its commands); both steps are done."""
    commands, data = Commands(), write_xyz(tmp_path / "data.extxyz")

    def run(source=data):
        run_chain(make_steps(tmp_path, source), tmp_path, commands, say=lambda _: None)

    run()
    assert commands.calls == ["pre", "ft"]
    return run, commands


def test_a_chain_whose_inputs_are_the_same_runs_nothing_again(chain):
    run, commands = chain
    run()
    assert commands.calls == ["pre", "ft"]


def test_a_step_from_changed_data_is_refused_with_both_identities(chain, tmp_path):
    run, commands = chain
    write_xyz(tmp_path / "data.extxyz", shift=0.3)
    with pytest.raises(InputError, match="pretrain was made from another --upstream file:.*then.*now") as raised:
        run()
    assert str(tmp_path / "pre") in str(raised.value) and commands.calls == ["pre", "ft"]


def test_a_step_from_a_run_that_is_to_be_made_anew_is_refused_at_once(chain, tmp_path):
    run, commands = chain
    (tmp_path / "pre" / "done.json").unlink()
    (tmp_path / "pre" / "checkpoints" / "best").unlink()
    for step in (tmp_path / "pre" / "checkpoints").glob("step_*"):
        step.rename(tmp_path / step.name)
    with pytest.raises(InputError, match=f"fine-tune was made from another --init.*to be made.*{tmp_path / 'ft'}"):
        run()
    assert commands.calls == ["pre", "ft"]  # before hours are spent


def test_a_step_from_a_run_made_anew_is_refused(chain, tmp_path):
    run, _ = chain
    with CheckpointStore(tmp_path / "pre" / "checkpoints") as store:
        store.save(1, {"w": np.ones(1)}, {"run": 7}, "best")
    with pytest.raises(InputError, match="fine-tune was made from another --init"):
        run()


def test_chains_of_older_versions_are_still_read(chain, tmp_path):
    run, commands = chain
    record = json.loads((tmp_path / "chain.json").read_text())
    (tmp_path / "chain.json").write_text(json.dumps({name: kept["argv"] for name, kept in record.items()}))
    run()
    assert commands.calls == ["pre", "ft"]


def test_the_list_of_steps_says_which_are_stale(chain, tmp_path):
    said = []
    print_chain(make_steps(tmp_path, tmp_path / "data.extxyz"), tmp_path, said.append)
    assert [line[:7] for line in said] == ["[done ]", "[done ]"]
    write_xyz(tmp_path / "data.extxyz", n=7)
    said.clear()
    print_chain(make_steps(tmp_path, tmp_path / "data.extxyz"), tmp_path, said.append)
    assert [line[:7] for line in said] == ["[stale]", "[done ]"]

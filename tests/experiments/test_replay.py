"""Several heads on one backbone: own data sets together, and a pretraining set that is replayed with its own head."""

import dataclasses
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from experiments import evaluate, finetune, predict
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.data.downstream_task import open_downstream
from jaxatoms.inference.model import choose_head, restore_model
from jaxatoms.runs.finetune_data import _check_energies
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.checkpoint_files import read_meta
from jaxatoms.types import InputError

OPTIONS = ["--max-steps", "4", "--batch-size", "6", "--batch-shapes", "1", "--val-samples", "8", "--test-samples", "8",
           "--lr", "1e-2", "--log-every", "1", "--split", "record", "--quiet"]  # fmt: skip

REPLAY = ["--replay", "demo:organic", "--replay-share", "0.5", "--targets", "energy,forces"]


def _write(path, symbols, scale, seed):
    """Molecules with energies and forces of some size."""
    rng, frames = np.random.default_rng(seed), []
    for _ in range(40):
        n = len(Atoms(symbols))
        atoms = Atoms(symbols, rng.normal(0, 0.1, (n, 3)) + 1.1 * np.arange(n)[:, None])
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal() * scale, forces=rng.normal(size=(n, 3)) * scale)
        frames.append(atoms)
    ase.io.write(path, frames)
    return f"file:{path}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return _write(folder / "small.extxyz", "C2H4", 1.0, 0), _write(folder / "large.extxyz", "COH4", 5.0, 1)


def _run(run_dir, init, *options):
    assert finetune.main([*OPTIONS, "--init", str(init), "--run-dir", str(run_dir), *options]) == 0
    return run_dir


def _arrays(run, *tops, which="last"):
    return restore(run / "checkpoints" / which, None, only=tops)[0]


@pytest.fixture(scope="module")
def both(nano_run, files, tmp_path_factory):
    """A run on two files, with a head each."""
    return _run(tmp_path_factory.mktemp("both") / "run", nano_run, "--downstream", ",".join(files))


@pytest.fixture(scope="module")
def replayed(nano_run, files, tmp_path_factory):
    options = ["--downstream", files[0], *REPLAY]
    return _run(tmp_path_factory.mktemp("replay") / "run", nano_run, *options)


def test_every_set_is_validated_and_tested_with_its_own_head(both, files, capsys):
    summary = json.loads((both / "summary.json").read_text())
    assert summary["data_sets"] == ["small.extxyz", "large.extxyz"] and summary["head"]["heads"] == 2
    measures = {f"{name}/{label}" for name in ("loss", "force_mae_mev_per_angstrom") for label in summary["data_sets"]}
    assert set(summary["validation"]) == {"loss", *measures}
    losses = [summary["validation"][f"loss/{label}"] for label in summary["data_sets"]]
    assert summary["validation"]["loss"] == pytest.approx(np.mean(losses)) and min(losses) > 0.1
    tests = [json.loads((both / name).read_text()) for name in ("test.json", "test-1.json")]
    assert [test["data"] for test in tests] == list(files)
    assert tests[1]["last_ema"]["mae"] > 2 * tests[0]["last_ema"]["mae"]  # in physical units each
    assert (both / "test-1_parity_last_ema.png").exists()
    assert finetune.main([*OPTIONS, "--init", summary["init"], "--run-dir", str(both), "--downstream", ",".join(files),
                          "--resume"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "small.extxyz\nMAE forces" in told and "large.extxyz\nMAE forces" in told
    assert evaluate.main(["--run", str(both), "--samples", "8"]) == 0
    again = [json.loads((both / name).read_text())["last_ema"]["mae"] for name in ("test.json", "test-1.json")]
    assert again == pytest.approx([test["last_ema"]["mae"] for test in tests], rel=1e-5)


def test_heads_are_chosen_by_name(both, files, tmp_path):
    model = restore_model(str(both))
    assert choose_head(model, "large")[0] == choose_head(model, files[1])[0] == 1
    for name in (None, "medium"):
        with pytest.raises(InputError, match="has the heads"):
            choose_head(model, name)
    path, out = files[0].removeprefix("file:"), tmp_path / "out.extxyz"
    words = ["--checkpoint", str(both), "--structures", path, "--out", str(out), "--task", "small"]
    assert predict.main(words) == 0
    atoms = ase.io.read(path)
    atoms.calc = JaxAtomsCalculator(str(both), head="small")
    np.testing.assert_allclose(ase.io.read(out).get_forces(), atoms.get_forces(), atol=1e-4)
    other = Atoms("COH4", atoms.positions)  # the first head never saw oxygen, the second one did
    forces = JaxAtomsCalculator(str(both), head="large").get_forces(other)
    assert np.abs(forces).max() > 0
    with pytest.raises(InputError, match="not trained on"):
        atoms.calc.get_forces(other)


def test_a_replayed_set_keeps_its_head_and_is_tested_too(replayed, nano_run):
    meta = read_meta(replayed / "checkpoints" / "last")
    assert [task["name"] for task in meta["tasks"]][1] == "demo:organic"
    kept = next(task for task in read_meta(nano_run / "checkpoints" / "best")["tasks"])
    constants = json.loads((replayed / "data" / "task1" / "constants.json").read_text())
    assert constants["references"] == kept["reference"]  # what is subtracted; the zero is fitted once more
    assert meta["tasks"][1]["reference"].keys() <= kept["reference"].keys()
    assert (meta["head"]["heads"], meta["head"]["kept"]) == (2, 1)
    summary = json.loads((replayed / "summary.json").read_text())
    own, other = summary["split"]["train"], summary["other_splits"]["demo:organic"]["train"]
    assert other == own
    assert json.loads((replayed / "test-1.json").read_text())["data"] == "demo:organic"
    assert summary["validation"]["loss"] == summary["validation"][f"loss/{summary['data_sets'][0]}"]


def test_the_kept_head_begins_as_pretraining_left_it(nano_run, files, tmp_path):
    options = ["--downstream", files[0], "--replay", "demo:organic", "--targets", "energy,forces", "--lr", "1e-30"]
    run = _run(tmp_path / "run", nano_run, *options)
    now, before = _arrays(run, "params"), _arrays(nano_run, "ema", which="best")
    tasks = [read_meta(r / "checkpoints" / which)["tasks"] for r, which in ((run, "last"), (nano_run, "best"))]
    ratio = tasks[1][0]["energy_std"] / tasks[0][1]["energy_std"]
    own = {name: array for name, array in now.items() if name.startswith("params/out_energy/1/")}
    last = max(name.split("/")[4] for name in own)
    assert any(name.endswith("bias/value") for name in own)
    for name, array in own.items():
        source = before[name.replace("params/out_energy/1/", "ema/output/out_energy/0/")]
        factor = ratio if name.split("/")[4] == last else 1.0
        np.testing.assert_allclose(array, source * np.float32(factor), rtol=1e-6, err_msg=name)
    assert not any("out_energy/0" in name and "bias" in name for name in now if name.startswith("params/"))


@pytest.mark.slow
def test_resuming_continues_bit_exactly(replayed, nano_run, files, tmp_path, monkeypatch):
    options = ["--downstream", files[0], *REPLAY]
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) == 1)
    cut = _run(tmp_path / "cut", nano_run, *options)
    monkeypatch.undo()
    assert json.loads((cut / "summary.json").read_text())["steps"] == 2
    _run(cut, nano_run, *options, "--resume")
    ours, theirs = (_arrays(run, "params", "ema", "opt_state") for run in (replayed, cut))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_energies_of_another_zero_are_not_replayed():
    """A converted head knows no reference energies: the loss was that of total energies."""
    task, split = open_downstream("demo:aspirin", targets="energy,forces")
    far = dataclasses.replace(task, facts=dataclasses.replace(task.facts, references={}))
    _check_energies(task, split.train, "demo:aspirin")
    with pytest.raises(InputError, match=r"--replay demo:aspirin: its energies lie [\d,]+ eV from those of the"):
        _check_energies(far, split.train, "demo:aspirin")


def test_refusals(nano_run, files, tmp_path, refusal):
    base = [*OPTIONS, "--init", str(nano_run), "--run-dir", str(tmp_path / "run"), "--downstream"]
    known = "was not pretrained on it; its sets: demo:organic"
    assert known in refusal(finetune, [*base, files[0], "--replay", "demo:oxide"])
    assert "no effect without --replay" in refusal(finetune, [*base, files[0], "--replay-share", "0.5"])
    assert "another kind of head" in refusal(finetune, [*base, f"{files[0]},demo:gap"])
    assert "where a scalar is learnt" in refusal(finetune, [*base, "demo:gap", "--replay", "demo:organic"])

"""Every option of csi, extract, select and predict on every kind of input: it changes the result, or it is refused.

An option that is in none of the tables fails the first test, so that nobody adds one without saying what it does.
"""

import dataclasses
import json

import ase.build
import ase.io
import numpy as np
import pytest
from fixtures import extractors, toys

from experiments import csi, extract, predict, select
from jaxatoms.data.splits import make_split
from jaxatoms.data.store import open_dataset
from jaxatoms.features.difficulty import Losses, save_losses

A, R = "applied", "refused"
PLACES = ("out", "quiet", "data_root", "cache_dir")  # where things lie and what is printed
BAD_INPUT = ("on_failure",)  # matters where a structure cannot be predicted: test_predict.py
# Option -> (words, kind of input -> what becomes of it).
CSI = {
    "checkpoint": ("--checkpoint other", {"rows": R, "moments": R, "sets": A}),
    "n": ("--n 9", {"rows": R, "moments": R, "sets": A}),
    "sampling": ("--sampling random", {"rows": R, "moments": R, "sets": A}),
    "downstream_sampling": ("--downstream-sampling balanced", {"rows": R, "moments": R, "sets": A}),
    "repeat": ("--repeat --n 900", {"rows": R, "moments": R, "sets": A}),
    "aggregation": ("--aggregation sum", {"rows": A, "moments": R, "sets": A}),
    "seed": ("--seed 3", {"rows": A, "moments": A, "sets": A}),
    "edge_dropout": ("--edge-dropout 0.5", {"rows": R, "moments": R, "sets": A}),
    "blocks": ("--blocks 5", {"rows": A, "moments": R, "sets": A}),
    "resamples": ("--resamples 11", {"rows": A, "moments": A, "sets": A}),
    "level": ("--level 0.5", {"rows": A, "moments": A, "sets": A}),
    "distance": ("--distance energy", {"rows": A, "moments": R, "sets": A}),
    "estimate": ("--estimate plain", {"rows": A, "moments": A, "sets": A}),
    "raw_weights": ("--raw-weights", {"rows": R, "moments": R, "sets": A}),
    "batch_edges": ("--batch-edges 300", {"rows": R, "moments": R, "sets": A}),
    "store": ("--store", {"rows": R, "moments": R, "sets": A}),
    "features": ("--features more.npz", {"rows": R, "moments": R, "sets": R}),  # a file that no set names
}
EXTRACT = {
    "checkpoint": ("--checkpoint other", {"features": A}),
    "n": ("--n 9", {"features": A}),
    "sampling": ("--sampling balanced", {"features": A, "all": R}),
    "repeat": ("--repeat --sampling balanced --n 900", {"features": A, "losses": R}),
    "seed": ("--seed 3", {"features": A}),
    "aggregation": ("--aggregation max", {"features": A, "losses": R}),
    "edge_dropout": ("--edge-dropout 0.5", {"features": A, "losses": R, "paper": R}),
    "store": ("--store", {"features": A, "losses": R}),
    "blocks": ("--blocks 5", {"features": A, "losses": R}),
    "raw_weights": ("--raw-weights", {"features": A}),
    "backbone": ("--backbone plain", {"losses": R}),  # a check of the checkpoint's kind
    "edge_direction": ("--edge-direction source_to_target", {"losses": R, "paper": R}),
    "paper": ("--paper", {"features": A, "losses": R}),
    "losses": ("--losses", {}),  # test_csi_command
    "task": ("--task x", {"features": R}),
    "batch_edges": ("--batch-edges 300", {"features": A}),
}
SELECT = {
    "n": ("--n 7", {"csi": A, "difficulty": A}),
    "method": ("", {}),
    "downstream": ("--downstream demo:gap", {"csi": A, "difficulty": R}),
    "checkpoint": ("--checkpoint other", {"csi": A, "difficulty": R}),
    "candidates": ("--candidates 40", {"csi": A, "difficulty": R}),
    "task_n": ("--task-n 9", {"csi": A, "difficulty": R}),
    "directions": ("--directions 1", {"csi": A, "difficulty": R}),
    "steps": ("--steps 1", {"csi": A, "difficulty": R}),
    "batch_edges": ("--batch-edges 300", {"csi": A, "difficulty": R}),
    "losses": ("--losses other.npz", {"csi": R, "difficulty": A}),
    "difficulty": ("--difficulty mid", {"csi": R, "difficulty": A}),
    "seed": ("--seed 3", {"csi": A, "difficulty": A}),
}
PREDICT = {
    "task": ("--task two", {"heads": A, "scalar": R}),
    "features": ("--features atoms.npz", {"heads": A, "scalar": A}),
    "raw_weights": ("--raw-weights", {"heads": A, "scalar": A}),
    "batch_edges": ("--batch-edges 64", {"heads": A, "scalar": A}),
}
TABLES = {csi.CsiConfig: (CSI, "upstream", "downstream"), extract.ExtractConfig: (EXTRACT, "dataset"),
          select.SelectConfig: (SELECT, "upstream"),
          predict.PredictConfig: (PREDICT, "checkpoint", "structures")}  # fmt: skip


def test_every_option_is_in_a_table():
    for config, (table, *names) in TABLES.items():
        fields = {field.name for field in dataclasses.fields(config)}
        assert fields - {*PLACES, *BAD_INPUT} == {*table, *names}, config.__name__


def cases(table):
    return [(kind, name) for name, (_, kinds) in table.items() for kind in kinds]


def check(command, table, kind, name, base, result, capsys):
    """Run `command` with and without an option; what is compared is `result()` after each."""
    words, expected = table[name][0].split(), table[name][1][kind]
    if expected is R:
        with pytest.raises(SystemExit) as stop:
            command.main([*base, *words])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and len(said.splitlines()) == 1, said
        assert any(word in said for word in words if word.startswith("--")), said
        return
    assert command.main(base) == 0
    before = result()
    assert command.main(_replaced(base, words)) == 0
    assert result() != before


def _replaced(base, words):
    """`base` with these options, of which it may hold other values."""
    given = {word for word in words if word.startswith("--")}
    kept, skip = [], False
    for word in base:
        skip = word in given if word.startswith("--") else skip
        kept += [] if skip else [word]
    return [*kept, *words]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder where the test runs, with a network that costs nothing and no plots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path.parent / "options-cache"))
    for module in (csi, extract, select):
        monkeypatch.setattr(module, "load_extractor", extractors.plain)
    monkeypatch.setattr(csi.csi_report, "plot", lambda *_: None)
    return tmp_path


def _write_features(folder):
    rng = np.random.default_rng(0)
    for i, name in enumerate(("up", "task", "more")):
        rows, sizes = rng.normal(0.3 * i, 1 + 0.2 * i, (180, 3)), rng.integers(2, 5, 60)
        structure = np.repeat(np.arange(60), sizes)[:180]
        np.savez(folder / f"{name}.npz", features=rows[: len(structure)], structure=structure)


@pytest.fixture
def csi_inputs(folder):
    _write_features(folder)
    for name, data in (("ups", "demo:organic"), ("tasks", "demo:aspirin")):
        words = ["--dataset", data, "--checkpoint", "x", "--n", "40", "--out", f"{name}.npz", "--quiet"]
        assert extract.main(words) == 0
    sets = ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--checkpoint", "x", "--n", "40"]
    return {
        "rows": ["--upstream", "up.npz", "--downstream", "task.npz"],
        "moments": ["--upstream", "ups.npz", "--downstream", "tasks.npz"],
        "sets": sets,
    }


@pytest.mark.parametrize(("kind", "name"), cases(CSI))
def test_csi(kind, name, csi_inputs, folder, capsys):
    base = [*csi_inputs[kind], "--resamples", "20", "--out", "out", "--quiet"]

    def result():
        record = json.loads((folder / "out" / "csi.json").read_text())
        kept = [np.load(path).files for path in sorted((folder / "out").glob("features/*.npz"))]
        return record["rows"], record["ranking"], kept

    check(csi, CSI, kind, name, base, result, capsys)


@pytest.mark.parametrize("how", ["flat", "mean", "sum", "max"])
def test_the_aggregation_of_files_is_that_of_the_library(how, folder):
    from jaxatoms.csi.features import load_features
    from jaxatoms.csi.score import chemical_similarity_index

    _write_features(folder)
    base = ["--upstream", "up.npz", "--downstream", "task.npz", "--out", "out", "--quiet", "--resamples", "20"]
    assert csi.main([*base, "--aggregation", how]) == 0
    record = json.loads((folder / "out" / "csi.json").read_text())
    expected = chemical_similarity_index(load_features("up.npz"), load_features("task.npz"), how)
    assert record["rows"][0]["CSI Score"] == pytest.approx(expected, rel=1e-9)
    assert record["config"]["aggregation"] == how
    unused = ("n", "sampling", "downstream_sampling", "batch_edges", "checkpoint")
    assert all(record["config"][name] is None for name in unused)


@pytest.mark.parametrize(("kind", "name"), cases(EXTRACT))
def test_extract(kind, name, folder, capsys):
    more = {"features": [], "losses": ["--losses"], "paper": ["--paper"], "all": ["--n", "all"]}[kind]
    base = ["--dataset", "demo:organic", "--checkpoint", "x", "--n", "40", "--out", "x.npz", "--quiet"]

    def result():
        with np.load(folder / "x.npz") as archive:
            return archive.files, archive["mean"].tolist(), archive["scatter"].tolist()

    check(extract, EXTRACT, kind, name, _replaced(base, more), result, capsys)


@pytest.fixture
def calls(monkeypatch):
    """What selection was called with: steps and batches need not change which structures are chosen."""
    seen = []
    for name in ("sample_for", "select_structures"):
        monkeypatch.setattr(select, name, _noting(getattr(select, name), seen))
    return seen


def _noting(function, seen):
    def noted(*args):
        out = function(*args)
        seen.append(getattr(out, "batch_edges", args[2]))
        return out

    return noted


@pytest.fixture
def select_inputs(folder):
    spec, store = open_dataset("demo:organic")
    train = make_split(store, spec.split_rule).train
    rng = np.random.default_rng(0)
    for name in ("losses", "other"):
        info = {"made_from": {"data": store.fingerprint}}
        save_losses(folder / f"{name}.npz", Losses(train, rng.random(len(train)), rng.random(len(train)), info))
    return {
        "csi": ["--downstream", "demo:aspirin", "--checkpoint", "x", "--candidates", "60", "--task-n", "20"],
        "difficulty": ["--method", "difficulty", "--losses", "losses.npz", "--difficulty", "low"],
    }


@pytest.mark.parametrize(("kind", "name"), cases(SELECT))
def test_select(kind, name, select_inputs, calls, folder, capsys):
    base = ["--upstream", "demo:organic", "--n", "10", "--out", "s.npz", "--quiet", *select_inputs[kind]]
    if (kind, name) == ("difficulty", "seed"):  # of which the smallest losses have no need
        base += ["--difficulty", "mid"]

    def result():
        with np.load(folder / "s.npz") as archive:
            info = json.loads(str(archive["info"]))
            del info["config"]
            return archive["records"].tolist(), info, calls[-3:], capsys.readouterr()

    check(select, SELECT, kind, name, base, result, capsys)


@pytest.mark.parametrize(("kind", "name"), cases(PREDICT))
def test_predict(kind, name, folder, capsys, monkeypatch):
    monkeypatch.setattr(predict.inference, "restore_model", toys.restore(kind))
    ase.io.write(folder / "in.extxyz", [ase.build.molecule(m) for m in ("CH3OH", "C6H6", "H2O", "NH3") * 2])
    base = ["--checkpoint", "x", "--structures", "in.extxyz", "--out", "out.extxyz", "--quiet"]
    base += ["--task", "one"] if kind == "heads" else []
    plan, batches = predict.Predictor._plan, []
    monkeypatch.setattr(
        predict.Predictor, "_plan", lambda *args: batches.append(found := plan(*args)) or found
    )

    def result():
        sizes = [len(found.groups) for found in batches]
        batches.clear()
        return (folder / "out.extxyz").read_text(), (folder / "atoms.npz").exists(), capsys.readouterr().out, sizes

    check(predict, PREDICT, kind, name, base, result, capsys)

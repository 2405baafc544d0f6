"""CSI, extraction and selection from the command line, with a model that is hardly trained."""

import csv
import json
import shutil

import numpy as np
import pytest

from experiments import csi, extract, pretrain, select
from experiments.extraction import load_extracted
from jaxatoms.csi.score import csi_matrix, feature_moments
from jaxatoms.data.splits import make_split
from jaxatoms.data.store import open_dataset

FAST = ["--batch-edges", "1024", "--quiet"]


@pytest.fixture(scope="module")
def table(nano_run, tmp_path_factory):
    """The output folder of a comparison of two upstream sets with two tasks, features kept."""
    out = tmp_path_factory.mktemp("csi")
    options = ["--upstream", "demo:organic", "demo:reaction", "--downstream", "demo:aspirin", "demo:organic",
               "--checkpoint", str(nano_run), "--n", "30", "--blocks", "6", "--resamples", "20", "--store"]  # fmt: skip
    assert csi.main([*options, "--out", str(out), *FAST]) == 0
    return out, options


def _rows(out):
    with (out / "csi.csv").open() as file:
        return {(r["Upstream"], r["Downstream"]): r for r in csv.DictReader(file)}


def test_the_table_has_every_pair_with_interval_and_sizes(table):
    out, _ = table
    rows = _rows(out)
    assert len(rows) == 4
    for row in rows.values():
        assert float(row["low"]) <= float(row["high"])
        assert int(row["upstream structures"]) == 30 and int(row["upstream atoms"]) > 100
        assert 1 <= float(row["downstream effective rank"]) <= 8
        total = float(row["mean part"]) + float(row["covariance part"])
        assert float(row["CSI Score"]) == pytest.approx(total)
    assert (out / "csi.png").stat().st_size > 1000


def test_the_score_is_that_of_the_kept_features(table):
    out, _ = table
    up, down = (load_extracted(out / "features" / f"{name}.npz").features
                for name in ("upstream-demo_reaction", "downstream-demo_aspirin"))  # fmt: skip
    expected = csi_matrix([feature_moments(up)], [feature_moments(down)])[0, 0]
    assert float(_rows(out)["demo:reaction", "demo:aspirin"]["CSI Score"]) == pytest.approx(expected, rel=1e-6)
    assert up.features.shape == (len(up.element), 8) and len(np.unique(up.structure)) == 30


def test_the_ranking_is_ascending_and_its_probabilities_add_up(table):
    ranking = json.loads((table[0] / "csi.json").read_text())["ranking"]
    for order in ranking.values():
        assert [e["csi"] for e in order] == sorted(e["csi"] for e in order)
        assert sum(e["probability_best"] for e in order) == pytest.approx(1)


def test_a_second_run_extracts_nothing_again(table, monkeypatch):
    out, options = table
    before = (out / "csi.csv").read_text()
    monkeypatch.setattr(csi, "extract_for", None)  # calling it would fail
    assert csi.main([*options, "--out", str(out), *FAST]) == 0
    assert (out / "csi.csv").read_text() == before


def test_files_of_features_replace_data_sets(table, tmp_path):
    out, _ = table
    up, down = (str(out / "features" / f"{n}.npz") for n in ("upstream-demo_organic", "downstream-demo_aspirin"))
    assert csi.main(["--upstream", up, "--downstream", down, "--out", str(tmp_path), "--quiet"]) == 0
    same = _rows(tmp_path)["upstream-demo_organic", "downstream-demo_aspirin"]["CSI Score"]
    assert float(same) == pytest.approx(float(_rows(out)["demo:organic", "demo:aspirin"]["CSI Score"]))


def test_features_of_any_model_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    for name, shift in (("near", 0.1), ("far", 3.0), ("task", 0.0)):
        np.savez(tmp_path / f"{name}.npz", features=rng.normal(shift, 1, (400, 4)), structure=np.arange(400) // 4)
    files = [str(tmp_path / f"{name}.npz") for name in ("near", "far", "task")]
    options = ["--features", *files, "--upstream", "far", "near", "--downstream", "task"]
    assert csi.main([*options, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    best = json.loads((tmp_path / "out" / "csi.json").read_text())["ranking"]["task"][0]
    assert best["upstream"] == "near" and best["probability_best"] == 1


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_pooled_features_have_one_row_per_structure(nano_run, tmp_path, how):
    options = ["--dataset", "demo:aspirin", "--checkpoint", str(nano_run), "--n", "12", "--aggregation", how]
    assert extract.main([*options, "--blocks", "4", "--out", str(tmp_path / "x.npz"), *FAST]) == 0
    assert load_extracted(tmp_path / "x.npz").blocks.count.sum() == 12


def _refusal(command, options, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(options)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and len(text.splitlines()) == 1, text
    return text


def test_sets_that_do_not_belong_together_are_refused(table, tmp_path, capsys):
    kept = str(table[0] / "features" / "upstream-demo_organic.npz")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", features=rng.normal(size=(50, 9)), structure=np.arange(50))
    np.savez(tmp_path / "other.npz", features=rng.normal(size=(50, 8)), structure=np.arange(50))
    for name, words in (("wide", "8 and 9 features"), ("other", "differ in extractor")):
        options = ["--upstream", kept, "--downstream", str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / "o")]
        assert words in _refusal(csi, options, capsys)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (csi, ["--upstream", "demo:organic", "--downstream", "demo:aspirin"], "needs --checkpoint"),
        (csi, ["--upstream", "none.npz", "--downstream", "none.npz"], "none.npz"),
        (extract, ["--dataset", "demo:aspirin", "--n", "5000", "--out", "x.npz"], "asked for 5000.*--n all"),
        (extract, ["--dataset", "demo:aspirin", "--n", "9", "--sampling", "rendom", "--out", "x"], "did you mean"),
    ],
)
def test_a_bad_request_is_one_line(nano_run, capsys, tmp_path, monkeypatch, command, options, words):
    import re

    monkeypatch.chdir(tmp_path)
    extra = ["--checkpoint", str(nano_run)] if command is extract else []
    assert re.search(words, _refusal(command, [*options, *extra], capsys))


def test_features_that_are_not_finite_name_the_structure(tmp_path, capsys):
    features = np.ones((6, 2)) * np.arange(6)[:, None]
    features[3] = np.nan
    np.savez(tmp_path / "bad.npz", features=features, structure=np.arange(6) * 10)
    bad = str(tmp_path / "bad.npz")
    assert "structure 30" in _refusal(csi, ["--upstream", bad, "--downstream", bad, "--out", str(tmp_path)], capsys)


def test_selected_structures_lie_closer_than_random_ones_and_can_be_trained_on(nano_run, nano, tmp_path):
    out = tmp_path / "subset.npz"
    options = ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--checkpoint", str(nano_run),
               "--n", "25", "--candidates", "120", "--task-n", "40", "--directions", "8"]  # fmt: skip
    assert select.main([*options, "--out", str(out), *FAST]) == 0
    with np.load(out) as archive:
        report, records = json.loads(str(archive["info"]))["csi"], archive["records"]
    assert report["selected"] < report["random"] and report["selected"] < report["balanced"]
    spec, store = open_dataset("demo:organic")
    assert len(set(records)) == 25 and np.isin(records, make_split(store, spec.split_rule).train).all()
    run = ["--upstream", "demo:organic", "--subset", str(out), "--epochs", "1", "--batch-size", "10", "--model",
           str(nano), "--batch-shapes", "1", "--val-samples", "10", "--max-steps", "1", "--quiet"]  # fmt: skip
    assert pretrain.main([*run, "--run-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["budget"]["n"] == 25


def test_a_subset_of_other_data_is_refused(tmp_path, nano, capsys):
    shutil.copy(nano, tmp_path / "not.npz")
    run = ["--upstream", "demo:organic", "--model", str(nano), "--run-dir", str(tmp_path / "r")]
    assert "experiments.select" in _refusal(pretrain, [*run, "--subset", str(tmp_path / "not.npz")], capsys)
    np.savez(tmp_path / "other.npz", records=np.arange(3), fingerprint="x")
    assert "other data" in _refusal(pretrain, [*run, "--subset", str(tmp_path / "other.npz")], capsys)

"""CSI, extraction and selection from the command line, with a model that is hardly trained."""

import csv
import json
import re
import shutil

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from fixtures import extractors, native, toys

from experiments import csi, extract, pretrain, select
from experiments.report import csi_report
from jaxatoms.csi.aggregation import aggregate
from jaxatoms.csi.distances import registry
from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.distances.registry import DISTANCES
from jaxatoms.csi.features import load_features
from jaxatoms.csi.score import csi_matrix, feature_moments
from jaxatoms.data import tasks
from jaxatoms.data.splits import make_split
from jaxatoms.data.store import open_dataset
from jaxatoms.features import difficulty, extraction
from jaxatoms.features.extraction import load_extracted

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


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A folder to run in, and a network that costs nothing."""
    monkeypatch.chdir(tmp_path)
    for module in (csi, extract, select):
        monkeypatch.setattr(module, "load_extractor", extractors.plain)
    return tmp_path


def _write_molecules(path, seed, n=24):
    frames = []
    for i in range(n):
        atoms = ase.build.molecule(("CH3OH", "NH3", "C2H6")[i % 3])
        atoms.rattle(0.1, seed=100 * seed + i)
        atoms.calc = SinglePointCalculator(atoms, energy=float(i), forces=atoms.positions)
        frames.append(atoms)
    ase.io.write(path, frames)


def _score(folder):
    return json.loads((folder / "csi.json").read_text())["rows"][0]["CSI Score"]


def test_features_are_used_again_while_the_content_is_the_same_and_made_anew_when_it_is_not(plain, monkeypatch):
    def run(out, file="mine.extxyz"):
        options = ["--upstream", f"file:{file}", "--downstream", "demo:aspirin", "--checkpoint", "x", "--n", "20"]
        assert csi.main([*options, "--cache-dir", "cache", "--out", out, "--blocks", "4", *FAST]) == 0
        return _score(plain / out)

    _write_molecules(plain / "mine.extxyz", 0)
    first = run("out")
    _write_molecules(plain / "mine.extxyz", 1)  # another file behind the same name
    second = run("out")
    assert second == run("fresh") != first
    (plain / "elsewhere").mkdir()
    shutil.copy(plain / "mine.extxyz", plain / "elsewhere" / "mine.extxyz")
    (plain / "out" / "features").rename(plain / "kept")
    (plain / "out" / "features").mkdir()
    for path in (plain / "kept").iterdir():
        name = path.name.replace("file_mine.extxyz", "file_elsewhere_mine.extxyz")
        shutil.copy(path, plain / "out" / "features" / name)
    monkeypatch.setattr(csi, "extract_for", None)  # calling it would fail: equal content is equal wherever it lies
    assert run("out", "elsewhere/mine.extxyz") == second


def test_features_are_made_anew_when_the_source_of_the_classes_changes(plain, monkeypatch, capsys):
    options = ["--dataset", "demo:organic", "--checkpoint", "x", "--n", "20", "--sampling", "balanced"]
    options += ["--out", "x.npz"]
    assert extract.main(options) == 0 and extract.main(options) == 0
    assert "made from the same inputs, used again" in capsys.readouterr().out
    monkeypatch.setattr(extraction, "classes_of", lambda spec, store: (np.arange(len(store)) % 7, "mapping.pkl"))
    assert extract.main(options) == 0
    assert "made from other inputs (classes)" in capsys.readouterr().out


def test_paths_that_end_alike_have_features_of_their_own(plain):
    names = [csi._file_name(f"ani1x@{folder}/x.h5") for folder in ("a", "b")]
    assert names[0] != names[1] and all(name.startswith("ani1x-x-") for name in names)


def test_a_set_of_at_most_n_structures_is_taken_whole_whatever_the_sampling(plain):
    spec, store = open_dataset("demo:organic")
    available = len(make_split(store, spec.split_rule).train)
    for n, more in ((str(available), []), ("all", []), ("1000", ["--repeat"])):
        sampling = [] if n == "all" else ["--sampling", "balanced"]
        options = ["--dataset", "demo:organic", "--checkpoint", "x", "--n", n, "--store", *sampling, *more]
        assert extract.main([*options, "--out", "x.npz", *FAST]) == 0
        data = load_extracted(plain / "x.npz")
        distinct = len(np.unique(data.features.structure))
        assert data.info["n_distinct"] == distinct
        if more:  # the reference's sampler, on demand
            assert data.info["n_structure"] == 1000 > distinct and data.info["sampling"] == "balanced"
            assert len(np.unique(data.features.draws)) == 1000
        else:
            assert data.info["n_structure"] == distinct == available and data.info["sampling"] == "all"


def _write_rows(path, n, shift, seed, width=8):
    rng = np.random.default_rng(seed)
    np.savez(path, features=rng.normal(shift, 1, (2 * n, width)), structure=np.arange(2 * n) // 2)


@pytest.fixture
def small(plain):
    """Features of a close set of few structures, of one farther away of many, and of a task."""
    for seed, (name, n, shift) in enumerate((("few", 12, 0.0), ("many", 400, 0.30), ("task", 400, 0.0))):
        _write_rows(plain / f"{name}.npz", n, shift, seed)
    return ["--upstream", "few.npz", "many.npz", "--downstream", "task.npz", "--out", "out"]


@pytest.mark.parametrize("level", ["0.05", "0.95"])
def test_every_printed_value_lies_in_its_interval_and_the_corrected_one_ranks(small, plain, capsys, level):
    assert csi.main([*small, "--level", level]) == 0
    said, record = capsys.readouterr().out, json.loads((plain / "out" / "csi.json").read_text())
    for row in record["rows"]:
        for value, low, high in (columns for name, columns in csi_report.COLUMNS.items() if name != "extrapolated"):
            assert row[low] <= row[value] <= row[high]
        assert row["CSI corrected"] < row["CSI Score"] == pytest.approx(row["mean part"] + row["covariance part"])
    printed = re.findall(r"CSI +(\S+) +\[(\S+), (\S+)\]", said)
    assert len(printed) == 2 and all(float(low) <= float(value) <= float(high) for value, low, high in printed)
    plain_scores = {row["Upstream"]: row["CSI Score"] for row in record["rows"]}
    order = record["ranking"]["task"]
    assert plain_scores["few"] > plain_scores["many"]  # for it has few structures
    assert [place["upstream"] for place in order] == ["few", "many"] and record["estimate"] == "corrected"
    assert order[0]["plain"] == plain_scores["few"] and order[0]["probability_best"] > 0.5
    assert "small samples" in said and "--estimate extrapolated" in said


def test_the_published_procedure_and_the_extrapolation_are_chosen_by_name(small, plain, refusal):
    assert csi.main([*small, "--estimate", "plain", "--quiet"]) == 0
    record = json.loads((plain / "out" / "csi.json").read_text())
    assert [place["upstream"] for place in record["ranking"]["task"]] == ["many", "few"]
    assert "24 feature rows are too few" in refusal(csi, [*small, "--estimate", "extrapolated"])
    many = ["--upstream", "many.npz", "--downstream", "task.npz", "--out", "out", "--estimate", "extrapolated"]
    assert csi.main([*many, "--quiet"]) == 0
    (row,) = json.loads((plain / "out" / "csi.json").read_text())["rows"]
    assert row["extrapolated low"] <= row["CSI extrapolated"] <= row["extrapolated high"]
    assert row["CSI extrapolated"] < row["CSI Score"]


# --- distances ----------------------------------------------------------------------------------------


def _value(distance, up, down, how):
    """What the library says of two files."""
    rows = [aggregate(d.features, d.structure, how)[0] for d in map(load_features, (up, down))]
    if distance.needs == "rows":
        return distance.function(*rows)
    return distance.function(*(part for x in rows for part in (x.mean(0), np.cov(x, rowvar=False))))


@pytest.mark.parametrize("how", ["flat", "mean"])
@pytest.mark.parametrize("name", list(DISTANCES))
def test_the_value_of_a_distance_is_that_of_the_library(small, plain, name, how, capsys):
    distance = DISTANCES[name]
    assert csi.main([*small, "--distance", name, "--aggregation", how]) == 0
    record, said = json.loads((plain / "out" / "csi.json").read_text()), capsys.readouterr().out
    assert record["distance"] == record["config"]["distance"] == name
    assert record["estimate"] == record["config"]["estimate"] == distance.default_estimate
    columns = distance.columns
    for row in record["rows"]:
        expected = _value(distance, f"{row['Upstream']}.npz", "task.npz", how)
        assert row[columns["plain"][0]] == pytest.approx(expected, rel=1e-6)
        for value, low, high in (columns[estimate] for estimate in distance.estimates if estimate != "extrapolated"):
            assert row[low] <= row[value] <= row[high] and f",{value},{low},{high}" in _header(plain)
        assert row.get("upstream rows") == (
            None if distance.needs == "moments" else row["upstream atoms"] // (2 if how == "mean" else 1)
        )
    order = record["ranking"]["task"]
    assert [place[distance.title.lower()] for place in order] == sorted(r[columns[record["estimate"]][0]]
                                                                        for r in record["rows"])  # fmt: skip
    assert sum(place["probability_best"] for place in order) == pytest.approx(1)
    assert (distance.description in said) == (name != "frechet") and f"{distance.title}  " in said


def _header(folder):
    return (folder / "out" / "csi.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--distance", "enrgy"], "did you mean 'energy'"),
        (["--distance", "energy", "--estimate", "extrapolated"], "knows plain and corrected alone"),
        (["--distance", "mmd_linear", "--estimate", "corrected"], "has no effect with --distance mmd_linear"),
        (["--distance", "mmd", "--aggregation", "max", "--upstream", "three.npz"], "three: 3 structures have too few"),
        (["--distance", "mmd", "--upstream", "same.npz"], "same and task: median distance .* is zero"),
    ],
)
def test_what_a_distance_cannot_do_is_one_line(small, plain, refusal, options, words):
    _write_rows(plain / "three.npz", 3, 0.0, 0)
    np.savez("same.npz", features=np.ones((3000, 8)) + np.eye(3000, 8), structure=np.arange(3000) // 2)
    assert re.search(words, refusal(csi, [*small, *options]))


def test_files_of_moments_alone_are_refused_where_rows_are_needed_and_made_with_store(plain, refusal):
    make = ["--checkpoint", "x", "--n", "20", "--quiet", "--out"]
    compare = ["--upstream", "a.npz", "--downstream", "b.npz", "--distance", "energy", "--out", "out", "--quiet"]
    for more in ([], ["--store"]):
        assert extract.main(["--dataset", "demo:organic", *make, "a.npz", "--store"]) == 0
        assert extract.main(["--dataset", "demo:aspirin", *make, "b.npz", *more]) == 0
        if not more:
            assert re.search(r"b.npz holds moments alone.* --distance energy .*--store", refusal(csi, compare))
    assert csi.main(compare) == 0


def test_rows_of_data_sets_are_kept_for_a_distance_that_needs_them(plain, capsys):
    options = ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--checkpoint", "x", "--n", "20"]
    options += ["--out", "o"]
    kept = plain / "o" / "features" / "upstream-demo_organic.npz"
    assert csi.main(options) == 0
    assert load_extracted(kept).features is None and "made anew" not in capsys.readouterr().out
    assert csi.main([*options, "--distance", "energy"]) == 0
    assert load_extracted(kept).features is not None
    assert "made anew, for it holds moments without their rows" in capsys.readouterr().out
    before = json.loads((plain / "o" / "csi.json").read_text())
    assert csi.main([*options, "--distance", "energy"]) == 0
    assert json.loads((plain / "o" / "csi.json").read_text())["rows"] == before["rows"]
    assert "used again" in capsys.readouterr().out


def test_of_a_similarity_the_highest_is_the_closest(small, plain, monkeypatch):
    cosine = Distance(name="cosine", title="Cosine", description="Of the means.", needs="moments", signed=True,
                      lower_is_closer=False, function=lambda a, _a, b, _b: float(a @ b) / np.sqrt(a @ a * (b @ b)))
    monkeypatch.setattr(registry, "DISTANCES", dict(DISTANCES))
    registry.register(cosine)
    for name, sign in (("task", 1.0), ("few", 1.0), ("many", -1.0)):
        rng = np.random.default_rng(1)
        np.savez(f"{name}.npz", features=rng.normal(sign, 1, (80, 8)), structure=np.arange(80) // 2)
    assert csi.main([*small, "--distance", "cosine", "--quiet"]) == 0
    order = json.loads((plain / "out" / "csi.json").read_text())["ranking"]["task"]
    assert [place["upstream"] for place in order] == ["few", "many"] and order[1]["cosine"] < 0
    assert order[0]["probability_best"] == 1


def test_sets_that_do_not_belong_together_are_refused(table, tmp_path, refusal):
    kept = str(table[0] / "features" / "upstream-demo_organic.npz")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", features=rng.normal(size=(50, 9)), structure=np.arange(50))
    np.savez(tmp_path / "other.npz", features=rng.normal(size=(50, 8)), structure=np.arange(50))
    for name, words in (("wide", "8 and 9 features"), ("other", "differ in extractor")):
        options = ["--upstream", kept, "--downstream", str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / "o")]
        assert words in refusal(csi, options)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (csi, ["--upstream", "demo:organic", "--downstream", "demo:aspirin"], "needs --checkpoint"),
        (csi, ["--upstream", "none.npz", "--downstream", "none.npz"], "none.npz"),
        (extract, ["--dataset", "demo:aspirin", "--n", "5000", "--out", "x.npz"], "asked for 5000.*--n all"),
        (extract, ["--dataset", "demo:aspirin", "--n", "9", "--sampling", "rendom", "--out", "x.npz"], "did you mean"),
    ],
)
def test_a_bad_request_is_one_line(nano_run, refusal, tmp_path, monkeypatch, command, options, words):
    monkeypatch.chdir(tmp_path)
    extra = ["--checkpoint", str(nano_run)] if command is extract else []
    assert re.search(words, refusal(command, [*options, *extra]))


@pytest.mark.parametrize(
    ("out", "words"),
    [("x", "--out x: its suffix must be .npz"), ("file/x.npz", "cannot write the folder .*/file: .* another --out")],
)
@pytest.mark.parametrize(("command", "options"), [
    (extract, ["--dataset", "demo:aspirin", "--checkpoint", "x"]),
    (extract, ["--dataset", "demo:aspirin", "--checkpoint", "x", "--losses"]),
    (select, ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--checkpoint", "x", "--n", "9"]),
])  # fmt: skip
def test_an_output_that_cannot_be_written_is_refused_before_the_work(plain, refusal, command, options, out, words):
    (plain / "file").write_text("")
    assert re.search(words, refusal(command, [*options, "--out", out]))
    assert [path.name for path in plain.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n", "30", "--candidates", "20"], "--n 30: there are 20 candidates of demo:organic; raise --candidates"),
        (["--n", "5000"], "--n 5000: there are 489 candidates of demo:organic; its train split has no more, so lower"),
        (["--n", "9", "--directions", "5"], "--directions 5: x has 4 features; choose at most that many"),
        (["--n", "9", "--downstream", "demo:aspirine"], "did you mean 'demo:aspirin'"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_the_extraction(plain, refusal, monkeypatch, options, words):
    monkeypatch.setattr(select, "extract_for", None)  # calling it would fail
    base = ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--checkpoint", "x"]
    assert words in refusal(select, [*base, *options])


def test_features_that_are_not_finite_name_the_structure(tmp_path, refusal):
    features = np.ones((6, 2)) * np.arange(6)[:, None]
    features[3] = np.nan
    np.savez(tmp_path / "bad.npz", features=features, structure=np.arange(6) * 10)
    bad = str(tmp_path / "bad.npz")
    assert "structure 30" in refusal(csi, ["--upstream", bad, "--downstream", bad, "--out", str(tmp_path)])


@pytest.mark.slow
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


def test_structures_are_chosen_by_the_losses_of_a_network(nano_run, tmp_path, refusal):
    options = ["--dataset", "demo:organic", "--checkpoint", str(nano_run), "--n", "60", "--losses"]
    assert extract.main([*options, "--out", str(tmp_path / "l.npz"), *FAST]) == 0
    with np.load(tmp_path / "l.npz") as archive:
        losses = dict(zip(archive["records"].tolist(), archive["loss"].tolist(), strict=True))
        np.testing.assert_allclose(archive["loss"], archive["energy_loss"] + archive["force_loss"])
    assert len(losses) == 60 and np.std(list(losses.values())) > 0
    spec, store = open_dataset("demo:organic")
    train = make_split(store, spec.split_rule).train
    choose = ["--upstream", "demo:organic", "--method", "difficulty", "--losses", str(tmp_path / "l.npz"), "--n", "10"]
    for kind, expected in (("low", sorted(losses.values())[:10]), ("high", sorted(losses.values())[-10:])):
        assert select.main([*choose, "--difficulty", kind, "--out", str(tmp_path / "s.npz")]) == 0
        chosen = tasks.load_subset(tmp_path / "s.npz", store, train)
        assert sorted(losses[record] for record in chosen.tolist()) == expected
    choose[1] = "demo:reaction"
    assert "losses of other data" in refusal(select, [*choose, "--difficulty", "low"])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of constants that twelve frames do not have
def test_a_set_with_its_validation_set_beside_it_is_chosen_from_by_losses_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(difficulty, "restore_model", toys.restore("heads"))
    name = f"oc20@{native.write_oc20(tmp_path / 's2ef_train_2M', n_shard=4)}"
    native.add_oc20_validation(tmp_path)
    measure = ["--dataset", name, "--checkpoint", "x", "--n", "all", "--losses", "--task", "one", "--out", "l.npz"]
    assert extract.main([*measure, "--cache-dir", "c", *FAST]) == 0
    choose = ["--upstream", name, "--method", "difficulty", "--losses", "l.npz", "--difficulty", "low", "--n", "5"]
    assert select.main([*choose, "--out", "s.npz", "--cache-dir", "c"]) == 0
    data = tasks.prepare_task(name, "all", 0, val_samples=3, data_root=None, cache_dir="c", subset="s.npz")
    assert len(data.train) == 5 and max(data.train) < 12 and data.val.tolist() == [12, 13, 14]


def test_a_subset_of_other_data_is_refused(tmp_path, nano, refusal):
    shutil.copy(nano, tmp_path / "not.npz")
    run = ["--upstream", "demo:organic", "--model", str(nano), "--run-dir", str(tmp_path / "r")]
    assert "experiments.select" in refusal(pretrain, [*run, "--subset", str(tmp_path / "not.npz")])
    np.savez(tmp_path / "other.npz", records=np.arange(3), fingerprint="x")
    assert "other data" in refusal(pretrain, [*run, "--subset", str(tmp_path / "other.npz")])

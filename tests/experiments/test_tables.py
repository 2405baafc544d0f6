"""Tables and figures from run folders: rows, seeds, folds, missing cells, refusals."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from run_folders import comparison, finetuning, pretraining, write

from experiments import tables
from experiments.paper.names import backbone_label, base_name, upstream_label
from experiments.paper.published import RowKey, columns_of, published, rows_of
from experiments.report import figures
from experiments.report import tables as report_tables
from experiments.report.csi_records import find_comparisons
from experiments.report.grouping import make_cells
from experiments.report.results import find_results
from jaxatoms.models.gemnet_oc.config import LARGE, TINY
from jaxatoms.models.registry import model_record
from jaxatoms.types import InputError

ANI = RowKey(2_000_000, 5, "ANI-1x", "GemNet-OC-S")


def csv_cells(path):
    with path.open() as file:
        return {(r["upstream"], r["N"], r["dataset"], r["recipe"], r["variant"]): r for r in csv.DictReader(file)}


# --- published numbers ------------------------------------------------------------------------------


def test_published_tables_have_their_printed_shape():
    shapes = {t: (len(rows_of(published(t))), len(columns_of(published(t)))) for t in "12345"}
    assert shapes == {"1": (9, 4), "2": (12, 4), "3": (6, 4), "4": (8, 4), "5": (8, 4)}
    assert all(len(published(t)) == r * c for t, (r, c) in shapes.items())


def test_table_1_and_5_agree_where_they_print_the_same_runs():
    first = {(e.row, e.column): e.value for e in published("1")}
    fifth = {(e.row, e.column): e.value for e in published("5")}
    shared = first.keys() & fifth.keys()
    assert len(shared) == 16
    assert all(first[key] == fifth[key] for key in shared)


def test_unknown_table_is_refused():
    with pytest.raises(InputError, match="no published table"):
        published("6")


@pytest.mark.parametrize(("args", "label"), [
    (("ani1x@/x/y.h5",), "ANI-1x"),
    (("oc22,ani1x,oc20,transition1x", "temperature"), "Mixed (Temp)"),
    (("ani1x,oc22", "2:1", {"ani1x": 2_000_000, "oc22": 1_000_000}), "ANI-1x (2M) + OC22 (1M)"),
    (("demo:organic,demo:slab", "balanced"), "demo:organic + demo:slab (balanced)"),
    (("file:/x/acac.xyz#e,f",), "file:acac"),
    (("scratch",), "scratch"),
])  # fmt: skip
def test_upstream_labels(args, label):
    assert upstream_label(*args) == label


def test_downstream_aliases_and_backbones():
    assert base_name("qm9:gap@/x") == "qm9:delta_eps"
    record = dataclasses.asdict(dataclasses.replace(LARGE, remat=True, direct_forces=False))
    assert backbone_label(record) == "GemNet-OC-L"
    assert backbone_label({"architecture": "equiformer_v2", "num_layers": 8}) == "equiformer_v2 (8 layers)"
    assert backbone_label(record | {"num_blocks": 5}) == "GemNet-OC (5 blocks, 1024 wide)"
    assert backbone_label(model_record(TINY)) == "GemNet-OC-tiny"
    assert backbone_label(dataclasses.asdict(TINY)) == "GemNet-OC-tiny (earlier layout)"


def test_files_of_one_name_with_other_data_are_kept_apart(tmp_path):
    """water/train.extxyz and ice/train.extxyz became one task with an error bar."""
    for name, data in (("water", "aaaaaaaa"), ("ice", "bbbbbbbb"), ("again", "bbbbbbbb")):
        finetuning(tmp_path / name, "scratch", f"file:/{name}/train.extxyz", 5.0)
        (tmp_path / name / "data").mkdir()
        np.savez(tmp_path / name / "data" / "split.npz", fingerprint=data)
    datasets = {result.folder: result.column.dataset for result in find_results(tmp_path).results}
    assert datasets == {"water": "file:train (aaaaaa)", "ice": "file:train (bbbbbb)", "again": "file:train (bbbbbb)"}
    for name, data in (("one", "cccccccc"), ("two", "dddddddd")):
        finetuning(tmp_path / name, "scratch", "rmd17:aspirin", 5.0)
        (tmp_path / name / "data").mkdir()
        np.savez(tmp_path / name / "data" / "split.npz", fingerprint=data)
    found = [result for result in find_results(tmp_path).results if result.folder in ("one", "two")]
    paper = {result.folder: (result.column.dataset, result.notes[-1]) for result in found}
    assert paper == {"one": ("rMD17", "data with fingerprint cccccc"), "two": ("rMD17", "data with fingerprint dddddd")}
    shutil.rmtree(tmp_path / "water")
    assert {result.column.dataset for result in find_results(tmp_path).results} == {"file:train", "rMD17"}


@pytest.mark.parametrize("ema,variant", [(None, ""), (0.99, ""), (0.9, "ema_decay=0.9")])
def test_the_average_that_earlier_runs_recorded_as_a_number_is_the_default(tmp_path, ema, variant):
    finetuning(tmp_path / "ft", pretraining(tmp_path / "pre", ema_decay=ema), "rmd17:aspirin", 5.0)
    assert [result.row.variant for result in find_results(tmp_path).results] == [variant]


# --- cells ------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    pre = pretraining(tmp_path / "pre")
    for seed, mae in enumerate((5.0, 6.0, 7.0)):
        finetuning(tmp_path / f"ft{seed}", pre, "rmd17:aspirin", mae, seed=seed)
    cells, passed = make_cells(find_results(tmp_path).results)
    (row, column), cell = next(iter(cells.items()))
    assert (row, column.dataset, column.recipe) == (ANI, "rMD17", "")
    assert cell.mean == pytest.approx(6.0)
    assert cell.std == pytest.approx(1)
    assert cell.text() == "6.00 ± 1.00 (3)"
    assert cell.seeds == ("0/0", "1/0", "2/0")
    assert passed == []


def test_one_seed_has_no_deviation_and_a_repeated_one_counts_once(tmp_path):
    pre = pretraining(tmp_path / "pre")
    finetuning(tmp_path / "old", pre, "qm9:U_0", 3.0, "meV", started="2025-01-01T00:00:00+00:00")
    finetuning(tmp_path / "new", pre, "qm9:U0@/elsewhere", 2.0, "meV", started="2025-01-02T00:00:00+00:00")
    cells, passed = make_cells(find_results(tmp_path).results)
    assert [c.text() for c in cells.values()] == ["2.00 (1)"]
    assert passed == ["old: same row, task and seed as the newer new"]


def test_the_mean_over_folds_needs_all_five(tmp_path):
    pre = pretraining(tmp_path / "pre")
    for fold in range(5):
        finetuning(tmp_path / f"a{fold}", pre, f"matbench:phonons/{fold}", 10.0 + fold, "1/cm", seed=0)
        if fold < 4:
            finetuning(tmp_path / f"b{fold}", pre, f"matbench:phonons/{fold}", 99.0, "1/cm", seed=1)
    cells, _ = make_cells(find_results(tmp_path).results)
    mean = next(cell for (_, column), cell in cells.items() if column.dataset == "MatBench phonons mean")
    assert (mean.mean, mean.seeds, len(mean.runs)) == (12.0, ("0/0",), 5)


@pytest.mark.parametrize("init", ["{run}", "{run}/checkpoints/best", "{run}/checkpoints/step_320", "elsewhere/pre"])
def test_the_pretraining_run_of_an_older_run_is_found_through_init(tmp_path, init):
    run = pretraining(tmp_path / "pre", n=1000, epochs=3)
    finetuning(tmp_path / "deep" / "ft", init.format(run=run), "qmof", 0.3, "eV", noted=False)
    (result,) = find_results(tmp_path).results
    assert (result.row.n, result.row.budget, result.pretrain_seed) == (1000, 3000, 0)
    assert "an older run: its pretraining is read from the folder as it is now" in result.notes


def test_a_moved_pretraining_run_leaves_the_budget_unknown(tmp_path):
    finetuning(tmp_path / "ft", "/nowhere/pre", "qmof", 0.3, "eV")
    pretraining(tmp_path / "pre", upstream="oc20")  # same name, another run
    (result,) = find_results(tmp_path).results
    assert (result.row.budget, result.row.upstream) == (None, "ANI-1x")
    assert result.row.variant == "pretraining run not found"


def test_scratch_and_converted_weights(tmp_path):
    finetuning(tmp_path / "a", "scratch", "qmof", 0.3, "eV", upstream="scratch")
    write(tmp_path / "jmp" / "checkpoints" / "step_0", meta={"source": {"layout": "jmp", "file": "jmp-s.pt"}})
    finetuning(tmp_path / "b", tmp_path / "jmp", "qmof", 0.3, "eV", upstream="?")
    a, b = find_results(tmp_path).results
    assert (a.row.upstream, a.row.budget, a.pretrain_seed) == ("scratch", 0, None)
    assert b.row == RowKey(120_000_000, 2, "Mixed (Temp)", "JMP-S* (GemNet-OC-S)")


def test_the_row_is_what_the_run_noted_when_it_started_whatever_the_folder_holds_later(tmp_path):
    pre = pretraining(tmp_path / "pre", n=1_000_000)
    finetuning(tmp_path / "ft", pre, "rmd17:aspirin", 7.0)
    summary = json.loads((finetuning(tmp_path / "old", pre, "qmof", 7.0, noted=False) / "summary.json").read_text())
    config = json.loads((pre / "config.json").read_text())
    write(tmp_path / "old", summary=summary | {"pretrained": config})  # what runs kept before they noted their origin
    for change in (lambda: pretraining(pre, n=2_000_000), lambda: shutil.rmtree(pre)):
        change()
        new, old = find_results(tmp_path).results
        assert (new.row.n, old.row.n, new.notes) == (1_000_000, 1_000_000, ())
        assert "did not note the pretraining step" in old.notes[0]


def test_a_checkpoint_in_the_middle_is_marked_in_its_cell(tmp_path):
    pre = pretraining(tmp_path / "pre")
    finetuning(tmp_path / "ft", f"{pre}/checkpoints/step_00001000", "rmd17:aspirin", 30.0, step=1000)
    text, (_, table) = report_tables.write_table("1", find_results(tmp_path), tmp_path)
    assert "| 10M | 2M | 5 | ANI-1x | GemNet-OC-S | 5.4 | 30.00 (1) [1] |" in text
    assert "- [1] starts from pretraining step 1,000 of 500,000, about 20,000 of 10,000,000 samples" in text
    assert "step 1,000 of 500,000" in csv_cells(table)["ANI-1x", "2000000", "rMD17", "", ""]["notes"]
    finetuning(tmp_path / "whole", pre, "rmd17:aspirin", 5.0, started="2024-01-01T00:00:00+00:00")
    cells, passed = make_cells(find_results(tmp_path).results)
    assert [cell.text() for cell in cells.values()] == ["5.00 (1)"]
    assert passed == ["ft: same row, task and seed as the longer pretrained whole"]


def test_an_older_step_folder_is_marked_too(tmp_path):
    pre = pretraining(tmp_path / "pre")
    finetuning(tmp_path / "ft", f"{pre}/checkpoints/step_00001000", "rmd17:aspirin", 30.0, noted=False)
    (result,) = find_results(tmp_path).results
    assert any("step 1,000 of 500,000" in note for note in result.notes)


def test_what_does_not_enter_the_result_does_not_exclude_a_run(tmp_path):
    for seed, settings in enumerate((
        {"devices": 8, "steps_per_call": 4, "workers": 3, "shard_optimizer": True, "keep": 9},
        {"num_processes": 2, "coordinator": "host:1", "process_id": 0},
        {"batch_size": 5, "accumulate": 4},
    )):  # fmt: skip
        pre = pretraining(tmp_path / f"pre{seed}", seed=seed, **settings)
        finetuning(tmp_path / f"ft{seed}", pre, "rmd17:aspirin", 5.0 + seed, seed=seed, workers=2, data_root="/d")
    cells, _ = make_cells(find_results(tmp_path).results)
    assert [(row, column.recipe, cell.text()) for (row, column), cell in cells.items()] == [
        (ANI, "", "6.00 ± 1.00 (3)")
    ]


def test_precision_enters_the_result_and_is_shown(tmp_path):
    pre = pretraining(tmp_path / "pre", precision="bfloat16")
    finetuning(tmp_path / "a", pre, "rmd17:aspirin", 5.0)
    finetuning(tmp_path / "b", pretraining(tmp_path / "pre2"), "rmd17:aspirin", 5.0, precision="tf32")
    assert [r.row.variant for r in find_results(tmp_path).results] == ["pretrained in bfloat16", "fine-tuned in tf32"]


def test_a_fine_tuned_run_as_start_is_no_row_of_the_paper(tmp_path):
    record = {"settings": {"downstream": "demo:aspirin"}, "budget": None, "step": 4, "upstream": "ani1x"}
    ft = finetuning(tmp_path / "ft", "/first", "qmof", 0.3, "eV")
    summary = json.loads((ft / "summary.json").read_text())
    write(ft, summary=summary | {"origin": record})
    (result,) = find_results(tmp_path).results
    assert result.row[:3] == (None, None, "ANI-1x")
    assert result.row.variant == "by way of fine-tuning on demo:aspirin"


def test_what_departs_from_the_paper_is_kept_apart(tmp_path):
    pre = pretraining(tmp_path / "pre")
    finetuning(tmp_path / "paper", pre, "rmd17:aspirin", 5.0)
    finetuning(tmp_path / "short", pre, "rmd17:aspirin", 50.0, max_steps=10)
    finetuning(tmp_path / "probe", pre, "rmd17:aspirin", 80.0, train="heads")
    other = pretraining(tmp_path / "other", lr=1e-3, seed=1)
    finetuning(tmp_path / "lr", other, "rmd17:aspirin", 9.0)
    made = report_tables.make_table("1", find_results(tmp_path))
    rows, columns = made.others()
    assert [r.variant for r in rows] == ["", "lr=0.001", "train=heads"]
    assert [c.recipe for c in columns] == ["", "max_steps=10"]
    assert made.cells[ANI, columns[0]].mean == 5.0
    assert made.counterpart(rows[0], columns[1]) == 5.4


# --- pages ------------------------------------------------------------------------------------------


def test_a_table_beside_the_published_numbers(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    pre = pretraining(runs / "pre")
    finetuning(runs / "ft", pre, "rmd17:aspirin", 5.5, best=5.25, tested=(10, 20))
    finetuning(runs / "broken", pre, "qmof", 1.0)
    (runs / "broken" / "test.json").write_text("{")
    finetuning(runs / "stopped", pre, "md22:Ac-Ala3-NHMe", 1.0, finished=False)
    assert tables.main(["--table", "1", "--runs", str(runs), "--out", str(out)]) == 0
    page = (out / "table1.md").read_text()
    assert "| 10M | 2M | 5 | ANI-1x | GemNet-OC-S | 5.4 | 5.50 (1) [1] | 2.9 | - |" in page
    assert "- [1] tested on 10 of 20 test structures" in page
    assert "`ft`: ANI-1x -> rMD17, seed 0 (pretraining 0), commit 0123456789, cpu, float32, 10 of 20" in page
    assert "- broken: test.json cannot be read" in page
    assert "- stopped: not finished" in page
    assert str(tmp_path) not in page
    cell = csv_cells(out / "table1.csv")["ANI-1x", "2000000", "rMD17", "", ""]
    assert (cell["published"], cell["mean"], cell["n_seeds"], cell["runs"]) == ("5.4", "5.5", "1", "ft")
    assert cell["notes"] == "tested on 10 of 20 test structures"
    assert csv_cells(out / "table1.csv")["OC20", "2000000", "rMD17", "", ""]["mean"] == ""
    tables.main(["--table", "1", "--runs", str(runs), "--out", str(out), "--weights", "best_ema"])
    assert "5.4 | 5.25 (1)" in (out / "table1.md").read_text()


def test_budgets_fill_their_own_rows_of_table_2(tmp_path):
    for n in (1_000_000, 3_000_000):
        pre = pretraining(tmp_path / f"pre{n}", n=n, upstream="oc22")
        finetuning(tmp_path / f"ft{n}", pre, "qm9:U_0", n / 1e6, "meV", upstream="oc22")
    text, _ = report_tables.write_table("2", find_results(tmp_path), tmp_path)
    assert "| 5M | 1M | 5 | OC22 | GemNet-OC-S | 18.1 | - | 5.44 | - | 11.22 | - | 5.5 | 1.00 (1) |" in text
    assert "| 15M | 3M | 5 | OC22 | GemNet-OC-S | 17.4 | - | 5.15 | - | 11 | - | 5.8 | 3.00 (1) |" in text
    assert "other settings" not in text


def test_a_table_shows_its_own_backbone_and_whatever_the_paper_lacks(tmp_path):
    pre = pretraining(tmp_path / "pre")
    finetuning(tmp_path / "large", pre, "rmd17:aspirin", 4.0, model="gemnet_oc_l")
    finetuning(tmp_path / "tiny", pre, "demo:aspirin", 100.0, model="gemnet_oc_tiny")
    found = find_results(tmp_path)
    shown = {t: {r.folder for r in report_tables.make_table(t, found).results} for t in "13"}
    assert shown == {"1": {"tiny"}, "3": {"large", "tiny"}}


def test_no_runs_at_all_is_a_table_of_published_numbers(tmp_path):
    text, _ = report_tables.write_table("4", find_results(tmp_path), tmp_path)
    assert "None found." in text
    assert text.count("| - |") >= 8


@pytest.mark.parametrize(("argv", "message"), [
    ([], "give --table"),
    (["--table", "7"], "--table must be 1, 2, 3, 4, 5"),
    (["--figure", "2"], "--figure must be"),
    (["--table", "1", "--weights", "raw"], "--weights must be"),
    (["--table", "1", "--runs", "/nowhere"], "is no folder"),
    (["--figure", "3", "--runs", "/nowhere"], "is no folder"),
])  # fmt: skip
def test_bad_options(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tables.main([*argv, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


# --- figures ----------------------------------------------------------------------------------------


def test_every_csi_figure_takes_its_own_comparisons(tmp_path):
    scores = {("ani1x", "rmd17:aspirin"): 1.0, ("oc20", "matbench:phonons/0"): 2.0, ("oc20", "demo:gap"): 3.0}
    comparison(tmp_path / "main", scores)
    comparison(tmp_path / "mean", {("ani1x", "qm9:U_0"): 4.0}, aggregation="mean")
    comparison(tmp_path / "random", {("ani1x", "qm9:U_0"): 5.0}, sampling="random")
    comparison(tmp_path / "jmp", {("ani1x", "qm9:U_0"): 6.0}, extractor="gemnet_oc:2")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "csi.json").write_text("[")
    row = {"Upstream": "ani1x", "Downstream": "qm9:U_0", "Energy distance Score": 7.0}
    config = {"aggregation": "flat", "sampling": "balanced"}
    other = {"distance": "energy", "rows": [row], "config": config, "extractor": "equiformer_v2:1"}
    (tmp_path / "energy").mkdir()
    (tmp_path / "energy" / "csi.json").write_text(json.dumps(other))
    found = find_comparisons(tmp_path)
    values = {}
    for number, figure in figures.CSI_FIGURES.items():
        panels, title = figures.csi_panels(figure, found)
        assert figure.title in title
        values[number] = {(t, u): bar.value for t, p in panels.items() for u, bar in p.items() if bar}
    assert values["3"] == {("rMD17", "ANI-1x"): 1.0, ("demo:gap", "OC20"): 3.0}
    assert values["5"] == {("MatBench phonons", "OC20"): 2.0}
    assert values["6"] == {("QM9", "ANI-1x"): 4.0}
    assert values["7"] == {("QM9", "ANI-1x"): 5.0}
    assert values["8"] == {("QM9", "ANI-1x"): 6.0}


def test_a_missing_extractor_is_said_with_what_there_is(tmp_path):
    comparison(tmp_path / "a", {("ani1x", "qm9:U_0"): 1.0}, extractor="gemnet_oc:2")
    found = find_comparisons(tmp_path)
    panels, title = figures.csi_panels(figures.CSI_FIGURES["3"], found)
    assert panels["QM9"]["ANI-1x"] is None
    assert "--extractor gemnet_oc" in title
    panels, _ = figures.csi_panels(figures.CSI_FIGURES["3"], found, "any")
    assert panels["QM9"]["ANI-1x"].value == 1.0


def test_seeds_of_a_comparison_become_mean_and_deviation(tmp_path):
    for seed, score in enumerate((1.0, 3.0)):
        comparison(tmp_path / str(seed), {("ani1x", "qm9:U_0"): score}, seed=seed)
    panels, _ = figures.csi_panels(figures.CSI_FIGURES["3"], find_comparisons(tmp_path))
    assert panels["QM9"]["ANI-1x"] == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(("change", "names"), [
    ({"extractor": "equiformer_v2:2"}, ["ANI-1x, equiformer_v2:1", "ANI-1x, equiformer_v2:2"]),
    ({"n": "400"}, ["ANI-1x, n 400", "ANI-1x, n 800"]),
    ({"data": "e123456789"}, ["ANI-1x, upstream d, downstream d", "ANI-1x, upstream e12345, downstream e12345"]),
    ({"data": None}, ["ANI-1x, upstream d, downstream d", "ANI-1x, upstream of b, downstream of b"]),
])  # fmt: skip
def test_scores_of_other_extractors_sizes_or_data_are_bars_of_their_own(tmp_path, change, names):
    comparison(tmp_path / "a", {("ani1x", "qm9:U_0"): 1.0}, n="800")
    comparison(tmp_path / "b", {("ani1x", "qm9:U_0"): 3.0}, **({"n": "800", "seed": 1} | change))
    panels, _ = figures.csi_panels(figures.CSI_FIGURES["3"], find_comparisons(tmp_path))
    shown = {name: bar.value for name, bar in panels["QM9"].items() if bar}
    assert sorted(shown) == names and sorted(shown.values()) == [1.0, 3.0]


def test_a_seed_that_was_compared_twice_counts_once(tmp_path):
    for name, score in (("a", 1.0), ("b", 3.0)):
        comparison(tmp_path / name, {("ani1x", "qm9:U_0"): score}, seed=0)
    panels, _ = figures.csi_panels(figures.CSI_FIGURES["3"], find_comparisons(tmp_path))
    assert panels["QM9"]["ANI-1x"].value == 3.0


def test_figure_4_shows_the_mixture_beside_the_paper(tmp_path):
    counts = {"ani1x": 2_000_000, "oc22": 1_000_000}
    pre = pretraining(tmp_path / "pre", "ani1x,oc22", 3_000_000, mix="2:1", counts=counts)
    finetuning(tmp_path / "ft", pre, "rmd17:aspirin", 8.0, upstream="ani1x,oc22")
    finetuning(tmp_path / "alone", pretraining(tmp_path / "pre2"), "rmd17:aspirin", 5.0)
    panel = figures.error_panels("4", tmp_path, "last_ema")["rMD17 (meV/A)"]
    assert [bar and bar.value for bar in panel.values()] == [5.4, 5.0, 7.8, 8.0]
    assert figures.error_panels("4", tmp_path, "last_ema")["QM9 (meV)"]["ANI-1x (2M), 10M"] is None
    finetuning(tmp_path / "ft", pre, "rmd17:aspirin", 8.0, upstream="ani1x,oc22", tested=(2, 3))
    panel = figures.error_panels("4", tmp_path, "last_ema")["rMD17 (meV/A)"]
    assert list(panel)[-1].endswith(figures.PARTIAL)


@pytest.mark.parametrize("figure", figures.FIGURES)
def test_every_figure_draws_without_any_run(figure, tmp_path):
    path = figures.draw(figure, tmp_path, tmp_path)
    assert path.stat().st_size > 1000


def test_an_older_config_without_newer_settings_still_counts(tmp_path):
    pre = pretraining(tmp_path / "pre")
    config = json.loads((pre / "config.json").read_text())
    (pre / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("mix", "subset")}))
    finetuning(tmp_path / "ft", pre, "rmd17:aspirin", 5.0, noted=False)
    (result,) = find_results(tmp_path).results
    assert result.row == ANI
    shutil.rmtree(pre)
    assert find_results(tmp_path).results[0].row.budget is None

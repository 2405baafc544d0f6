"""A study's chain: what it runs, in which order, and what it makes of the results."""

import re

import pytest

from experiments import demo
from experiments import study as study_command
from experiments.report import study_report
from jaxatoms.runs import study
from jaxatoms.runs.study import StudyConfig
from jaxatoms.types import InputError


def config(**changes) -> StudyConfig:
    settings = {
        "upstream": ("a=demo:organic", "b=demo:reaction,demo:oxide"),
        "downstream": ("demo:aspirin", "t=demo:gap"),
    }
    return StudyConfig(**settings | changes)


def test_every_candidate_is_pretrained_and_fine_tuned_on_every_task_with_every_seed(tmp_path):
    steps = study.make_steps(config(seeds=2, csi=False, mixed=False), tmp_path)
    assert sum(step.together == "pretrain" for step in steps) == 2 * 2
    assert sum(step.together == "fine-tune" for step in steps) == 2 * 2 * 3  # a, b and scratch
    order = [step.together for step in steps]
    assert order == sorted(order, key=["pretrain", "fine-tune"].index)  # so that a stage may run at once


def test_a_candidate_of_two_sets_is_mixed_as_asked_and_graph_options_are_passed_on(tmp_path):
    steps = study.make_steps(config(csi=False, mixed=False, mix="2:1", cutoff=6.0, max_neighbors=20), tmp_path)
    single, pair = (step.argv for step in steps[:2])
    assert "--mix" not in single and pair[pair.index("--mix") + 1] == "2:1"
    assert single[single.index("--cutoff") + 1] == "6.0" and single[single.index("--max-neighbors") + 1] == "20"


def test_the_csi_step_stands_between_the_stages(tmp_path):
    steps = study.make_steps(config(upstream=("demo:organic", "demo:oxide")), tmp_path)
    assert [step.name for step in steps].index("csi") == 3  # two sets and their mixture
    assert steps[3].together == ""


def test_the_control_fits_scale_factors_and_trains_no_step_before_fine_tuning(tmp_path):
    steps = study.make_steps(config(control="scales", mixed=False, split="group"), tmp_path)
    first = [step.argv for step in steps if step.argv[0] == "experiments.pretrain"]
    assert len(first) == 2 and all(argv[argv.index("--max-steps") + 1] == "0" for argv in first)
    assert all(argv[argv.index("--split") + 1] == "group" for argv in first)
    then = {step.name: step.argv for step in steps if step.argv[0] == "experiments.finetune"}
    assert len(then) == 2 * 4 and len(steps) == 2 + len(then)  # a, b, the task's own, scratch; no CSI
    own = then["fine-tune t from scales-own seed 0"]
    assert "--refit-scales" in own and own[own.index("--init") + 1] == str(tmp_path / "pretrain" / "scales-a-s0")
    other = then["fine-tune t from scales-b seed 0"]
    assert "--refit-scales" not in other and other[other.index("--init") + 1].endswith("scales-b-s0")


def test_the_control_keeps_its_results_apart(tmp_path, monkeypatch):
    def run_chain(steps, out, jobs):
        for step in steps:
            step.proof.parent.mkdir(parents=True, exist_ok=True)
            step.proof.write_text('{"last_ema": {"mae": 1.0, "unit": "meV/A", "mean_baseline_mae": 2.0}}')

    monkeypatch.setattr(study_command, "run_chain", run_chain)
    study_command.main(["--upstream", "a=demo:organic", "--downstream", "t=demo:aspirin", "--control", "scales",
                "--out", str(tmp_path)])
    assert "| scales-own | 1 |" in (tmp_path / "results-scales.md").read_text()
    assert not (tmp_path / "results.md").exists()


@pytest.mark.parametrize(("report", "found"), [
    ({"mae": 1.0, "unit": "meV/A", "mean_baseline_mae": 2.0}, (1.0, 2.0, "meV/A", "MAE")),
    ({"balanced_accuracy": 0.75, "unit": "", "recall": {"0": 0.5, "1": 1.0}},
     (0.25, 0.5, "1 - balanced accuracy", "error")),
])  # fmt: skip
def test_errors_of_numbers_and_of_classes_are_collected(report, found, tmp_path):
    """A study of a classification ended in a traceback after its last run."""
    assert study._error(report, tmp_path) == found
    with pytest.raises(InputError, match="prediction that is not finite; look at its test.json"):
        study._error({"mae": None}, tmp_path)


def test_classes_are_told_as_errors():
    task = {"unit": "1 - balanced accuracy", "measure": "error", "mae": {"a": [0.25]}, "mean_baseline": 0.5}
    told = study_report.tell({"tasks": {"t": task}, "spearman": None})
    assert "test error 0.25 1 - balanced accuracy" in told and "naming one class        test error 0.5" in told


def test_results_without_csi_are_told_without_a_ranking(tmp_path):
    task = {"unit": "meV/A", "mae": {"a": [2.0, 4.0], "scratch": [9.0, 9.0]}, "mean_baseline": 20.0}
    results = {"tasks": {"t": task}, "spearman": None}
    assert "CSI" not in study_report.as_markdown(results) + study_report.tell(results)
    assert "| a | 3 ± 1.4 |" in study_report.as_markdown(results)
    study_report.plot(tmp_path / "results.png", results)
    assert (tmp_path / "results.png").stat().st_size > 1000


def _outcome(**mae):
    csi = {label: i + 1.0 for i, label in enumerate(mae)}
    values = mae | {"scratch": [1.0] * len(next(iter(mae.values())))}
    return {"tasks": {"t": {"unit": "meV/A", "csi": csi, "mae": values, "mean_baseline": 20.0}}, "spearman": None}


@pytest.mark.parametrize(
    ("mae", "words"),
    [
        ({"a": [2.0], "b": [3.0]}, "CSI picked a for t, which .*: 2 meV/A against 3 .b.*single runs"),
        ({"a": [4.0], "b": [3.0]}, "CSI picked a for t, but b led .*: 3 meV/A against 4 .a.*single runs"),
        ({"a": [2.0, 2.2], "b": [9.0, 9.2]}, r"lead of 7 is more than twice its standard error of 0\.14 over 2 seeds"),
        ({"a": [2.0, 4.0], "b": [3.0, 5.0]}, "lead of 1 is no more than twice its standard error of 1.4 over 2 seeds"),
    ],
)
def test_the_verdict_names_the_winner_and_how_sure_it_is(mae, words):
    verdict = study_report.verdict(_outcome(**mae))
    assert re.search(words, verdict) and verdict.count(". ") == 1 and verdict.endswith(".")


def test_without_a_selection_there_is_no_verdict():
    results = _outcome(a=[2.0], b=[3.0])
    assert study_report.verdict(_outcome(a=[2.0])) == ""
    del results["tasks"]["t"]["csi"]
    assert study_report.verdict(results) == ""


@pytest.mark.parametrize("options", [[], ["--no-csi"], ["--upstream", "demo:organic", "--no-mixed"]])
def test_the_demo_takes_the_options_of_a_study(tmp_path, monkeypatch, capsys, options):
    steps = []

    def run_chain(chain, out, ended, **how):
        steps[:] = chain
        for step in steps:
            ended(step)

    def collect(config, out):
        results = _outcome(**{study.label_of(name): [2.0] for name in config.upstream})
        results["tasks"]["t"] |= {} if config.csi else {"csi": {}}
        return results

    monkeypatch.setattr(demo, "run_chain", run_chain)
    monkeypatch.setattr(study, "collect", collect)
    assert demo.main(["--out", str(tmp_path), *options]) == 0
    text = capsys.readouterr().out
    assert f"{len(steps)}/{len(steps)} {steps[-1].name}" in text and str(tmp_path / "results.png") in text
    assert ("led to the lowest" in text) == (options == [])


@pytest.mark.parametrize(("seeds", "words"), [(1, "one task, one seed: no"), (2, r"\[0.20, 0.80\], mean of 1")])
def test_a_single_run_claims_no_interval(seeds, words):
    results = _outcome(a=[2.0] * seeds, b=[3.0] * seeds, c=[4.0] * seeds)
    results["spearman"] = {"value": 0.5, "low": 0.2, "high": 0.8, "tasks": 1}
    assert re.search(rf"Spearman correlation of CSI and MAE: 0\.50 \({words}", study_report.tell(results))


@pytest.mark.parametrize(
    ("scores", "mae", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([0, 0, 3], [1, 2, 3], 3**0.5 / 2),  # scores cut at 0 are a tie, in whatever order they stand
        ([0, 0, 3], [2, 1, 3], 3**0.5 / 2),
    ],
)
def test_the_correlation_of_orders_and_of_ties(scores, mae, expected):
    task = {"csi": dict(zip("abc", scores, strict=True)), "mae": {k: [v] for k, v in zip("abc", mae, strict=True)}}
    assert study.rank_correlation({"t": task}, 10)["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes",
    [{"seeds": 0}, {"jobs": 0}, {"upstream": ("a=x", "a=y")}, {"downstream": ("scratch=x",)}, {"control": "x"}],
)
def test_bad_settings(changes):
    with pytest.raises(InputError):
        config(**changes)

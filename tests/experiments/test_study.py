"""A study's chain: what it runs, in which order, and what it makes of the results."""

import pytest

from experiments import study, study_report
from experiments.study import StudyConfig
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


def test_results_without_csi_are_told_without_a_ranking(tmp_path):
    task = {"unit": "meV/A", "mae": {"a": [2.0, 4.0], "scratch": [9.0, 9.0]}, "mean_baseline": 20.0}
    results = {"tasks": {"t": task}, "spearman": None}
    assert "CSI" not in study_report.as_markdown(results) + study_report.tell(results)
    assert "| a | 3 ± 1.4 |" in study_report.as_markdown(results)
    study_report.plot(tmp_path / "results.png", results)
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_the_correlation_of_equal_and_of_opposite_orders():
    def task(mae):
        return {"csi": {"a": 1.0, "b": 2.0, "c": 3.0}, "mae": {k: [v] for k, v in zip("abc", mae, strict=True)}}

    assert study.rank_correlation({"t": task([1, 2, 3])}, 10)["value"] == pytest.approx(1)
    assert study.rank_correlation({"t": task([3, 2, 1])}, 10)["value"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "changes", [{"seeds": 0}, {"jobs": 0}, {"upstream": ("a=x", "a=y")}, {"downstream": ("scratch=x",)}]
)
def test_bad_settings(changes):
    with pytest.raises(InputError):
        config(**changes)

"""The table at the end of a fine-tuning run, and what it says of runs that learnt nothing."""

import pytest

from jaxatoms.runs.finetune_report import MEASURES, comparison

TEST = {"unit": "meV/A", "mae": 50.0, "mean_baseline_mae": 90.0}
START = {"unit": "meV/A", "mae": 85.0}
FORCES, CLASSES = "force_mae_mev_per_angstrom", "balanced_accuracy"


def _summary(measure: str, before: float, after: float, baseline: float | None) -> dict:
    metrics = {"validation_before": before, "validation": after}
    found = {} if baseline is None else {"validation_mean_baselines": {MEASURES[measure]: baseline}}
    return {name: {"loss": 1.0, measure: value} for name, value in metrics.items()} | found


def test_errors_before_and_after_stand_beside_the_mean():
    title, validation, test = comparison(_summary(FORCES, 80.0, 45.0, 91.0), [START], [TEST]).splitlines()
    assert title.startswith("MAE forces (meV/A)") and title.endswith("mean of the labels")
    assert validation.split() == ["validation", "80", "45", "91"] and test.split() == ["test", "85", "50", "90"]


@pytest.mark.parametrize("measure, before, after, baseline, words", [
    (FORCES, 80.0, 81.0, 91.0, "did not improve"),
    (FORCES, 99.0, 95.0, 91.0, "no better than the mean"),
    (CLASSES, 0.6, 0.5, 0.5, "did not improve"),
    (CLASSES, 0.4, 0.5, 0.5, "no better than the mean"),
])  # fmt: skip
def test_a_run_that_did_not_help_is_told_so(measure, before, after, baseline, words):
    test = {"unit": "", "balanced_accuracy": 0.5} if measure == CLASSES else TEST
    assert words in comparison(_summary(measure, before, after, baseline), [None], [test]).splitlines()[-1]


@pytest.mark.parametrize("baseline", [None, 0.5])
def test_a_run_that_helped_is_not_warned(baseline):
    """Runs of earlier versions noted no baseline."""
    test = {"unit": "", "balanced_accuracy": 0.8}
    assert len(comparison(_summary(CLASSES, 0.4, 0.8, baseline), [None], [test]).splitlines()) == 3


def test_properties_are_found_by_name_whichever_of_them_the_test_has_first():
    """A small test sample may have no label of the first property, which the validation sample has."""
    metrics = {"loss": 1.0, "mae_gap": 3.0, "mae_q": 5.0}
    summary = {"validation_before": metrics, "validation": {**metrics, "loss": 0.5}}
    test = {"property": "q", "unit": "e", "mae": 0.2, "mean_baseline_mae": 0.4, "properties": {}}
    start = {**test, "mae": 0.3, "linear_probe": {"q": {"validation": 0.31, "test": 0.32, "n_train": 9}}}
    gap, gap_validation, gap_test, q, _, q_test = comparison(summary, [start], [test]).splitlines()
    assert gap.startswith("MAE gap ") and gap_test.split() == ["test", "-", "-", "-"]
    assert gap_validation.split() == ["validation", "3", "3", "-"]
    assert q.startswith("MAE q (e)") and q_test.split() == ["test", "0.3", "0.32", "0.2", "0.4"]


def test_a_run_whose_validation_has_no_label_says_so():
    summary = {"validation_before": {"loss": 0.0}, "validation": {"loss": 0.0}}
    assert comparison(summary, [{}], [TEST]) == "no validation structure that was drawn has a label"

"""Figures of standard deviations whose errors are drawn from them, and of some that are wrong."""

import numpy as np
import pytest

from jaxatoms.uncertainty import reliability


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=5000))
    return rng.normal(size=5000) * std, std


def test_honest_standard_deviations(drawn):
    errors, std = drawn
    found = reliability.figures(errors, std, reliability.constant_std(errors))
    assert (found["coverage_1"], found["coverage_2"]) == pytest.approx(reliability.EXPECTED, abs=0.02)
    assert (found["mean_standardised"], found["rms_standardised"]) == pytest.approx((0, 1), abs=0.04)
    assert found["nll"] < found["nll_constant"] - 0.3 and 0.4 < found["spearman"] < 0.8
    shares = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(reliability.coverage(errors, std, shares), shares, atol=0.02)


def test_standard_deviations_that_are_too_small(drawn):
    errors, std = drawn
    found = reliability.figures(errors, std / 3, 1.0)
    assert found["coverage_2"] < 0.6 and found["rms_standardised"] == pytest.approx(3, rel=0.05)


def test_the_likelihood_is_that_of_a_gaussian():
    assert reliability.negative_log_likelihood(np.array([0.0]), np.array([1.0])) == pytest.approx(0.9189385)
    assert reliability.negative_log_likelihood(np.array([2.0]), np.array([2.0])) == pytest.approx(
        0.9189385 + 0.5 + np.log(2)
    )


def test_bins_hold_every_structure_once_and_rise(drawn):
    errors, std = drawn
    predicted, found, n = map(np.array, zip(*reliability.bins(errors, std), strict=True))
    assert n.sum() == len(errors) and (np.diff(predicted) > 0).all()
    np.testing.assert_allclose(found, predicted, rtol=0.15)
    assert len(list(reliability.bins(errors[:3], std[:3]))) == 1


def test_what_does_not_vary_has_no_rank_correlation():
    assert reliability.rank_correlation(np.ones(3), np.arange(3.0)) is None


def test_the_plot_appears(drawn, tmp_path):
    for n in (3, 100):
        errors, std = (values[:n] for values in drawn)
        reliability.plot_reliability(tmp_path / f"{n}.png", errors, std, "eV/atom", "title")
        assert (tmp_path / f"{n}.png").stat().st_size > 1000

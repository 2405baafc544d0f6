"""Variances of a last layer against Bayesian linear regression in closed form."""

import numpy as np
import pytest

from jaxatoms.types import InputError
from jaxatoms.uncertainty import last_layer
from jaxatoms.uncertainty.last_layer import LastLayer, calibrate, second_moments

D = 6


def _drawn(n, seed=0, rank=D):
    """Features [n, D] of very different scales, in a subspace of dimension `rank`."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(D, D)))[0][:rank]
    return rng.normal(size=(n, rank)) * np.logspace(0, -2, rank) @ basis


def _posterior_variance(train, new, noise, prior):
    """[n] of phi^T w, from the joint Gaussian of the labels and the new values: no matrix of features is inverted."""
    cross = prior**2 * new @ train.T
    labels = prior**2 * train @ train.T + noise**2 * np.eye(len(train))
    return prior**2 * np.sum(new**2, axis=1) - np.sum(cross * np.linalg.solve(labels, cross.T).T, axis=1)


@pytest.mark.parametrize("rank", [D, 3])
def test_the_variance_is_the_posterior_variance_of_a_linear_gaussian_model(monkeypatch, rank):
    train, new, noise, prior = _drawn(40, rank=rank), _drawn(9, seed=1), 0.3, 2.0
    moments, n = second_moments([train[:7], train[7:]])
    assert n == 40
    ridge = (noise / prior) ** 2
    monkeypatch.setattr(last_layer, "RIDGES", np.array([ridge / (np.trace(moments) / D)]))
    expected = _posterior_variance(train, new, noise, prior)
    found = calibrate(moments, new, np.sqrt(expected))  # errors of exactly one standard deviation
    assert (found.alpha, found.zeta) == pytest.approx((noise, np.sqrt(ridge)))
    np.testing.assert_allclose(found.std(new) ** 2, expected, rtol=1e-8)
    np.testing.assert_allclose(found.factor.T @ found.factor,
                               noise**2 * np.linalg.inv(moments + ridge * np.eye(D)), rtol=1e-6, atol=1e-9)  # fmt: skip


def test_calibration_finds_the_scale_and_the_prior_of_the_errors():
    """Errors are drawn from the posterior itself, so that alpha is the noise; zeta is found to within its grid."""
    train, new, noise, prior = _drawn(30), _drawn(4000, seed=1), 0.05, 3.0
    std = np.sqrt(_posterior_variance(train, new, noise, prior))
    errors = np.random.default_rng(2).normal(size=len(std)) * std
    found = calibrate(second_moments([train])[0], new, errors)
    assert found.alpha == pytest.approx(noise, rel=0.1)
    np.testing.assert_allclose(found.std(new), std, rtol=0.25)
    assert np.mean(np.abs(errors) < found.std(new)) == pytest.approx(0.683, abs=0.02)


def test_a_direction_that_training_lacks_is_uncertain():
    train = _drawn(40, rank=3)
    moments, _ = second_moments([train])
    found = calibrate(moments, _drawn(50, seed=1, rank=3), np.random.default_rng(0).normal(size=50))
    inside = train[0]
    missing = np.linalg.svd(train)[2][-1] * np.linalg.norm(inside)
    assert found.std(missing[None]) > 10 * found.std(inside[None])


def test_a_factor_per_structure_changes_nothing():
    """Totals and values per atom give the same constants."""
    rng = np.random.default_rng(0)
    features, errors, size = _drawn(60, seed=1), rng.normal(size=60), rng.integers(1, 50, 60)
    moments, _ = second_moments([_drawn(40)])
    whole, each = calibrate(moments, features, errors), calibrate(moments, features / size[:, None], errors / size)
    assert (whole.alpha, whole.zeta) == pytest.approx((each.alpha, each.zeta))


def test_errors_without_a_label_do_not_count():
    features, errors = _drawn(20, seed=1), np.random.default_rng(0).normal(size=20)
    moments, _ = second_moments([_drawn(40)])
    more = np.concatenate([features, features * 100]), np.concatenate([errors, np.full(20, np.nan)])
    np.testing.assert_array_equal(calibrate(moments, *more).factor, calibrate(moments, features, errors).factor)


def test_what_cannot_be_fitted_is_refused():
    moments, _ = second_moments([_drawn(5)])
    for parts, words in (([], "no training structure"), ([np.zeros((3, 2))], "features are zero")):
        with pytest.raises(InputError, match=words):
            second_moments(parts)
    for errors, words in (([1.0, np.nan], "1 labelled structures"), ([0.0, 0.0], "errors that are all zero")):
        with pytest.raises(InputError, match=words):
            calibrate(moments, _drawn(2), np.array(errors))
    with pytest.raises(InputError, match="features that are all zero"):
        calibrate(moments, np.zeros((2, D)), np.ones(2))


def test_a_standard_deviation_is_a_length():
    fitted = LastLayer(np.array([[3.0, 0.0], [0.0, 4.0]]), 1.0, 1.0)
    np.testing.assert_allclose(fitted.std(np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)), [5.0, 0.0])

"""Frechet distance against SciPy's sqrtm, closed forms and exact cases."""

import numpy as np
import pytest
import scipy.linalg

from jaxatoms.csi.frechet import frechet_distance, frechet_distances, frechet_terms, symmetric_factor
from jaxatoms.types import InputError


def gaussian(d, n, seed):
    rows = np.random.default_rng(seed).standard_normal((n, d)) * np.linspace(0.5, 2, d) + seed
    return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))


def by_sqrtm(mean_a, cov_a, mean_b, cov_b):
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b) - 2 * np.trace(root.real)


@pytest.mark.parametrize("d", [1, 2, 16, 128])
def test_full_rank_equals_sqrtm(d):
    a, b = gaussian(d, 4 * d + 8, 1), gaussian(d, 4 * d + 8, 2)
    np.testing.assert_allclose(frechet_distance(*a, *b), by_sqrtm(*a, *b), rtol=1e-8)


@pytest.mark.parametrize("n_a,n_b", [(40, 400), (400, 40), (30, 40)])
def test_rank_deficient_equals_sqrtm(n_a, n_b):
    a, b = gaussian(100, n_a, 1), gaussian(100, n_b, 2)
    np.testing.assert_allclose(frechet_distance(*a, *b), by_sqrtm(*a, *b), rtol=1e-6)


@pytest.mark.parametrize("a,b", [(1.0, 1.0), (4.0, 9.0), (0.0, 2.0), (1e-12, 1e12)])
def test_scaled_identities_match_the_closed_form(a, b):
    d, gap = 7, 3.0
    got = frechet_distance(np.zeros(d), a * np.eye(d), np.full(d, gap), b * np.eye(d))
    np.testing.assert_allclose(got, d * gap**2 + d * (a**0.5 - b**0.5) ** 2, rtol=1e-14)


def test_commuting_wide_spectra_match_the_closed_form():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    a, b = np.geomspace(1, 1e-12, 60), 1.3 * np.geomspace(1, 1e-12, 60)
    got = frechet_distance(np.zeros(60), (q * a) @ q.T, np.zeros(60), (q * b) @ q.T)
    np.testing.assert_allclose(got, np.sum((a**0.5 - b**0.5) ** 2), atol=1e-7 * (a + b).sum())


def test_all_pairs_in_one_call_equal_single_calls():
    up, down = [gaussian(12, 50, s) for s in range(3)], [gaussian(12, 9, s) for s in range(5, 9)]
    table = frechet_distances(*zip(*up, strict=True), *zip(*down, strict=True))
    assert table.shape == (3, 4)
    single = [[frechet_distance(*u, *d) for d in down] for u in up]
    np.testing.assert_allclose(table, single, rtol=1e-12)


def test_distance_is_symmetric_and_of_itself_zero():
    a, b = gaussian(40, 200, 1), gaussian(40, 30, 2)
    np.testing.assert_allclose(frechet_distance(*a, *b), frechet_distance(*b, *a), rtol=1e-7)
    for x in (a, b):
        assert frechet_distance(*x, *x) == 0.0
        nearly = (x[0], x[1] * (1 + 1e-15))  # not bitwise equal: the numerical path
        assert 0 <= frechet_distance(*x, *nearly) < 1e-7 * np.trace(x[1])


def test_zero_covariances_leave_the_other_trace():
    mean, cov = gaussian(5, 30, 0)
    zero = np.zeros((5, 5))
    np.testing.assert_allclose(frechet_distance(mean, zero, mean, cov), np.trace(cov), rtol=1e-14)
    assert frechet_distance(mean, zero, mean, zero) == 0.0


def test_never_nan_and_never_negative_on_slightly_indefinite_input():
    rng = np.random.default_rng(3)
    for _ in range(50):
        low = rng.standard_normal((20, 4))
        noise = rng.standard_normal((20, 20)) * 1e-15
        cov = low @ low.T + noise + noise.T
        value = frechet_distance(np.zeros(20), cov, np.zeros(20), cov * (1 + 1e-13))
        assert np.isfinite(value) and value >= 0


def test_terms_split_mean_and_covariance():
    terms = frechet_terms([np.ones(3)], [np.eye(3)], [np.zeros(3)], [4 * np.eye(3)])
    np.testing.assert_allclose([terms.mean[0, 0], terms.covariance[0, 0]], [3, 3], rtol=1e-14)


def test_factor_reproduces_the_covariance_with_its_rank():
    _, cov = gaussian(30, 11, 0)
    factor = symmetric_factor(cov)
    assert factor.shape == (30, 10)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-12)


def test_messages_name_the_set():
    mean, cov = gaussian(4, 20, 0)
    with pytest.raises(InputError, match="downstream set 0 has mean \\(3,\\)"):
        frechet_distance(mean, cov, mean[:3], cov[:3, :3])
    with pytest.raises(InputError, match="upstream set 1 has non-finite"):
        frechet_distances([mean, mean], [cov, cov * np.nan], [mean], [cov])
    with pytest.raises(InputError, match="2 means but 1 covariances"):
        frechet_distances([mean, mean], [cov], [mean], [cov])

"""MMD and energy distance against explicit double loops, closed forms and null behaviour."""

import numpy as np
import pytest

from jaxatoms.csi import distances
from jaxatoms.csi.distances import energy_distance, median_bandwidth, mmd_linear, mmd_unbiased
from jaxatoms.types import InputError


def cloud(n, shift=0.0, seed=0, d=5):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def norms(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


@pytest.mark.parametrize("chunk", [2**23, 64])
def test_full_estimators_equal_double_sums(chunk, monkeypatch):
    monkeypatch.setattr(distances, "CHUNK_ELEMENTS", chunk)
    x, y, s2 = cloud(30, 1000.0), cloud(41, 1000.5, seed=1), 3.0
    off_x, off_y = ~np.eye(30, dtype=bool), ~np.eye(41, dtype=bool)
    energy = 2 * norms(x, y).mean() - norms(x, x)[off_x].mean() - norms(y, y)[off_y].mean()
    np.testing.assert_allclose(energy_distance(x, y), energy, rtol=1e-9)
    k = [np.exp(-(norms(*p) ** 2) / (2 * s2)) for p in ((x, x), (y, y), (x, y))]
    mmd = k[0][off_x].mean() + k[1][off_y].mean() - 2 * k[2].mean()
    np.testing.assert_allclose(mmd_unbiased(x, y, s2), mmd, rtol=1e-9)


def test_bandwidth_is_the_median_squared_distance():
    x, y = cloud(20), cloud(30, seed=1)
    pooled = np.concatenate([x, y])
    expected = np.median(norms(pooled, pooled)[np.triu_indices(50, 1)] ** 2)
    np.testing.assert_allclose(median_bandwidth(x, y), expected, rtol=1e-10)
    assert 0.8 < median_bandwidth(x, y, n_point=20) / expected < 1.3


def test_linear_estimate_agrees_with_the_closed_form_for_gaussians():
    d, s2, gap = 5, 4.0, 0.7
    x, y = cloud(100_000, d=d), cloud(100_000, gap, seed=1, d=d)
    factor = (s2 / (s2 + 2)) ** (d / 2)
    expected = 2 * factor * (1 - np.exp(-d * gap**2 / (2 * (s2 + 2))))
    got = mmd_linear(x, y, s2)
    assert abs(got.value - expected) < 4 * got.error < 0.1 * expected


def test_equal_distributions_are_within_noise_of_zero():
    x, y = cloud(1000), cloud(1200, seed=1)
    got = mmd_linear(x, y)
    assert abs(got.value) < 4 * got.error
    assert abs(mmd_unbiased(x, y)) < 2e-3 and abs(energy_distance(x, y)) < 1e-2


def test_all_distances_grow_with_the_gap():
    sets = [cloud(600, gap, seed=i + 1) for i, gap in enumerate((0.5, 1.0, 2.0))]
    for measure in (
        energy_distance,
        lambda x, y: mmd_linear(x, y, 5.0).value,
        lambda x, y: mmd_unbiased(x, y, 5.0),
    ):
        values = [measure(cloud(600), y) for y in sets]
        assert values == sorted(values) and values[0] > 0


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="one width"):
        energy_distance(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(InputError, match="at least 2 rows"):
        mmd_linear(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(InputError, match="median distance"):
        mmd_linear(np.ones((3, 2)), np.ones((3, 2)))

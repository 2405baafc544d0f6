"""MMD and energy distance against explicit double loops, closed forms and null behaviour; the registry and its rows."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from jaxatoms.csi.distances import pairs, registry
from jaxatoms.csi.distances.distance import RowBlocks, resample_rows
from jaxatoms.csi.distances.energy import ENERGY, energy_distance
from jaxatoms.csi.distances.gaussian import COVARIANCE, FRECHET, MEAN
from jaxatoms.csi.distances.kernel import median_bandwidth, mmd_linear, mmd_unbiased
from jaxatoms.csi.distances.registry import DISTANCES, find_distance
from jaxatoms.csi.frechet import frechet_terms
from jaxatoms.types import InputError

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "csi.md"


def cloud(n, shift=0.0, seed=0, d=5):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def norms(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


@pytest.mark.parametrize("chunk", [2**23, 64])
def test_full_estimators_equal_double_sums(chunk, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK_ELEMENTS", chunk)
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


# --- the registry -------------------------------------------------------------------------------------


def of_rows(distance, x, y):
    """The value for two sets of rows, whatever the distance needs."""
    if distance.needs == "rows":
        return distance.function(x, y)
    return distance.function(*(part for rows in (x, y) for part in (rows.mean(0), np.cov(rows, rowvar=False))))


def test_an_unknown_name_is_refused_with_the_nearest():
    assert find_distance("energy") is ENERGY
    with pytest.raises(InputError, match="^unknown distance 'enrgy'; did you mean 'energy'. use one of frechet, .*$"):
        find_distance("enrgy")


def test_a_name_and_a_title_are_taken_once_only(monkeypatch):
    monkeypatch.setattr(registry, "DISTANCES", dict(DISTANCES))
    for taken in (dataclasses.replace(ENERGY, title="Other"), dataclasses.replace(ENERGY, name="other")):
        with pytest.raises(ValueError, match="of the distance energy"):
            registry.register(taken)
    registry.register(dataclasses.replace(ENERGY, name="other", title="Other"))
    assert find_distance("other").title == "Other" and "other" not in DISTANCES


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))
def test_every_distance_is_symmetric_and_nearly_zero_for_equal_distributions(distance):
    x, same, other = cloud(600), cloud(700, seed=1), cloud(700, 1.0, seed=2)
    far, back = of_rows(distance, x, other), of_rows(distance, other, x)
    noise = 6 * mmd_linear(x, other).error if distance.name == "mmd_linear" else 1e-7  # which pairs rows at random
    assert far == pytest.approx(back, abs=noise)
    if distance is COVARIANCE:  # which a shift does not change
        far = of_rows(distance, x, 2 * other)
    assert abs(of_rows(distance, x, same)) < 0.2 * far and abs(of_rows(distance, x, x)) < 0.1 * far
    if not distance.signed:
        assert of_rows(distance, x, x) == 0


def test_the_parts_add_up_to_the_index():
    rows = cloud(50), 2 * cloud(60, 0.3, seed=1)
    arguments = [part for x in rows for part in (x.mean(0), np.cov(x, rowvar=False))]
    terms = frechet_terms(*([part] for part in arguments))
    assert MEAN.function(*arguments) == pytest.approx(terms.mean[0, 0], rel=1e-12)
    assert COVARIANCE.function(*arguments) == terms.covariance[0, 0]
    assert FRECHET.function(*arguments) == terms.mean[0, 0] + terms.covariance[0, 0]


@pytest.mark.parametrize("name", ["mmd", "mmd_linear", "energy"])
def test_resampled_values_are_those_of_the_chosen_rows(name):
    distance, rng = DISTANCES[name], np.random.default_rng(0)
    x, y = (RowBlocks(cloud(90, s, seed=s), rng.integers(0, 6, 90), 6) for s in (0, 1))
    chosen_x, chosen_y = (rng.permuted(np.tile(np.arange(6) < 3, (5, 1)), axis=1) for _ in range(2))
    s2 = median_bandwidth(x.rows, y.rows)  # held fixed
    function = {"mmd": lambda a, b: mmd_unbiased(a, b, s2), "mmd_linear": lambda a, b: mmd_linear(a, b, s2).value}
    expected = resample_rows(function.get(name, energy_distance), x, y, chosen_x, chosen_y)
    np.testing.assert_allclose(distance.resample(x, y, chosen_x, chosen_y), expected, rtol=1e-9)
    everything = np.ones((1, 6), bool)
    assert distance.resample(x, y, everything, everything) == pytest.approx(distance.function(x.rows, y.rows), rel=1e-9)


def test_the_guide_has_a_row_for_every_distance():
    row = r"^\| `(\w+)`[^|]*\| ([^|]+) \| .* \| (moments|rows)([^|]*) \| ([a-z, ]+) \|"
    table = re.findall(row, GUIDE.read_text(), re.M)
    assert [(name, title, needs) for name, title, needs, *_ in table] == [
        (d.name, d.title, d.needs) for d in DISTANCES.values()
    ]
    for name, _, _, most, estimates in table:
        limit = DISTANCES[name].max_rows
        assert most == ("" if limit is None else f", at most {limit:,} a set")
        assert tuple(estimates.split(", ")) == DISTANCES[name].estimates

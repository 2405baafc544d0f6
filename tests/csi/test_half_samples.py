"""Intervals from halves of the structures: coverage for correlated rows, whole structures, bounded numbers of rows."""

import dataclasses

import numpy as np
import pytest

from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.distances.energy import ENERGY
from jaxatoms.csi.half_samples import half_sample_interval, row_blocks
from jaxatoms.types import InputError

GAP = Distance(
    name="gap",
    title="Gap",
    description="Squared distance of the means.",
    needs="rows",
    function=lambda x, y: float(np.sum((x.mean(0) - y.mean(0)) ** 2)),
)


def atoms(n_structure, shift=0.0, d=4, seed=0):
    """Six atoms a structure, correlated within it: covariance of structure means (0.25 + 1 / 6) I."""
    rng = np.random.default_rng(seed)
    structure = np.repeat(np.arange(n_structure), 6)
    noise = rng.standard_normal((len(structure), d))
    return 0.5 * rng.standard_normal((n_structure, d))[structure] + noise + shift, structure


def test_blocks_hold_whole_structures_and_all_rows_in_their_order():
    rows, structure = atoms(103)
    mixed = np.random.default_rng(0).permutation(len(rows))
    blocks = row_blocks(rows[mixed], structure[mixed], 10)
    np.testing.assert_array_equal(blocks.rows, rows[mixed])
    assert set(np.bincount(blocks.block) / 6) == {10.0, 11.0}
    assert all(len(set(blocks.block[structure[mixed] == s])) == 1 for s in range(103))


def test_of_a_larger_set_whole_structures_are_drawn():
    rows, structure = atoms(100)
    blocks = row_blocks(rows, structure, 32, max_rows=100)
    kept = {tuple(row) for row in blocks.rows}
    assert len(blocks.rows) == 96 and blocks.n_blocks == 16  # sixteen structures of six rows
    assert all(sum(tuple(row) in kept for row in rows[structure == s]) in (0, 6) for s in range(100))
    assert not np.array_equal(blocks.rows, row_blocks(rows, structure, 32, max_rows=100, seed=1).rows)
    assert row_blocks(rows, structure, max_rows=1).n_blocks == 4  # or there would be no interval
    with pytest.raises(InputError, match="3 structures have too few halves"):
        row_blocks(*atoms(3))


def _intervals(distance, shift, n_trial, n_structure=(40, 45)):
    for trial in range(n_trial):
        sides = [row_blocks(*atoms(n, s, seed=2 * trial + k), 21 - k, seed=trial)
                 for k, (n, s) in enumerate(zip(n_structure, (0.0, shift), strict=True))]  # fmt: skip
        yield half_sample_interval(distance, *sides, n_resample=100, level=0.9, seed=trial)


def test_the_interval_of_the_energy_distance_covers_the_truth_about_as_often_as_promised():
    true = ENERGY.function(*(atoms(5000, shift, seed=1000 + i)[0][::6] for i, shift in enumerate((0.0, 0.7))))
    found = list(_intervals(ENERGY, 0.7, 60))
    hits = sum(one.low <= true <= one.high for one in found)
    assert hits >= 45  # 54 expected, 45 is 3.9 sigma below
    values = np.array([one.value for one in found])
    spread = np.mean([one.samples.std() for one in found])
    assert 0.8 < spread / values.std() < 1.3  # 1.03 with 300 trials; 0.72 if rows were taken for independent


def test_the_excess_of_correlated_rows_is_mostly_taken_off():
    found = list(_intervals(ENERGY, 0.0, 60))  # the truth is 0; rows of one structure lie closer than others do
    plain, corrected = (np.mean([getattr(one, name) for one in found]) for name in ("value", "corrected"))
    assert plain > 0.006 and abs(corrected) < 0.6 * plain


def test_a_biased_distance_is_corrected_by_about_its_excess_and_cut_at_zero():
    found = list(_intervals(GAP, 0.5, 60))
    true, excess = 4 * 0.5**2, 4 * (0.25 + 1 / 6) * (1 / 40 + 1 / 45)
    assert np.mean([one.value for one in found]) - true == pytest.approx(excess, rel=0.9)
    assert np.mean([one.bias for one in found]) == pytest.approx(excess, rel=0.5)
    assert sum(one.low <= true <= one.high for one in found) >= 45
    assert min(one.low for one in _intervals(GAP, 0.0, 20)) == 0
    signed = dataclasses.replace(GAP, signed=True)
    assert min(one.low for one in _intervals(signed, 0.0, 20)) < 0


def test_a_task_has_the_same_halves_beside_every_set():
    seen = []

    def resample(x, y, chosen_x, chosen_y):
        seen.append((chosen_x, chosen_y))
        return np.zeros(len(chosen_x))

    noting = dataclasses.replace(ENERGY, resample=resample)
    sets = [row_blocks(*atoms(n), n_blocks) for n, n_blocks in ((30, 8), (40, 13), (50, 20))]
    for upstream in sets[:2]:
        half_sample_interval(noting, upstream, sets[2], 10)
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    for chosen in (*seen[0], *seen[1]):
        assert chosen[0].all() and set(chosen[1:].sum(1)) <= {chosen.shape[1] // 2, (chosen.shape[1] + 1) // 2}

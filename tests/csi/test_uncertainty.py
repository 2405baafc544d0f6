"""Bootstrap, extrapolation and effective rank against direct computation and simulated coverage."""

import tracemalloc

import numpy as np
import pytest

from jaxatoms.csi.frechet import frechet_distance
from jaxatoms.csi.moments import Moments, covariance, empty_moments, merge_parts, moments_of_rows
from jaxatoms.csi.uncertainty import (
    block_moments,
    bootstrap_interval,
    effective_rank,
    extrapolate,
    weighted_merges,
)
from jaxatoms.types import InputError


def atoms(n_structure, shift=0.0, d=4, seed=0):
    """Atoms correlated within structures: true covariance (1 + 0.25) I."""
    rng = np.random.default_rng(seed)
    structure = np.repeat(np.arange(n_structure), 6)
    x = (
        0.5 * rng.standard_normal((n_structure, d))[structure]
        + rng.standard_normal((len(structure), d))
        + shift
    )
    return x.astype(np.float32), structure


def test_blocks_hold_whole_structures_and_merge_to_everything():
    x, structure = atoms(103, shift=30.0)
    blocks = block_moments(x, structure, 10)
    assert set(np.asarray(blocks.count) / 6) == {10.0, 11.0}
    whole = merge_parts(blocks)
    np.testing.assert_allclose(covariance(whole), np.cov(x.astype(float), rowvar=False), rtol=1e-10)


def test_weighted_merges_equal_repeated_rows():
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((n, 3)) * 0.1 + 1e4 for n in (5, 7, 11)]
    blocks = Moments(*map(np.stack, zip(*map(moments_of_rows, pieces), strict=True)))
    weights = np.array([[1, 1, 1], [2, 0, 3]])
    merged = weighted_merges(blocks, weights)
    for i, w in enumerate(weights):
        rows = np.concatenate([np.tile(p, (k, 1)) for p, k in zip(pieces, w, strict=True)])
        np.testing.assert_allclose(merged.mean[i], rows.mean(0), rtol=1e-14)
        np.testing.assert_allclose(covariance(merged)[i], np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-12)


def _merged_in_full(b, weights):
    """`weighted_merges` with every block's second moment about a common origin written out."""
    n = weights * b.count
    total, centre = n.sum(axis=1), b.mean.mean(axis=0)
    offset = b.mean - centre
    shift = (n @ offset) / total[:, None]
    second = b.scatter + b.count[:, None, None] * offset[:, :, None] * offset[:, None, :]
    scatter = np.tensordot(weights, second, 1) - total[:, None, None] * shift[:, :, None] * shift[:, None, :]
    return Moments(total, centre + shift, scatter)


@pytest.mark.parametrize("common", [0.0, 1e4])
def test_weighted_merges_equal_the_formula_written_out_and_need_no_second_set_of_blocks(common):
    d, n_block = 64, 32
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((200, d)) + rng.standard_normal(d) + common for _ in range(n_block)]
    blocks = Moments(*map(np.stack, zip(*map(moments_of_rows, pieces), strict=True)))
    weights = rng.multinomial(n_block, np.full(n_block, 1 / n_block), 5).astype(float)
    expected = _merged_in_full(blocks, weights)
    for found, other in zip(weighted_merges(blocks, weights), expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-10, atol=1e-10 * np.abs(other).max())
    tracemalloc.start()
    weighted_merges(blocks, weights[:1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < blocks.scatter.nbytes / 4


def test_interval_covers_the_truth_about_as_often_as_promised():
    true = 4 * 0.5**2
    hits, biased = 0, []
    for trial in range(60):
        blocks = [block_moments(*atoms(120, s, seed=2 * trial + k), 30) for k, s in enumerate((0, 0.5))]
        got = bootstrap_interval(*blocks, n_resample=100, level=0.9, seed=trial)
        hits += got.low <= true <= got.high
        biased.append((got.value - true, got.bias))
    assert hits >= 45  # 54 expected, 45 is 3.9 sigma below
    excess, estimated = np.mean(biased, axis=0)
    assert estimated > 0 and 0.3 < estimated / excess < 3


def test_basic_and_percentile_mirror_each_other():
    blocks = block_moments(*atoms(60), 20), block_moments(*atoms(60, 1.0, seed=1), 20)
    basic, percentile = (bootstrap_interval(*blocks, n_resample=50, kind=k) for k in ("basic", "percentile"))
    np.testing.assert_allclose(2 * basic.value - basic.high, percentile.low, rtol=1e-12)
    np.testing.assert_array_equal(basic.samples, percentile.samples)


def test_extrapolation_removes_most_of_the_small_sample_excess():
    d = 12
    pairs = [(atoms(100, d=d, seed=2 * i), atoms(100, d=d, seed=2 * i + 1)) for i in range(8)]
    blocks = [[block_moments(*side, 20) for side in pair] for pair in pairs]
    plain = np.mean(
        [
            frechet_distance(*(v for b in pair for v in (merge_parts(b).mean, covariance(merge_parts(b)))))
            for pair in blocks
        ]
    )
    lines = [extrapolate(*pair, smallest=0.4) for pair in blocks]
    assert plain > 0.1  # truth is 0
    assert abs(np.mean([line.value for line in lines])) < 0.25 * plain
    np.testing.assert_allclose(np.mean([line.slope for line in lines]), plain, rtol=0.35)


def test_effective_rank_of_equal_variances_is_their_number():
    scatter = np.diag([3.0, 3.0, 3.0, 0.0])
    one = Moments(np.array(10.0), np.zeros(4), scatter)
    np.testing.assert_allclose(effective_rank(one), 3.0, rtol=1e-12)
    scaled = one._replace(scatter=np.diag([1.0, 100.0, 1e4, 0.0]))
    np.testing.assert_allclose(effective_rank(scaled, standardise=True), 3.0, rtol=1e-12)
    assert effective_rank(scaled) < 1.2
    stacked = Moments(*(np.stack([a, b]) for a, b in zip(one, scaled, strict=True)))
    np.testing.assert_allclose(effective_rank(stacked), [3.0, effective_rank(scaled)], rtol=1e-12)


def test_bad_requests_are_refused():
    x, structure = atoms(5)
    with pytest.raises(InputError, match="5 structures cannot fill 6 blocks"):
        block_moments(x, structure, 6)
    blocks = block_moments(x, structure, 3)
    with pytest.raises(InputError, match="unknown interval"):
        bootstrap_interval(blocks, blocks, kind="normal")
    with pytest.raises(InputError, match="at least 4 blocks"):
        extrapolate(blocks, blocks)
    with pytest.raises(InputError, match="variances are zero"):
        effective_rank(empty_moments(3))

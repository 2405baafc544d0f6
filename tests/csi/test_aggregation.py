"""Aggregations against a plain loop."""

import numpy as np
import pytest

from jaxatoms.csi.aggregation import aggregate, segments
from jaxatoms.types import InputError


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_each_structure_gives_one_row_equal_to_a_loop(how, ordered):
    rng = np.random.default_rng(0)
    structure = rng.choice([3, 7, 8, 20, -1], 200)
    structure = np.sort(structure) if ordered else structure
    x = rng.standard_normal((200, 6)).astype(np.float32)
    rows, ids = aggregate(x, structure, how)
    assert ids.tolist() == [-1, 3, 7, 8, 20]
    loop = [getattr(np, how)(x[structure == i].astype(np.float64), axis=0) for i in ids]
    np.testing.assert_allclose(rows, loop, rtol=1e-12, atol=1e-12)


def test_flat_returns_the_rows_themselves():
    x, structure = np.ones((3, 2)), np.array([0, 1, 0])
    rows, ids = aggregate(x, structure, "flat")
    assert rows is x and ids is structure


def test_mean_accumulates_in_float64():
    x = np.full((300_000, 1), 1.1, np.float32)
    rows, _ = aggregate(x, np.zeros(300_000, int), "mean")
    np.testing.assert_allclose(rows, np.float64(np.float32(1.1)), rtol=1e-12)


def test_segments_of_sorted_ids_need_no_copy():
    order, starts, ids = segments(np.array([2, 2, 5]))
    assert order is None and starts.tolist() == [0, 2] and ids.tolist() == [2, 5]


def test_unknown_aggregation_suggests_and_lengths_are_checked():
    with pytest.raises(InputError, match="did you mean 'mean'"):
        aggregate(np.ones((2, 2)), np.zeros(2, int), "meen")
    with pytest.raises(InputError, match="2 feature rows but 3 structure ids"):
        aggregate(np.ones((2, 2)), np.zeros(3, int), "mean")

"""The draw of N upstream structures, and `--n` as typed."""

import numpy as np
import pytest
from fixtures import native

from jaxatoms.data.subset import draw_subset, parse_count
from jaxatoms.types import InputError


@pytest.mark.parametrize("seed", [0, 7])
def test_draw_equals_the_reference(seed):
    expected = np.random.RandomState(seed).choice(range(1000), 300, replace=False)
    np.testing.assert_array_equal(draw_subset(1000, 300, seed), expected)


def test_the_draw_is_frozen():
    # From numpy's legacy stream, which never changes: a guard against another generator slipping in.
    np.testing.assert_array_equal(draw_subset(10, 4), [2, 8, 4, 9])


def test_all_keeps_the_order():
    np.testing.assert_array_equal(draw_subset(5, "all"), np.arange(5))


def test_more_than_available_names_both_numbers_and_the_remedy():
    with pytest.raises(InputError) as error:
        draw_subset(100, 2_000_000)
    assert native.is_one_line_about(error, "2000000", "100", "--n all")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2e6", 2_000_000),
        ("1.5e3", 1500),
        ("12", 12),
        (7, 7),
        ("1e23", 10**23),
        ("all", "all"),
        (" ALL ", "all"),
        ("2E6", 2_000_000),
        ("3.0", 3),
    ],
)
def test_counts_are_exact(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["1.5", "0", "-3", "abc", "", "nan", "inf", "1e-3", "2e6.5", 1.5, "1_000"])
def test_other_counts_are_refused(text):
    with pytest.raises(InputError) as error:
        parse_count(text)
    assert native.is_one_line_about(error, f"'{text}'", "2e6 or all")

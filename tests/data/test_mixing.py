"""Shares of a mixed run: the paper's counts to the structure, names with commas, refusals."""

import pytest
from fixtures import native

from jaxatoms.data.mixing import mix_counts, split_names
from jaxatoms.types import InputError

FOUR = ["ani1x", "transition1x", "oc20", "oc22"]
AVAILABLE = [3_952_056, 9_000_000, 2_000_000, 8_225_293]


@pytest.mark.parametrize(
    ("n", "counts"),
    [
        (1_000_000, [81_255, 181_688, 574_550, 162_507]),
        (2_000_000, [162_509, 363_377, 1_149_100, 325_014]),
        (3_000_000, [243_762, 545_066, 1_723_650, 487_522]),
    ],
)
def test_temperature_counts_are_the_papers(n, counts):
    assert mix_counts(FOUR, AVAILABLE, n, "temperature") == counts
    order = [2, 0, 3, 1]  # the remainder goes to ANI-1x wherever it stands
    assert mix_counts([FOUR[i] for i in order], AVAILABLE, n, "temperature") == [counts[i] for i in order]


def test_balanced_and_ratio_counts_are_the_papers():
    assert mix_counts(FOUR, AVAILABLE, 2_000_000, "balanced") == [500_000] * 4
    assert mix_counts(["ani1x", "oc22"], AVAILABLE[:2], 3_000_000, "2:1") == [2_000_000, 1_000_000]


def test_natural_shares_are_those_of_the_data():
    assert mix_counts(["a", "b"], [300, 100], 40, "natural") == [30, 10]
    assert mix_counts(["a", "b", "c"], [1, 1, 1], 11, "natural") == [5, 3, 3]
    assert mix_counts(["a", "b"], [300, 100], "all", "natural") == ["all", "all"]


def test_a_single_data_set_is_not_mixed():
    assert mix_counts(["a"], [7], "all", "balanced") == ["all"]
    assert mix_counts(["a"], [7], 5, "2:1") == [5]


@pytest.mark.parametrize(
    ("n", "mix", "words"),
    [
        (10, "even", "unknown --mix 'even'"),
        (10, "1:2:3", "3 parts for 2 data sets"),
        ("all", "balanced", "needs a number"),
        (1, "balanced", "gives a no structure"),
        (10, "1:0", "gives b no structure"),
    ],
)
def test_impossible_mixes_are_refused(n, mix, words):
    with pytest.raises(InputError) as error:
        mix_counts(["a", "b"], [300, 100], n, mix)
    assert native.is_one_line_about(error, words)


def test_names_are_split_at_commas_that_are_not_theirs():
    assert split_names("ani1x, oc20@/a/b") == ["ani1x", "oc20@/a/b"]
    assert split_names("qm9:mu,alpha,gap@/a/b,qmof") == ["qm9:mu,alpha,gap@/a/b", "qmof"]
    assert split_names("matbench:phonons/0,matbench:dielectric/0") == ["matbench:phonons/0", "matbench:dielectric/0"]
    assert split_names("file:a.xyz#e,f,oc20") == ["file:a.xyz#e,f", "oc20"]
    assert split_names("file:a.xyz#e,oc20") == ["file:a.xyz#e", "oc20"]
    assert split_names("file:a.xyz#,f") == ["file:a.xyz#,f"]
    assert split_names("file:a.xyz#,,s") == ["file:a.xyz#,,s"]
    assert split_names("file:a.xyz#e,f,s,oc20") == ["file:a.xyz#e,f,s", "oc20"]
    assert split_names("file:a,v2.xyz#e,f,oc20") == ["file:a,v2.xyz#e,f", "oc20"]
    assert split_names("ani1x@/a,b.h5,file:c.xyz,d.xyz") == ["ani1x@/a,b.h5", "file:c.xyz,d.xyz"]
    assert split_names("file:a.xyz,file:b.xyz") == ["file:a.xyz", "file:b.xyz"]
    for bad in ("ani1x,,oc20", "ani1x,ani1x", ""):
        with pytest.raises(InputError):
            split_names(bad)

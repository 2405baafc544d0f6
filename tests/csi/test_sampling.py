"""Samplers against pandas and scikit-learn (docs/reference/csi.md, Strategies), index for index."""

import numpy as np
import pytest

from jaxatoms.csi.sampling import SAMPLERS, sample, sample_balanced, sample_difficulty, sample_random
from jaxatoms.types import InputError

pd = pytest.importorskip("pandas")
model_selection = pytest.importorskip("sklearn.model_selection")


def labels(n, n_class, seed=0):
    """Unordered formula-like labels with very unequal class sizes, singletons included."""
    rng = np.random.default_rng(seed)
    share = rng.pareto(0.8, n_class) + 0.01
    names = np.array([f"{'CHNO'[i % 4]}{i}" for i in range(n_class)])
    return np.concatenate([names, names[rng.choice(n_class, n - n_class, p=share / share.sum())]])[
        rng.permutation(n)
    ]


def per_class(frame, seed, count):
    """Index of `count(size)` = (k, replace) rows of each class, by pandas."""
    picked = [
        g.sample(n=count(len(g))[0], replace=count(len(g))[1], random_state=seed).index.tolist()
        for _, g in frame.groupby("label")
    ]
    return [i for part in picked for i in part]


def finish(chosen, seed):
    chosen = [int(i) for i in chosen]
    np.random.RandomState(seed).shuffle(chosen)
    return chosen


def balanced(frame, n, seed):
    def one_each(rows, need):
        extra = per_class(rows, seed, lambda size: (1, False))
        full = len(extra) >= need
        return np.random.RandomState(seed).choice(extra, size=need, replace=False).tolist() if full else extra

    t = n // frame.label.nunique()
    if t == 0:
        return finish(one_each(frame, n), seed)
    chosen = per_class(frame, seed, lambda size: (t, size < t))
    while len(chosen) < n:
        chosen += one_each(frame[~frame.index.isin(chosen)], n - len(chosen))
    return finish(chosen, seed)


def balanced_no_rep(frame, n, seed):
    t, chosen = n // frame.label.nunique(), []
    if t == 0:
        return balanced(frame, n, seed)
    while len(chosen) < n:
        k, rest = t, frame[~frame.index.isin(chosen)]
        extra, need = per_class(rest, seed, lambda size, k=k: (min(k, size), False)), n - len(chosen)
        if len(extra) > need:
            extra = np.random.RandomState(seed).choice(extra, size=need, replace=False).tolist()
        chosen, t = chosen + extra, 1
    return finish(chosen, seed)


def stratified(frame, n, seed):
    counts = frame.label.value_counts()
    rare = frame[frame.label.isin(counts[counts == 1].index)]
    common = frame.drop(rare.index)
    train, _ = model_selection.train_test_split(
        common, train_size=n - len(rare), stratify=common.label, random_state=seed
    )
    return pd.concat([train, rare]).index.tolist()


def uniform(frame, n, seed):
    first = frame.groupby("label").sample(n=1, random_state=seed).index.tolist()
    rest = frame[~frame.index.isin(first)]
    return finish(first + rest.sample(n=n - len(first), random_state=seed).index.tolist(), seed)


ORACLES = {
    "balanced": balanced,
    "balanced_no_rep": balanced_no_rep,
    "stratified": stratified,
    "uniform": uniform,
}


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("n", [120, 400, 901, 1500])
@pytest.mark.parametrize("strategy", sorted(ORACLES))
def test_indices_equal_the_reference(strategy, n, seed):
    classes = labels(2000, 90, seed)
    expected = ORACLES[strategy](pd.DataFrame({"label": classes}), n, seed)
    assert sample(strategy, classes, n, seed).tolist() == expected


@pytest.mark.parametrize("strategy", ["balanced", "balanced_no_rep"])
@pytest.mark.parametrize("n", [1, 50, 89, 90, 91, 180])
def test_few_samples_per_class_equal_the_reference(strategy, n):
    classes = labels(400, 90)
    assert sample(strategy, classes, n).tolist() == ORACLES[strategy](pd.DataFrame({"label": classes}), n, 0)


def test_random_equals_the_reference():
    expected = np.random.RandomState(3).choice(range(500), 80, replace=False).tolist()
    assert sample_random(500, 80, 3).tolist() == expected
    assert sorted(sample_random(30, 80).tolist()) == list(range(30))


def test_balanced_counts_are_equal_up_to_one_round_of_remainder():
    classes = labels(5000, 12)
    counts = np.unique(classes[sample_balanced(classes, 1000)], return_counts=True)[1]
    assert counts.min() == 83 and 1000 - counts.sum() == 0


def difficulty(loss, n, kind, seed):
    """The reference's selector, with pandas."""
    frame = pd.DataFrame({"loss": loss, "row": np.arange(len(loss))})
    ranked, total = frame.sort_values("loss").reset_index(drop=True), len(loss)
    middle = ranked.iloc[total // 3 : 2 * total // 3]
    if kind == "low":
        return finish(frame.nsmallest(n, "loss").row, seed)
    if kind == "high":
        return finish(frame.nlargest(n, "loss").row, seed)
    if kind == "mid":
        return finish(middle.sample(n=n, random_state=seed).row, seed)
    each = n // 3
    parts = [ranked.iloc[:each], middle.sample(n=each, random_state=seed), ranked.iloc[-each:]]
    if n > 3 * each:
        parts.append(ranked.drop(pd.concat(parts).index).sample(n=n - 3 * each, random_state=seed))
    return finish(pd.concat(parts).row, seed)


@pytest.mark.parametrize("n", [30, 100, 101])
@pytest.mark.parametrize("kind", ["low", "high", "mid", "mixed"])
def test_difficulty_equals_the_reference(kind, n):
    loss = np.random.default_rng(0).random(400)
    assert sample_difficulty(loss, n, kind, 5).tolist() == difficulty(loss, n, kind, 5)


def test_ties_in_losses_keep_dataset_order():
    assert sorted(sample_difficulty(np.zeros(10), 4, "low").tolist()) == [0, 1, 2, 3]
    assert sorted(sample_difficulty(np.zeros(10), 4, "high").tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", sorted(SAMPLERS))
def test_same_seed_gives_same_indices_and_other_seeds_do_not(strategy):
    classes = labels(600, 20)
    a, b, c = (sample(strategy, classes, 100, seed).tolist() for seed in (0, 0, 1))
    assert a == b != c and len(a) == 100


def test_large_tables_take_seconds():
    classes = np.char.add("C", np.random.default_rng(0).integers(0, 8000, 400_000).astype(str))
    assert len(sample_balanced(classes, 10_000)) == 10_000


def test_bad_requests_are_refused_in_one_line():
    classes = np.array(list("aabbcc"))
    cases = [
        (lambda: sample("balancd", classes, 2), "did you mean 'balanced'"),
        (lambda: sample("uniform", classes, 3), "n > number of classes 3"),
        (lambda: sample("uniform", classes, 7), "as many rows, got 6"),
        (lambda: sample("balanced_no_rep", classes, 7), "as many rows, got 6"),
        (lambda: sample("balanced", classes, 7), "ran out of rows at 6 of 7"),
        (lambda: sample("stratified", classes, 5), "each must be >= 3"),
        (lambda: sample("balanced", classes, 0), "at least 1, got 0"),
        (lambda: sample_difficulty(np.ones(9), 4, "mid"), "needs 4 of 3"),
        (lambda: sample_difficulty(np.ones(9), 4, "easy"), "unknown difficulty 'easy'"),
        (lambda: sample_difficulty(np.array([1, np.nan]), 1, "low"), "structure 1 is not finite"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)

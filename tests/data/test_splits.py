"""Splits: disjoint, complete, by group, seeded, saved with the data they belong to."""

import warnings

import numpy as np
import pytest
from fixtures import native

from jaxatoms.data.registry import DATASETS
from jaxatoms.data.splits import group_split, load_split, make_split, random_split, save_split
from jaxatoms.data.store import open_dataset, write_store
from jaxatoms.types import InputError, System


def store_of(tmp_path, numbers_and_groups):
    systems = (System(np.array(z, np.uint8), np.eye(3)[: len(z)] * 3, group=g) for z, g in numbers_and_groups)
    return write_store(systems, tmp_path / "s", {"path": "s"})


def test_group_split_is_disjoint_complete_and_tears_no_group():
    codes = np.random.RandomState(1).randint(0, 50, 5000)
    split = group_split(codes)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(5000))
    groups = [set(codes[part]) for part in split]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert 500 <= len(split.val) < 620
    assert 500 <= len(split.test) < 620


def test_the_seed_decides():
    codes = np.arange(1000) // 10
    assert all((a == b).all() for a, b in zip(group_split(codes, 3), group_split(codes, 3), strict=True))
    assert not np.array_equal(group_split(codes, 3).val, group_split(codes, 4).val)


def test_a_dominant_group_stays_in_train():
    codes = np.concatenate([np.zeros(1000, int), 1 + np.arange(60) // 10])
    for seed in range(10):
        split = group_split(codes, seed)
        assert (codes[split.train] == 0).sum() == 1000
        assert len(split.val) > 0
        assert len(split.test) > 0


def test_a_single_group_is_split_by_record():
    split = group_split(np.zeros(100, int))
    assert [len(part) for part in split] == [80, 10, 10]
    assert len(np.unique(np.concatenate(split))) == 100


def test_two_groups_leave_test_empty_with_a_warning():
    with pytest.warns(UserWarning, match="test is empty"):
        split = group_split(np.array([0, 0, 0, 1]))
    assert [len(part) for part in split] == [3, 1, 0]


def test_elements_of_held_out_records_occur_in_train(tmp_path):
    # Element i+1 occurs in group i and i+1 only, the last one once.
    store = store_of(tmp_path, [([i + 1, i + 2, 1], f"g{i}") for i in range(30)])
    for seed in range(20):
        split = make_split(store, seed=seed)
        seen = store.element_counts(split.train).any(axis=0)
        needed = store.element_counts(np.concatenate([split.val, split.test])).any(axis=0)
        assert len(split.val) > 0
        assert len(split.test) > 0
        assert seen[needed].all()


def test_official_split_is_honoured(tmp_path):
    path = native.write_transition1x(tmp_path / "t.h5")
    spec, store = open_dataset(f"transition1x@{path}", cache_dir=tmp_path)
    split = make_split(store, spec.split_rule)
    codes, names = store.groups
    for part, name in zip(split, split._fields, strict=True):
        assert len(part) == 12
        assert all(name in names[code] for code in codes[part])


def test_official_split_falls_back_to_groups(tmp_path):
    path = native.write_transition1x(tmp_path / "t.h5", tops=("data",))
    _, store = open_dataset(f"transition1x@{path}", cache_dir=tmp_path)
    assert [len(part) for part in make_split(store, DATASETS["transition1x"].split_rule)] == [4, 4, 4]


def test_a_group_in_two_official_splits_is_refused(tmp_path):
    path = native.write_transition1x(tmp_path / "t.h5", shared=True)
    _, store = open_dataset(f"transition1x@{path}", cache_dir=tmp_path)
    with pytest.raises(InputError) as error:
        make_split(store, "official")
    assert native.is_one_line_about(error, path, "CH4_rxn0000", "two official splits")


def test_random_split_is_the_reference_shuffle():
    order = np.arange(1300)
    np.random.RandomState(42).shuffle(order)
    split = random_split(1300, 1040, 130)
    np.testing.assert_array_equal(split.train, order[:1040])
    np.testing.assert_array_equal(split.val, order[1040:1170])
    np.testing.assert_array_equal(split.test, order[1170:])
    with pytest.raises(InputError, match="does not fit"):
        random_split(10, 9, 2)


def test_saved_splits_fit_their_store_only(tmp_path):
    store = store_of(tmp_path, [([1, 1], f"g{i}") for i in range(20)])
    save_split(tmp_path / "split.npz", make_split(store), store)
    for a, b in zip(load_split(tmp_path / "split.npz", store), make_split(store), strict=True):
        np.testing.assert_array_equal(a, b)
    other = store_of(tmp_path, [([1, 1], f"g{i}") for i in range(21)])
    both = f"{store.fingerprint[:12]}, but s now has {other.fingerprint[:12]}"
    for path, words in (
        (tmp_path / "split.npz", (both, "restore the data, or begin anew")),
        (tmp_path / "none.npz", ("not a readable split", "make the split again")),
    ):
        with pytest.raises(InputError) as error:
            load_split(path, other)
        assert native.is_one_line_about(error, path, *words)


def test_real_samples_split_without_overlap(real_data, tmp_path):
    for name in ("ani1x_made", "oc20_s2ef"):
        _, store = open_dataset(
            f"{'oc20' if 'oc20' in name else 'ani1x'}@{real_data(name)}", cache_dir=tmp_path
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            split = make_split(store)
        codes, _ = store.groups
        assert not set(codes[split.train]) & (set(codes[split.val]) | set(codes[split.test]))
        seen = store.element_counts(split.train).any(axis=0)
        assert seen[store.element_counts(np.arange(len(store))).any(axis=0)].all()

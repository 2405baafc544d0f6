"""A training set with its official validation set beside it: found, joined, refused."""

import pickle

import numpy as np
import pytest
from fixtures import native

from jaxatoms.data import mixture, tasks
from jaxatoms.data.joined import JoinedStore, open_upstream
from jaxatoms.data.store import open_dataset
from jaxatoms.data.task_split import task_split
from jaxatoms.types import InputError

OPTIONS = {"val_samples": 4, "data_root": None}


@pytest.fixture
def root(tmp_path):
    """Twelve training frames of eight systems in a folder named like OC20's; three other frames for validation."""
    native.write_oc20(tmp_path / "s2ef_train_2M", n_shard=4)
    return tmp_path


@pytest.mark.parametrize("name", ["s2ef_val_id", "val_id", "all/val_id"])
def test_the_whole_training_set_is_trained_and_the_set_beside_it_validates(root, name):
    native.add_oc20_validation(root, name)
    source = f"oc20@{root / 's2ef_train_2M'}"
    spec, store = open_upstream(source, cache_dir=root / "c")
    split = task_split(source, spec, store)
    assert [part.tolist() for part in split] == [list(range(12)), [12, 13, 14], []]


def test_all_of_the_training_set_can_be_asked_for(root):
    native.add_oc20_validation(root)
    name = f"oc20@{root / 's2ef_train_2M'}"
    data = tasks.prepare_task(name, 12, 0, cache_dir=root / "c", save_to=root / "run", **OPTIONS)
    assert sorted(data.train) == list(range(12)) and data.val.tolist() == [12, 13, 14]
    pair = mixture.prepare_mixture(
        f"{name},demo:organic", 24, "balanced", 0, cache_dir=root / "c", save_to=None, **OPTIONS
    )
    assert [len(d.train) for d in pair] == [12, 12]
    again = tasks.prepare_task(name, 12, 0, cache_dir=root / "c", saved=root / "run", **OPTIONS)
    assert again.train.tolist() == data.train.tolist() and again.val.tolist() == data.val.tolist()


def test_without_a_validation_set_the_run_is_refused_before_conversion_unless_told_how_to_split(root):
    name = f"oc20@{root / 's2ef_train_2M'}"
    with pytest.raises(InputError) as error:
        tasks.prepare_task(name, "all", 0, cache_dir=root / "c", **OPTIONS)
    assert native.is_one_line_about(error, "s2ef_train_2M", "s2ef_val_id", "--split group")
    assert not (root / "c").exists()
    with pytest.warns(UserWarning, match="reference energies"):
        data = tasks.prepare_task(name, "all", 0, cache_dir=root / "c", split_rule="group", **OPTIONS)
    assert len(data.train) < 12
    with pytest.warns(UserWarning, match="held out by group instead"):
        _, store = open_upstream(name, cache_dir=root / "c", must_validate=False)
    assert len(store) == 12


def test_a_validation_set_inside_the_training_set_is_refused(root):
    native.add_oc20_validation(root / "s2ef_train_2M", "val_id")
    with pytest.raises(InputError) as error:
        open_upstream(f"oc20@{root / 's2ef_train_2M'}", cache_dir=root / "c")
    assert native.is_one_line_about(error, "val_id", "name the folder of the training set alone")


def test_systems_in_both_are_said(root):
    native.add_oc20_validation(root, first=1)
    with pytest.warns(UserWarning, match="2 of its systems, such as random2"):
        open_upstream(f"oc20@{root / 's2ef_train_2M'}", cache_dir=root / "c")


def test_a_joined_store_reads_like_a_store(root):
    train = open_dataset(f"oc20@{root / 's2ef_train_2M'}", cache_dir=root / "c")[1]
    val = open_dataset(f"oc20@{native.add_oc20_validation(root)}", cache_dir=root / "c")[1]
    both = pickle.loads(pickle.dumps(JoinedStore(train, val)))
    assert len(both) == 15 and both.periodic and both.largest_element == 29
    assert both.fingerprint not in (train.fingerprint, val.fingerprint)
    assert both.fingerprint != JoinedStore(val, train).fingerprint
    assert both.extra_columns == ["fid", "official_split", "sid"]
    np.testing.assert_array_equal(both.column("sid")[12:], val.column("sid"))
    batch = both.take([14, 0, 1, 12])
    for index, (store, record) in enumerate([(val, 2), (train, 0), (train, 1), (val, 0)]):
        one = store.take([record])
        np.testing.assert_array_equal(batch.positions[6 * index : 6 * index + 6], one.positions)
        assert batch.energy[index] == one.energy[0] == both.energy[[14, 0, 1, 12][index]]
    assert both.element_counts([12, 3]).shape == (2, 121)
    assert np.flatnonzero(both.elements([12, 3])).tolist() == [6, 8, 29] and both.source == train.source
    assert len(both.take([]).n_node) == 0
    codes, names = both.groups
    assert codes.max() == len(names) - 1 and len(codes) == 15
    with pytest.raises(IndexError):
        both.take([15])
    with pytest.raises(InputError, match="has no 'y'"):
        both.column("y")

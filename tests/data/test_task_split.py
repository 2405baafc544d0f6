"""The one split of every command: published, the file's own, by group, by record; numbers are taken inside it."""

import warnings

import ase.build
import ase.io
import numpy as np
import pytest

from jaxatoms.data.downstream_task import open_downstream
from jaxatoms.data.registry import DATASETS
from jaxatoms.data.splits import Split, downstream_split, make_split
from jaxatoms.data.store import open_dataset, write_store
from jaxatoms.data.task_split import task_split
from jaxatoms.types import InputError, System

FILE = DATASETS["file"]


def _store(path, groups, n_node=5, columns=None):
    rng = np.random.default_rng(0)

    def systems():
        for i, (group, n) in enumerate(zip(groups, np.broadcast_to(n_node, len(groups)), strict=True)):
            positions, forces = rng.normal(size=(2, n, 3))
            yield System(np.full(n, 1, np.uint8), 3 * positions, energy=float(i), forces=forces, group=group)

    return write_store(systems(), path, {"path": "made"}, columns)


def test_near_copies_of_a_training_structure_are_never_tested(tmp_path):
    store = _store(tmp_path / "s", [f"g{i // 10}" for i in range(200)])
    codes, _ = store.groups
    for sizes in (None, (120, 10)):
        split = task_split("file:x", FILE, store, sizes=sizes)
        assert not set(codes[split.train]) & (set(codes[split.val]) | set(codes[split.test])) and len(split.test)
    assert [len(part) for part in split][:2] == [120, 10]


def test_a_file_that_names_no_groups_is_split_by_record_with_a_warning(tmp_path):
    store = _store(tmp_path / "s", [""] * 50)
    with pytest.warns(UserWarning, match="file:x names no groups"):
        split = task_split("file:x", FILE, store)
    assert sorted(np.concatenate(split)) == list(range(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_split("file:x", FILE, store, "record")


def test_the_files_own_split_comes_before_groups(tmp_path):
    parts = np.repeat([0, 1, 2], [12, 4, 4])
    store = _store(tmp_path / "s", [f"g{i}" for i in range(20)], columns=lambda: {"official_split": parts})
    for part, expected in zip(task_split("file:x", FILE, store), range(3), strict=True):
        np.testing.assert_array_equal(part, np.flatnonzero(parts == expected))
    assert not np.array_equal(task_split("file:x", FILE, store, "group").val, np.arange(12, 16))


def test_sizes_of_a_published_set_leave_its_test_fold_alone(tmp_path):
    store = _store(tmp_path / "s", [""] * 1265)
    seen = []
    for fold in range(5):
        name = f"matbench:phonons/{fold}"
        whole, small = downstream_split(name, store), task_split(name, DATASETS[name], store, sizes=(200, 50))
        np.testing.assert_array_equal(small.test, whole.test)
        np.testing.assert_array_equal(small.train, whole.train[:200])
        np.testing.assert_array_equal(small.val, whole.val[:50])
        seen.append(set(small.train))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_more_than_a_part_has_is_refused(tmp_path):
    store = _store(tmp_path / "s", [f"g{i // 10}" for i in range(200)])
    with pytest.raises(InputError, match="asked for 25 validation structures, but the validation part .* has 20"):
        task_split("file:x", FILE, store, sizes=(100, 25))


def test_a_split_of_ones_own_is_taken_whole(tmp_path):
    store = _store(tmp_path / "s", [""] * 10)
    own = Split(np.arange(6), np.array([6, 7]), np.array([9, 8]))
    np.savez(tmp_path / "own.npz", **own._asdict())
    for part, expected in zip(task_split("file:x", FILE, store, str(tmp_path / "own.npz")), own, strict=True):
        np.testing.assert_array_equal(part, expected)
    with pytest.raises(InputError, match="not a readable split file"):
        task_split("file:x", FILE, store, "grouped")


def test_single_atoms_are_for_training(tmp_path):
    n_node = np.where(np.arange(60) < 6, 1, 5)
    store = _store(tmp_path / "s", [f"g{i}" for i in range(60)], n_node=n_node)
    split = task_split("file:x", FILE, store)
    assert set(range(6)) <= set(split.train) and len(split.val) and len(split.test)
    assert sorted(np.concatenate(split)) == list(range(60))


def test_pretraining_and_fine_tuning_hold_out_the_same_structures(tmp_path):
    spec, store = open_dataset("demo:organic", cache_dir=tmp_path)
    _, split = open_downstream("demo:organic", cache_dir=str(tmp_path))
    for one, two in zip(split, make_split(store, spec.split_rule), strict=True):
        np.testing.assert_array_equal(one, two)


def _file(tmp_path, monkeypatch, structures):
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path / "cache"))
    ase.io.write(tmp_path / "own.extxyz", structures)
    name = f"file:{tmp_path / 'own.extxyz'}"
    return name, *open_dataset(name)


@pytest.mark.filterwarnings("ignore:.*names no groups")
def test_numbers_of_structures_do_not_count_isolated_atoms(tmp_path, monkeypatch):
    molecules = [ase.build.molecule("H2O") for _ in range(20)]
    name, spec, store = _file(tmp_path, monkeypatch, [*molecules, *map(ase.Atoms, ["H", "O"] * 5)])
    whole = task_split(name, spec, store)
    assert (store.n_node[np.concatenate([whole.val, whole.test])] > 1).all()
    n = int((store.n_node[whole.train] > 1).sum())
    split = task_split(name, spec, store, sizes=(n, len(whole.val)))
    assert len(split.train) == n and (store.n_node[split.train] > 1).all()
    with pytest.raises(InputError, match=f"asked for {n + 1} training structures"):
        task_split(name, spec, store, sizes=(n + 1, 1))


@pytest.mark.filterwarnings("ignore:.*names no groups")
def test_crystals_of_one_atom_are_structures(tmp_path, monkeypatch):
    name, spec, store = _file(tmp_path, monkeypatch, [ase.build.bulk("Cu", a=3.4 + 0.01 * i) for i in range(30)])
    split = task_split(name, spec, store)
    assert len(split.val) and len(split.test)

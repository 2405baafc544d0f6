"""The store: what goes in comes out; whole or not at all; memory does not grow; damage is found."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fixtures import native

import jaxatoms
from jaxatoms.data.readers import ani1x, ase_file, oc20
from jaxatoms.data.store import Store, open_dataset, write_store
from jaxatoms.types import InputError, System


def make_store(tmp_path, reader=oc20, source=None):
    source = source or native.write_oc20(tmp_path / "o")
    return list(reader.read(source)), write_store(reader.read(source), tmp_path / "store", {"path": "o"})


def test_take_returns_what_was_written_in_any_order(tmp_path):
    systems, store = make_store(tmp_path)
    indices = np.array([5, 0, 3, 3])
    batch = store.take(indices)
    chosen = [systems[i] for i in indices]
    np.testing.assert_array_equal(batch.n_node, [6, 6, 6, 6])
    for name in ("atomic_numbers", "tags", "fixed"):
        np.testing.assert_array_equal(
            getattr(batch, name), np.concatenate([getattr(s, name) for s in chosen])
        )
    for name in ("positions", "forces"):
        expected = np.concatenate([getattr(s, name) for s in chosen]).astype(np.float32)
        np.testing.assert_array_equal(getattr(batch, name), expected)
    np.testing.assert_array_equal(batch.energy, [s.energy for s in chosen])
    np.testing.assert_array_equal(batch.cell, np.array([s.cell for s in chosen], np.float32))
    assert batch.pbc.all()


def test_columns_have_the_stated_types(tmp_path):
    batch = make_store(tmp_path)[1].take([0])
    types = {name: values.dtype.name for name, values in batch._asdict().items()}
    assert types == {
        "n_node": "int32",
        "atomic_numbers": "uint8",
        "positions": "float32",
        "forces": "float32",
        "tags": "uint8",
        "fixed": "bool",
        "energy": "float64",
        "cell": "float32",
        "pbc": "bool",
    }


def test_structures_of_different_sizes_stay_apart(tmp_path):
    systems, store = make_store(tmp_path, ani1x, native.write_ani1x(tmp_path / "a.h5"))
    indices = np.random.RandomState(0).permutation(len(systems))
    batch = store.take(indices)
    numbers = np.split(batch.atomic_numbers, np.cumsum(batch.n_node)[:-1])
    assert all((n == systems[i].atomic_numbers).all() for n, i in zip(numbers, indices, strict=True))
    counts = store.element_counts(indices)
    assert counts.shape == (len(systems), 121)
    assert all(
        (c == np.bincount(systems[i].atomic_numbers, minlength=121)).all()
        for c, i in zip(counts, indices, strict=True)
    )


def test_molecules_get_tag_two_no_fixed_atoms_and_no_cell(tmp_path):
    batch = make_store(tmp_path, ani1x, native.write_ani1x(tmp_path / "a.h5"))[1].take([0])
    assert (batch.tags == 2).all()
    assert not batch.fixed.any()
    assert not batch.cell.any()


def test_missing_labels_stay_nan(tmp_path):
    _, store = make_store(tmp_path, ase_file, native.write_structures(tmp_path / "s.xyz", calc=None))
    batch = store.take([9])
    assert np.isnan(batch.energy).all()
    assert np.isnan(batch.forces).all()


def test_records_without_group_are_alone(tmp_path):
    _, store = make_store(tmp_path, ase_file, native.write_structures(tmp_path / "s.xyz"))
    codes, names = store.groups
    np.testing.assert_array_equal(codes, np.arange(10))
    assert names[3] == "#3"


def test_take_of_nothing_and_of_what_is_not_there(tmp_path):
    _, store = make_store(tmp_path)
    assert store.take(np.array([], int)).positions.shape == (0, 3)
    for index in (-1, 6):
        with pytest.raises(IndexError, match=r"0\.\.5"):
            store.take([index])


def test_manifest_counts(tmp_path):
    manifest = make_store(tmp_path)[1].manifest
    assert (manifest["n_record"], manifest["n_node"], manifest["max_n_node"], manifest["n_group"]) == (
        6,
        36,
        6,
        4,
    )
    assert manifest["elements"] == {"6": 6, "8": 6, "29": 24}


def test_a_broken_conversion_leaves_nothing(tmp_path):
    def breaks():
        yield from oc20.read(native.write_oc20(tmp_path / "o"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(breaks(), tmp_path / "cache" / "store", {})
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_broken_conversion_keeps_the_older_store(tmp_path):
    systems, _ = make_store(tmp_path)

    def breaks():
        yield from systems[:2]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_store(breaks(), tmp_path / "store", {})
    assert len(Store.open(tmp_path / "store")) == 6


def test_leftovers_of_killed_conversions_are_removed(tmp_path):
    dead, living = tmp_path / ".store.tmp-99999999-abc", tmp_path / f".store.tmp-{os.getpid()}-abc"
    dead.mkdir()
    living.mkdir()
    make_store(tmp_path)
    assert not dead.exists()
    assert living.exists()


def test_conversion_memory_does_not_grow_with_the_number_of_records(tmp_path):
    def peak(n):
        stream = (
            System(native.METHANE, np.zeros((5, 3)), forces=np.zeros((5, 3)), group=f"g{i % 7}")
            for i in range(n)
        )
        tracemalloc.start()
        write_store(stream, tmp_path / "s", {})
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small, large = peak(2_000), peak(20_000)
    # n_node [n] int32 and its float64-wide offsets are all that stays: under 30 bytes a record.
    assert large - small < 18_000 * 30


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        write_store(iter(()), tmp_path / "file" / "store", {})
    assert native.is_one_line_about(error, tmp_path / "file", "JAXATOMS_CACHE")


def test_no_systems_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no usable structure"):
        write_store(iter(()), tmp_path / "store", {"path": "x.h5"})


def test_damage_is_found_in_one_line(tmp_path):
    _, store = make_store(tmp_path)
    column, manifest = store.path / "positions.bin", store.path / "manifest.json"
    good, text = column.read_bytes(), manifest.read_text()
    wrong_version = json.dumps(json.loads(text) | {"format_version": 99})
    for damage in (
        lambda: column.write_bytes(good[:-4]),
        column.unlink,
        lambda: manifest.write_text(text[:100]),
        lambda: manifest.write_text("[]"),
        lambda: manifest.write_text(wrong_version),
        manifest.unlink,
        lambda: manifest.write_text(text.replace('"<f4"', '"<f8"')),
    ):
        damage()
        with pytest.raises(InputError) as error:
            Store.open(store.path)
        assert native.is_one_line_about(error, store.path, "convert")
        column.write_bytes(good)
        manifest.write_text(text)


def test_verify_finds_a_flipped_bit(tmp_path):
    _, store = make_store(tmp_path)
    store.verify()
    data = bytearray((store.path / "forces.bin").read_bytes())
    data[3] ^= 1
    (store.path / "forces.bin").write_bytes(data)
    with pytest.raises(InputError, match="forces"):
        Store.open(store.path).verify()


def test_fingerprint_depends_on_content_only(tmp_path):
    systems, store = make_store(tmp_path)
    again = write_store(iter(systems), tmp_path / "other", {"path": "elsewhere"})
    changed = write_store(iter([*systems[:-1], systems[0]]), tmp_path / "third", {})
    assert store.fingerprint == again.fingerprint != changed.fingerprint


def test_store_travels_to_workers_by_path(tmp_path):
    _, store = make_store(tmp_path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).energy, store.energy)
    assert len(pickle.dumps(store)) < 1000


def test_a_column_may_have_any_name(tmp_path):
    systems = [System(np.array([1], np.uint8), np.zeros((1, 3)), extra={"target_a/b": 1.5})]
    store = write_store(iter(systems), tmp_path / "s", {})
    assert Store.open(store.path).column("target_a/b")[0] == 1.5


def test_the_fingerprint_of_a_frame_file_covers_its_ids(tmp_path):
    frames = native.write_oc20(tmp_path / "o", compress=False) / "0.extxyz"
    groups = open_dataset(f"oc20@{frames}", cache_dir=tmp_path / "c")[1].groups[1]
    ids = frames.with_suffix(".txt")
    ids.write_text(ids.read_text().replace("random0", "random9"))
    assert open_dataset(f"oc20@{frames}", cache_dir=tmp_path / "c")[1].groups[1] != groups


def test_open_dataset_converts_once_and_again_when_the_source_changes(tmp_path, monkeypatch):
    path, calls = native.write_ani1x(tmp_path / "a.h5"), []
    read = ani1x.read
    monkeypatch.setattr(ani1x, "read", lambda source: calls.append(source) or read(source))
    name = f"ani1x@{path}"
    spec, store = open_dataset(name, cache_dir=tmp_path / "c")
    open_dataset(name, cache_dir=tmp_path / "c")
    assert len(calls) == 1
    native.write_ani1x(path, n_frame=7)
    assert len(open_dataset(name, cache_dir=tmp_path / "c")[1]) == len(store) + 4
    assert len(calls) == 2
    assert spec.cutoff == 8.0


def test_open_dataset_mends_a_damaged_store(tmp_path):
    name = f"ani1x@{native.write_ani1x(tmp_path / 'a.h5')}"
    _, store = open_dataset(name, cache_dir=tmp_path / "c")
    (store.path / "energy.bin").write_bytes(b"")
    assert len(open_dataset(name, cache_dir=tmp_path / "c")[1]) == len(store)


def test_open_dataset_takes_folders_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "data" / "ani1x").mkdir(parents=True)
    native.write_ani1x(tmp_path / "data" / "ani1x" / "ani1x-release.h5")
    monkeypatch.setenv("JAXATOMS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path / "cache"))
    _, store = open_dataset("ani1x")
    assert store.path.parent == tmp_path / "cache"


def test_file_data_sets_decide_periodicity_from_their_records(tmp_path):
    import ase.io

    ase.io.write(tmp_path / "p.traj", [native.slab()])
    periodic, _ = open_dataset(f"file:{tmp_path / 'p.traj'}", cache_dir=tmp_path)
    molecule, _ = open_dataset(f"file:{native.write_structures(tmp_path / 's.xyz')}", cache_dir=tmp_path)
    assert (periodic.periodic, periodic.cutoff) == (True, 12.0)
    assert (molecule.periodic, molecule.cutoff) == (False, 8.0)


def test_targets_become_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxatoms.data.registry._DEMO_FOLDER", tmp_path)
    native.write_demo(tmp_path / "gap.h5", target=np.arange(4.0))
    _, store = open_dataset("demo:gap", cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(store.column("target_gap"), np.arange(4.0))
    with pytest.raises(InputError, match="target_gap"):
        store.column("target_none")


def test_data_rooms_do_not_import_jax():
    code = "import sys, jaxatoms.data.references, jaxatoms.data.splits; sys.exit('jax' in sys.modules)"
    root = Path(jaxatoms.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path, full_disk, capfd):
    atoms = System(np.full(500, 6, np.uint8), np.random.default_rng(0).normal(size=(500, 3)), forces=np.ones((500, 3)))
    with full_disk(), pytest.raises(InputError) as error:
        write_store(iter([atoms] * 300), tmp_path / "cache" / "store", {})
    assert native.is_one_line_about(error, tmp_path / "cache" / "store", "File too large", "free disk space")
    assert list((tmp_path / "cache").iterdir()) == []
    assert capfd.readouterr().err == ""

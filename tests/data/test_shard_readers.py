"""Readers of LMDB shards: OC20, OC22 (old and new records) and OMat24; faulty shards refused in one line."""

import pickle

import numpy as np
import pytest
from fixtures import native, native_downstream, native_shards

from jaxatoms.data.readers import oc20, oc22, omat24
from jaxatoms.types import InputError


def refused(read, path, *parts):
    with pytest.raises(InputError) as error:
        list(read(path))
    return native.is_one_line_about(error, path, *parts)


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(("reader", "prefix"), [(oc20, "random"), (oc22, "")])
def test_open_catalyst_shards_keep_everything(tmp_path, form, reader, prefix):
    systems = list(reader.read(native_shards.write_oc_shards(tmp_path / "o", form=form)))
    first, atoms = systems[0], native.slab(0)
    assert [s.group for s in systems] == [f"{prefix}{n}" for n in (100, 100, 101, 105, 105, 106)]
    assert [s.extra["fid"] for s in systems] == [0, 1, 2, 10, 11, 12]
    assert first.energy == -100.0
    assert first.pbc == (True, True, True)
    np.testing.assert_array_equal(first.atomic_numbers, atoms.numbers)
    np.testing.assert_array_equal(first.tags, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(first.fixed, [True, True, False, False, False, False])
    np.testing.assert_allclose(first.forces, atoms.calc.results["forces"], rtol=1e-6)
    np.testing.assert_allclose(first.cell, atoms.cell.array, rtol=1e-6)


def test_names_of_either_generation_are_understood(tmp_path):
    forces = native_shards.Tensor(np.ones((6, 3), "f4"))
    new = native_shards.write_oc_shards(tmp_path / "n", y=None, force=None, energy=-1.5, forces=forces)
    assert list(oc22.read(new))[-1].energy == -1.5
    relaxed = native_shards.write_oc_shards(tmp_path / "r", y=None, y_relaxed=-2.5)
    assert list(oc22.read(relaxed))[-1].energy == -2.5


def test_faulty_records_are_named(tmp_path):
    write = native_shards.write_oc_shards
    assert refused(oc22.read, write(tmp_path / "a", force=None), "data.0001.lmdb: record 2", "lacks 'force'")
    assert refused(oc22.read, write(tmp_path / "b", y=float("nan")), "record 2", "energy", "NaN")
    nan = native_shards.Tensor(np.full((6, 3), np.nan, "f4"))
    assert refused(oc22.read, write(tmp_path / "c", force=nan), "record 2", "forces", "NaN")
    short = native_shards.Tensor(np.zeros((5, 3), "f4"))
    assert refused(oc22.read, write(tmp_path / "d", force=short), "shape (5, 3), expected (6, 3)")
    assert refused(oc22.read, write(tmp_path / "e", cell=native_shards.Tensor(np.zeros((3, 3), "f4"))), "zero volume")
    assert refused(oc22.read, write(tmp_path / "f", tags=native_shards.Tensor(np.full(6, 7))), "tag 7")


def test_an_id_may_be_a_tensor_of_one_element(tmp_path):
    folder = native_shards.write_oc_shards(tmp_path / "o", sid=native_shards.Tensor(np.array([9])))
    assert list(oc22.read(folder))[-1].extra["sid"] == 9
    pair = native_shards.write_oc_shards(tmp_path / "p", sid=native_shards.Tensor(np.array([9, 8])))
    assert refused(oc22.read, pair, "data.0001.lmdb: record 2", "'sid'", "no whole number")


@pytest.mark.parametrize("reader", [oc20, oc22])
def test_shards_may_be_folders_and_hidden_files_are_passed_over(tmp_path, reader):
    folder = native_shards.write_oc_shards(tmp_path / "o")
    whole = [s.positions.tolist() for s in reader.read(folder)]
    for shard in sorted(folder.glob("*.lmdb")):
        data = shard.read_bytes()
        shard.unlink()
        shard.mkdir()
        (shard / "data.mdb").write_bytes(data)
        (folder / f"._{shard.name}").write_bytes(b"finder")
    assert [s.positions.tolist() for s in reader.read(folder)] == whole
    assert len(list(reader.read(folder / "data.0000.lmdb"))) == 3


class _Evil:
    def __reduce__(self):
        return print, ("never",)


def test_a_record_that_asks_for_more_is_refused_with_its_key(tmp_path):
    items = [(0, native_shards.oc_record()), (1, pickle.dumps(_Evil())), ("length", pickle.dumps(2))]
    native_shards.write_lmdb(tmp_path / "data.0000.lmdb", items)
    assert refused(oc22.read, tmp_path, "data.0000.lmdb: record 1", "asks for builtins.print")


def test_damaged_shards_are_refused(tmp_path):
    path = native_shards.write_oc_shards(tmp_path / "a", n_shard=1) / "data.0000.lmdb"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(oc22.read, path, "cut", "download it again")
    path.write_bytes(b"no database" * 1000)
    assert refused(oc22.read, path, "not a readable LMDB file")
    items = [(0, native_shards.oc_record()), ("length", pickle.dumps(3))]
    gap = native_shards.write_lmdb(tmp_path / "b" / "data.0000.lmdb", items)
    assert refused(oc22.read, gap, "record 1", "is absent")
    (tmp_path / "empty").mkdir()
    assert refused(oc22.read, tmp_path / "empty", "no *.lmdb files")


@pytest.mark.parametrize("reader", [oc22, omat24])
def test_pieces_concatenate_to_the_whole(tmp_path, monkeypatch, reader):
    monkeypatch.setattr("jaxatoms.data.readers.lmdb_file.RECORDS_PER_PART", 2)
    write = native_shards.write_oc_shards if reader is oc22 else native_downstream.write_omat
    folder = write(tmp_path / "o")
    parts = reader.parts(folder)
    assert len(parts) == 4
    keys = [s.key for part in parts for s in reader.read_part(part)]
    assert keys == [s.key for s in reader.read(folder)]


def test_omat_rows_keep_stress_and_skip_deleted_rows(tmp_path):
    systems = list(omat24.read(native_downstream.write_omat(tmp_path / "o")))
    assert [s.energy for s in systems] == [-21.0, -23.0, -24.0, -31.0, -33.0, -34.0]
    np.testing.assert_array_equal(systems[0].extra["stress"], [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert systems[0].group == "agm0"
    assert systems[0].pbc == (True, True, True)
    none = list(omat24.read(native_downstream.write_omat(tmp_path / "p", stress=None)))
    assert np.isnan(none[-1].extra["stress"]).all()


def test_omat_rows_keep_tags_and_fixed_atoms(tmp_path):
    held = [{"name": "FixAtoms", "kwargs": {"indices": [0]}},
            {"name": "FixCartesian", "kwargs": {"a": [1], "mask": [True, True, False]}}]  # fmt: skip
    *rest, last = omat24.read(native_downstream.write_omat(tmp_path / "o", tags=[0, 1, 1, 2], constraints=held))
    np.testing.assert_array_equal(last.tags, [0, 1, 1, 2])
    np.testing.assert_array_equal(last.fixed, [True, False, False, False])
    assert last.extra["n_partly_fixed"] == 1
    assert rest[0].tags is None and rest[0].fixed is None
    bad = native_downstream.write_omat(tmp_path / "b", constraints=[{"name": "FixNothing", "kwargs": {}}])
    assert refused(omat24.read, bad, "row 4", "unreadable constraints")


def test_faulty_omat_rows_are_named(tmp_path):
    write = native_downstream.write_omat
    assert refused(omat24.read, write(tmp_path / "a", forces=None), "data0001.aselmdb: row 4", "lacks 'forces'")
    assert refused(omat24.read, write(tmp_path / "b", energy=float("nan")), "row 4", "energy", "NaN")
    assert refused(omat24.read, write(tmp_path / "c", stress=[1.0, 2.0]), "stress has 2 components")
    assert refused(omat24.read, native_shards.write_oc_shards(tmp_path / "d"), "no *.aselmdb files")
    bad = native_shards.write_lmdb(tmp_path / "e" / "a.aselmdb", [(1, b"x"), ("nextid", b"y")])
    assert refused(omat24.read, bad, "nextid", "damaged row")


def test_omat_reads_what_ase_writes(tmp_path):
    pytest.importorskip("ase_db_backends")
    import ase.db

    with ase.db.connect(tmp_path / "a.aselmdb", type="aselmdb") as database:
        for i in range(3):
            database.write(native.slab(i), data={"sid": f"agm{i}"})
    systems = list(omat24.read(tmp_path / "a.aselmdb"))
    assert [s.energy for s in systems] == [-100.0, -101.0, -102.0]
    np.testing.assert_allclose(systems[1].forces, native.slab(1).calc.results["forces"])
    np.testing.assert_allclose(systems[1].positions, native.slab(1).positions)
    assert systems[2].group == "agm2"

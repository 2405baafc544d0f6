"""Both unpicklers refuse alike, run nothing of a pickle, and read storages that a pickle has inside or behind it."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import native_shards

from jaxatoms.pickles.torch_archive import open_torch, read_legacy
from jaxatoms.pickles.unpickler import DamagedPickle, FastUnpickler, PickleError, TensorRef, Unpickler

BOTH = pytest.mark.parametrize("engine", [Unpickler, FastUnpickler])

SAMPLES = Path(__file__).parents[1] / "data" / "samples"


def refuse(name):
    raise PickleError(f"asks for {name}")


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@BOTH
@pytest.mark.parametrize("protocol", range(6))
def test_a_name_is_asked_for_and_never_called(engine, protocol, tmp_path):
    trace = tmp_path / "trace"
    with pytest.raises(PickleError, match=rf"asks for {os.system.__module__}\.system"):
        engine(pickle.dumps([Call(os.system, f"touch {trace}")], protocol), refuse).load()
    assert not trace.exists()


@BOTH
def test_a_function_cannot_be_altered_and_a_number_is_no_class(engine):
    with pytest.raises(PickleError, match="tries to alter"):
        engine(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", refuse).load()
    with pytest.raises(PickleError, match="class"):
        engine(b"\x80\x02K\x01)\x81.", refuse).load()


@BOTH
def test_damage_is_told_from_refusal(engine):
    for data in (b"", b"hello world", pickle.dumps(list(range(100)))[:-50]):
        with pytest.raises(DamagedPickle):
            engine(data, refuse).load()


def test_a_memo_place_beyond_reason_allocates_nothing():
    assert Unpickler(b"\x80\x02K\x01r\xff\xff\xff\x7f.", refuse).load() == 1


@BOTH
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_legacy_file_holds_numbers_in_its_own_byte_order(engine, order):
    values = np.arange(6, dtype="f4")
    with native_shards.fake_torch():
        whole = native_shards._legacy_file(values)
    head = len(whole) - 8 - values.nbytes
    data = whole[:head].replace(b"\x88", b"\x88" if order == "<" else b"\x89", 1)  # little_endian: True or False
    data += np.array([6], order + "i8").tobytes() + values.astype(order + "f4").tobytes()
    archive = read_legacy(data, lambda stream: engine(stream, refuse))
    assert archive.byteorder == {"<": "little", ">": "big"}[order]
    view = archive.array(TensorRef(archive.content, 1, (2, 2), (1, 2)))
    assert view.tolist() == [[1, 3], [2, 4]] and not view.flags.writeable
    assert archive.array(TensorRef(archive.content, 6, (0, 3), (3, 1))).shape == (0, 3)
    with pytest.raises(PickleError, match="impossible shape"):
        archive.array(TensorRef(archive.content, 0, (0, 2**62), (1, 1)))
    with pytest.raises(PickleError, match="is truncated"):
        read_legacy(data[:-1], lambda stream: engine(stream, refuse))


@BOTH
def test_a_zip_archive_with_a_damaged_pickle_or_storage_is_said_to_be_damaged(engine, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"hello world")
    with pytest.raises(PickleError, match="has a damaged pickle"):
        open_torch(tmp_path / "a.pt", lambda stream: engine(stream, refuse))
    whole = bytearray((SAMPLES / "qm9_zip.pt").read_bytes())
    place = whole.index(np.arange(19.0, dtype="f4").tobytes())
    whole[place] ^= 1
    (tmp_path / "b.pt").write_bytes(whole)
    assert open_torch(tmp_path / "b.pt", lambda stream: engine(stream, refuse)).content
    with pytest.raises(PickleError, match="has a damaged storage"):
        open_torch(tmp_path / "b.pt", lambda stream: engine(stream, refuse), checksums=True)

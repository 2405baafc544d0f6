"""The restricted unpickler: real torch files open without torch; nothing that a pickle asks for is run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from fixtures import native_shards

from jaxatoms.data.readers.unpickle import RefusedPickle, load_pickle, load_torch_file

SAMPLES = Path(__file__).parent / "samples"  # written by torch 2


@pytest.mark.parametrize("form", ["old", "new"])
def test_records_written_by_torch_become_arrays(form):
    values = load_pickle((SAMPLES / f"oc_record_{form}.pkl").read_bytes()).values
    np.testing.assert_array_equal(values["pos"], np.arange(9.0).reshape(3, 3))
    np.testing.assert_array_equal(values["force"], np.arange(9.0).reshape(3, 3).T - 4)
    assert (values["pos"].dtype, values["tags"].dtype) == (np.float32, np.int64)
    assert (values["sid"], values["y"]) == (7, -123.25)


@pytest.mark.parametrize("name", ["qm9_zip.pt", "qm9_legacy.pt"])
def test_files_written_by_torch_become_arrays(name):
    molecules = load_torch_file(SAMPLES / name)
    np.testing.assert_array_equal(molecules[1]["y"], np.arange(19.0)[None] + 1)
    np.testing.assert_array_equal(molecules[0]["z"], [8, 1, 1])
    assert molecules[0]["x"].shape == (3, 0)
    assert molecules[1]["name"] == "gdb_2"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numpy_arrays_survive(protocol):
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6, dtype="i4").reshape(2, 3)),
              "c": np.float64(2.5), "d": np.array(["x", "yz"]), "e": np.arange(3, dtype=">i8")}  # fmt: skip
    loaded = load_pickle(pickle.dumps(values, protocol))
    assert all(np.array_equal(loaded[name], values[name]) for name in values)


class _Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(_Call(os.system, "touch /tmp/never")),
        pickle.dumps(_Call(eval, "1")),
        pickle.dumps({"nested": [_Call(getattr, "x", "upper")]}),
        pickle.dumps(Path("x")),
        b"cbuiltins\nexec\n(S'x=1'\ntR.",
        pickle.dumps(np.array([{}], dtype=object)),
        b"not a pickle",
        pickle.dumps(list(range(100)))[:-50],
        b"",
    ],
)
def test_everything_else_is_refused(data):
    with pytest.raises(RefusedPickle):
        load_pickle(data)


def test_the_refusal_names_what_was_asked_for():
    with pytest.raises(RefusedPickle, match=r"asks for builtins\.eval"):
        load_pickle(pickle.dumps(_Call(eval, "1")))


def test_a_tensor_cannot_claim_more_than_its_storage():
    for shape, strides in (((10**9,), (0,)), ((6,), (1,)), ((-1,), (1,)), ((2,), (-1,))):
        with native_shards.fake_torch():
            tensor = native_shards.Tensor(np.arange(4.0))
            rebuild, (storage, _, _, _, *rest) = tensor.__reduce__()
            data = pickle.dumps(_Call(rebuild, storage, 0, shape, strides, *rest))
        with pytest.raises(RefusedPickle):
            load_pickle(data)


@pytest.mark.parametrize("name", ["qm9_zip.pt", "qm9_legacy.pt", "oc_record_old.pkl", "oc_record_new.pkl"])
def test_damage_is_always_a_refusal(name, tmp_path):
    whole, rng, refusals = (SAMPLES / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        data = data[: rng.integers(len(data))] if rng.random() < 0.2 else data
        (tmp_path / name).write_bytes(data)
        try:
            load_torch_file(tmp_path / name) if name.endswith(".pt") else load_pickle(bytes(data))
        except RefusedPickle:
            refusals += 1
    assert refusals > 50


def test_shared_and_circular_containers_end():
    bomb = []
    for _ in range(60):
        bomb = [bomb, bomb]
    assert len(load_pickle(pickle.dumps(bomb))) == 2
    circle: list = []
    circle.append(circle)
    loaded = load_pickle(pickle.dumps(circle))
    assert loaded[0] is loaded


def test_deep_nesting_is_refused_not_fatal():
    with pytest.raises(RefusedPickle):
        load_pickle(b"(" + b"(l" * 0 + b"]" * 100_000 + b"a" * 99_999 + b"0.")

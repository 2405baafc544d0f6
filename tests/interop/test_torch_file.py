"""PyTorch files are read exactly, and files that are damaged, foreign or hostile are refused in one line."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import torch_recipe

from jaxatoms.interop.torch_file import TorchFile, tensors_of
from jaxatoms.pickles.unpickler import Opaque
from jaxatoms.types import InputError

FILES = Path(__file__).parents[1] / "fixtures" / "torch"


@pytest.mark.parametrize("name", ["jmp", "jmp_legacy"])
def test_both_formats_hold_the_same_numbers(name):
    file = TorchFile(FILES / f"{name}.pt")
    state = file.content["state_dict"]
    checked = 0
    for key, tensor in state.items():
        if "temps" in key or "offset" in key or key.startswith("task_steps"):
            continue
        expected = torch_recipe.weight(key.replace(".seq_energy_pre.", ".layers."), tensor.shape)
        assert np.array_equal(file.read(tensor), expected), key
        assert file.read(tensor).dtype == np.float32
        checked += 1
    assert checked == 142
    assert file.content["global_step"] == 1000
    assert len(file.content["optimizer_states"][0]["ema"]) == 121


def test_unknown_objects_are_records_and_nothing_is_imported():
    settings = TorchFile(FILES / "jmp.pt").content["hyper_parameters"]
    assert settings["lr"] == 1e-4
    assert isinstance(settings["path"], Opaque)
    assert settings["path"].name.startswith("pathlib")
    assert settings["dtype"].name == "torch.float32"


def test_bfloat16():
    file = TorchFile(FILES / "equiformer_v2.pt")
    key = "module.module.blocks.1.ffn.grid_mlp.0.weight"
    array = file.read(file.content["state_dict"][key])
    exact = torch_recipe.weight(key.removeprefix("module.module."), (6, 6))
    assert array.dtype.name == "bfloat16"
    assert np.asarray(array, np.float32) == pytest.approx(exact, rel=2**-8)


def test_arrays_are_views_of_the_file():
    file = TorchFile(FILES / "jmp.pt")
    array = file.read(file.content["state_dict"]["embedding.atom_embedding.weight"])
    assert not array.flags.writeable
    assert not array.flags.owndata


@pytest.mark.parametrize("name", ["jmp", "jmp_legacy", "fairchem_gemnet_oc", "equiformer_v2"])
def test_torch_agrees(name):
    torch = pytest.importorskip("torch")
    theirs = torch.load(FILES / f"{name}.pt", weights_only=False, map_location="cpu")["state_dict"]
    file = TorchFile(FILES / f"{name}.pt")
    ours = file.content["state_dict"]
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert np.array_equal(np.asarray(file.read(ours[key]), np.float64), tensor.double().numpy())


# --- refusals -----------------------------------------------------------------------------------------


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        file = TorchFile(path)
        for tensor in tensors_of(file.content).values():
            file.read(tensor)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def zip_file(path: Path, pickled: bytes, entries: dict[str, bytes] | None = None, method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in ({"a/data.pkl": pickled} | (entries or {})).items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("function,args", [
    (os.system, ("touch {}",)), (eval, ("open('{}', 'w')",)), (exec, ("open('{}', 'w')",)), (getattr, ("", "join")),
    (open, ("{}", "w")), (__import__, ("os",)), (pickle.loads, (b"",)), (io.open_code, ("{}",)),
])  # fmt: skip
def test_calls_are_refused_and_do_not_happen(tmp_path, function, args):
    trace = tmp_path / "trace"
    args = tuple(arg.format(trace) if isinstance(arg, str) else arg for arg in args)
    for protocol in (0, 2, 4):
        path = zip_file(tmp_path / "hostile.pt", pickle.dumps({"state_dict": Call(function, *args)}, protocol))
        assert "asks to call" in refusal(path)
    legacy = tmp_path / "legacy.pt"
    legacy.write_bytes(b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, Call(function, *args))))
    assert "asks to call" in refusal(legacy)
    assert not trace.exists()


def test_a_harmless_looking_function_cannot_be_altered_or_instantiated(tmp_path):
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    assert "alter" in refusal(zip_file(tmp_path / "build.pt", build))
    new = b"\x80\x02K\x01)\x81."  # an instance of the number 1
    assert "no class" in refusal(zip_file(tmp_path / "new.pt", new))




def tensor_pickle(numel: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
               + struct.pack("<i", numel) + b"tQ")
    return (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset)
            + numbers(shape) + numbers(strides) + b"\x89NtR.")


def test_a_tensor_is_read_from_a_handmade_file(tmp_path):
    data = np.arange(6, dtype=np.float32)
    path = zip_file(tmp_path / "a.pt", tensor_pickle(6, 1, (2, 2), (1, 2)), {"a/data/0": data.tobytes()})
    file = TorchFile(path)
    assert file.read(file.content).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("numel,offset,shape,strides", [
    (6, 0, (7,), (1,)), (6, 5, (2,), (1,)), (6, -1, (2,), (1,)), (6, 0, (2, 4), (3, 1)), (6, 0, (2,), (1, 1)),
    (6, 0, (2**30, 2**30), (0, 0)), (6, 0, (-2,), (1,)),
])  # fmt: skip
def test_views_outside_their_storage_are_refused(tmp_path, numel, offset, shape, strides):
    entries = {"a/data/0": bytes(4 * 6)}
    refusal(zip_file(tmp_path / "a.pt", tensor_pickle(numel, offset, shape, strides), entries))


def test_missing_or_short_storages_are_refused(tmp_path):
    assert "lacks" in refusal(zip_file(tmp_path / "a.pt", tensor_pickle(6, 0, (6,), (1,))))
    short = {"a/data/0": bytes(20)}
    assert "20 bytes" in refusal(zip_file(tmp_path / "b.pt", tensor_pickle(6, 0, (6,), (1,)), short))


@pytest.mark.parametrize("name", ["jmp", "jmp_legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused(tmp_path, name, kept):
    whole = (FILES / f"{name}.pt").read_bytes()
    path = tmp_path / "short.pt"
    path.write_bytes(whole[: int(kept * len(whole))])
    refusal(path)


@pytest.mark.parametrize("name", ["jmp", "jmp_legacy"])
def test_altered_bytes_never_do_more_than_raise(tmp_path, name):
    """Two hundred random alterations of the table of contents: read, or refused in one line."""
    whole, rng = bytearray((FILES / f"{name}.pt").read_bytes()), np.random.default_rng(0)
    path = tmp_path / "altered.pt"
    for _ in range(200):
        copy = bytearray(whole)
        for place in rng.integers(0, 30_000, 3):
            copy[place] = rng.integers(256)
        path.write_bytes(copy)
        try:
            file = TorchFile(path)
            for tensor in list(tensors_of(file.content).values())[:5]:
                file.read(tensor)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content,words", [
    (b"", "empty"), (b"hello world", "no PyTorch checkpoint"), (b"<!DOCTYPE html><html>", "web page"),
    (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"), (pickle.dumps({"a": 1}), "not of PyTorch"),
    (b"PK\x03\x04 no", "truncated"),
])  # fmt: skip
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    assert words in refusal(path)


def test_other_archives_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2))
    assert "NumPy archive" in refusal(tmp_path / "a.npz")
    script = zip_file(tmp_path / "script.pt", pickle.dumps({}), {"a/constants.pkl": b""})
    assert "TorchScript" in refusal(script)
    pickled, entries = tensor_pickle(6, 0, (6,), (1,)), {"a/data/0": bytes(24)}
    squeezed = zip_file(tmp_path / "z.pt", pickled, entries, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(squeezed)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pt")
    refusal(tmp_path)

"""Small files: whole or not at all, under the name that was asked for."""

import numpy as np
import pytest

from jaxatoms.csi.features import feature_info, load_features
from jaxatoms.csi.moments import load_moments
from jaxatoms.data.references import LinearReference
from jaxatoms.data.splits import load_split
from jaxatoms.data.tasks import load_subset
from jaxatoms.features.difficulty import load_losses
from jaxatoms.features.extraction import load_extracted
from jaxatoms.io import open_npz, save_npz
from jaxatoms.types import InputError
from jaxatoms.uncertainty import files


@pytest.mark.parametrize("name", ["a.npz", "a", "a.b", "folder/a.npz"])
def test_arrays_are_saved_under_the_name_given_and_nothing_else_is_left(tmp_path, name):
    save_npz(tmp_path / name, {"x": np.arange(3)})
    with np.load(tmp_path / name) as archive:
        assert archive["x"].tolist() == [0, 1, 2]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def _flipped(content: bytes, name: str) -> bytes:
    at = content.index(name.encode()) + 200  # within the numbers
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"no archive",
    "a bit": lambda content: _flipped(content, "x.npy"),
}


@pytest.mark.parametrize("how", [*DAMAGE, "missing", "another array", "one array"])
def test_a_file_that_cannot_be_read_is_one_line_with_a_remedy(tmp_path, how):
    path = tmp_path / "a.npz"
    save_npz(path, {"y" if how == "another array" else "x": np.arange(300)})
    if how in DAMAGE:
        path.write_bytes(DAMAGE[how](path.read_bytes()))
    elif how == "missing":
        path.unlink()
    elif how == "one array":
        with open(path, "wb") as file:
            np.save(file, np.arange(3))
    words = r"a.npz is no such file \(.+\); make it again$"
    with pytest.raises(InputError, match=words) as error, open_npz(path, "is no such file", "make it again") as archive:
        archive["x"]
    assert "\n" not in str(error.value)


READERS = {
    "features": (load_features, "extract it again"),
    "moments": (load_moments, "write it again"),
    "extracted": (load_extracted, "experiments.extract"),
    "losses": (lambda path: load_losses(path, None), "experiments.extract --losses"),
    "subset": (lambda path: load_subset(path, None, np.arange(3)), "experiments.select"),
    "split": (lambda path: load_split(path, None), "make the split again"),
    "reference": (LinearReference.load, "fit one"),
    "uncertainty": (files.load, "experiments.uncertainty"),
}


@pytest.mark.parametrize("what", READERS)
def test_readers_of_arrays_refuse_a_file_that_was_cut_off(tmp_path, what):
    read, remedy = READERS[what]
    save_npz(tmp_path / "a.npz", {"x": np.arange(300)})
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    with pytest.raises(InputError, match=f"a.npz .*zip.*{remedy}") as error:
        read(tmp_path / "a.npz")
    assert "\n" not in str(error.value) and feature_info(tmp_path / "a.npz") == {}

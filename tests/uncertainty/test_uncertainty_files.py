"""The file of a fitted uncertainty: there and back, and what is refused."""

import numpy as np
import pytest

from jaxatoms.types import InputError
from jaxatoms.uncertainty.files import FILE, load, save
from jaxatoms.uncertainty.last_layer import LastLayer


def test_a_file_gives_back_what_was_saved(tmp_path):
    heads = {0: LastLayer(np.eye(3), 0.5, 1e-3), 2: LastLayer(np.ones((2, 2)), 2.0, 0.1)}
    save(tmp_path / FILE, "abc", heads, {0: {"name": "one"}, 2: {"name": "two"}})
    saved = load(tmp_path / FILE)
    assert saved.weights == "abc" and saved.heads.keys() == {0, 2}
    for i, head in heads.items():
        np.testing.assert_array_equal(saved.heads[i].factor, head.factor)
        assert (saved.heads[i].alpha, saved.heads[i].zeta) == (head.alpha, head.zeta)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_damaged_files_and_folders_that_are_not_there(tmp_path):
    (tmp_path / FILE).write_bytes(b"no archive")
    with pytest.raises(InputError, match="is no fitted uncertainty .*; run experiments.uncertainty again"):
        load(tmp_path / FILE)
    np.savez(tmp_path / FILE, info=np.array("{}"))
    with pytest.raises(InputError, match="is no fitted uncertainty"):
        load(tmp_path / FILE)
    with pytest.raises(InputError, match="cannot write"):
        save(tmp_path / "none" / FILE, "abc", {}, {})

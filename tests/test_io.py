"""Small files: whole or not at all, under the name that was asked for."""

import numpy as np
import pytest

from jaxatoms.io import save_npz


@pytest.mark.parametrize("name", ["a.npz", "a", "a.b", "folder/a.npz"])
def test_arrays_are_saved_under_the_name_given_and_nothing_else_is_left(tmp_path, name):
    save_npz(tmp_path / name, {"x": np.arange(3)})
    with np.load(tmp_path / name) as archive:
        assert archive["x"].tolist() == [0, 1, 2]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]

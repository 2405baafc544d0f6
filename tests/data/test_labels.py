"""Data without labels are refused before training, with the keys that look like them."""

import ase
import ase.io
import numpy as np
import pytest

from jaxatoms.data.labels import label_hint, missing_labels
from jaxatoms.data.store import open_dataset
from jaxatoms.data.tasks import prepare_task
from jaxatoms.types import InputError


def opened(tmp_path, info=(), arrays=()):
    atoms = ase.Atoms("CH4", np.random.default_rng(0).normal(size=(5, 3)))
    atoms.info.update(dict(info))
    for name in arrays:
        atoms.new_array(name, np.ones((5, 3)))
    ase.io.write(tmp_path / "s.extxyz", [atoms] * 12)
    return open_dataset(f"file:{tmp_path / 's.extxyz'}", cache_dir=tmp_path / "c")[1]


def prepared(tmp_path):
    return prepare_task(
        f"file:{tmp_path / 's.extxyz'}", "all", 0, val_samples=2, data_root=None, cache_dir=str(tmp_path / "c")
    )


def test_keys_that_look_like_labels_are_named(tmp_path):
    store = opened(tmp_path, {"REF_energy": -1.0, "temperature": 300.0}, ["REF_forces", "velocities"])
    assert missing_labels(store) == ["energy", "forces"]
    with pytest.raises(InputError, match=r"s.extxyz: no training structure has .*#REF_energy,REF_forces$"):
        prepared(tmp_path)


def test_a_column_of_forces_under_another_name_is_named(tmp_path):
    store = opened(tmp_path, {"energy": -1.0}, ["force"])
    assert missing_labels(store) == ["forces"]
    assert label_hint(store).endswith("s.extxyz#,force")


def test_no_label_at_all_is_said(tmp_path):
    opened(tmp_path)
    with pytest.raises(InputError, match="no training structure has an energy or forces; compute them"):
        prepared(tmp_path)

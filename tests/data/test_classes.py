"""Classes for class-balanced sampling, and that the sampler takes them."""

import os
import pickle

import numpy as np
import pytest
from fixtures import native, native_downstream, native_shards

from jaxatoms.csi.sampling import sample
from jaxatoms.data.classes import structure_classes
from jaxatoms.data.store import open_dataset
from jaxatoms.types import InputError


def test_formulas_and_reaction_formulas(tmp_path):
    spec, store = open_dataset(f"ani1x@{native.write_ani1x(tmp_path / 'a.h5')}", cache_dir=tmp_path / "c")
    classes = structure_classes(spec, store)
    assert set(classes) == {"CH4", "C2H6", "C2H4", "CH4O"}
    assert len(set(classes[sample("balanced", classes, 4)])) == 4
    spec, store = open_dataset(f"transition1x@{native.write_transition1x(tmp_path / 't.h5')}", cache_dir=tmp_path / "c")
    assert set(structure_classes(spec, store)) == {"CH4"}


def test_compositions_are_sorted_by_symbol(tmp_path):
    folder = native_downstream.write_omat(tmp_path / "o")
    spec, store = open_dataset(f"omat24@{folder}", cache_dir=tmp_path / "c")
    assert structure_classes(spec, store, np.array([0, 3])).tolist() == ["Mg2O2", "Mg2O2"]


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [("oc20", "oc20_data_mapping.pkl", "random{}"), ("oc20", "oc20_data_mapping.pkl", "{}"),
     ("oc22", "oc22_metadata.pkl", int)],
)  # fmt: skip
def test_catalysts_come_from_the_mapping(tmp_path, name, file, key):
    folder = native_shards.write_oc_shards(tmp_path / "data" / "train")
    entries = {100: "Cu3Pt", 101: "Ag", 105: "Cu3Pt", 106: "RuO2"}
    table = {
        (sid if key is int else key.format(sid)): {"bulk_symbols": symbols, "miller_index": (1, 1, 0)}
        for sid, symbols in entries.items()
    }
    (tmp_path / "data" / file).write_bytes(pickle.dumps(table))
    spec, store = open_dataset(f"{name}@{folder}", cache_dir=tmp_path / "c")
    assert structure_classes(spec, store).tolist() == ["Cu3Pt", "Cu3Pt", "Ag", "Cu3Pt", "Cu3Pt", "RuO2"]
    assert structure_classes(spec, store, np.array([5])).tolist() == ["RuO2"]


class _Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_faulty_mappings_are_refused(tmp_path):
    folder = native_shards.write_oc_shards(tmp_path / "train")
    spec, store = open_dataset(f"oc22@{folder}", cache_dir=tmp_path / "c")
    path = tmp_path / "m.pkl"
    with pytest.raises(InputError) as error:
        structure_classes(spec, store)
    assert native.is_one_line_about(error, "oc22_metadata.pkl", "--part mapping")
    for content, words in ((_Evil(), "asks for"), ({1: {}}, "no bulk_symbols of system 100"), ([1], "no table")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError) as error:
            structure_classes(spec, store, mapping=path)
        assert native.is_one_line_about(error, path, words)


@pytest.mark.data
def test_real_oc20_systems_carry_their_ids(real_data, tmp_path):
    _, store = open_dataset(f"oc20@{real_data('oc20_s2ef')}", cache_dir=tmp_path)
    codes, names = store.groups
    assert [f"random{sid}" for sid in store.column("sid")[:5]] == [names[code] for code in codes[:5]]

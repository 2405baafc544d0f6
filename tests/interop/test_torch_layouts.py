"""Checkpoints in the public layouts: dimensions from shapes, averages with the alias trap, every key accounted for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fixtures import torch_recipe
from fixtures.nano import NANO
from fixtures.torch_models import TINY_EQUIFORMER, TINY_GEMNET, shapes_of

from jaxatoms.interop.arrays import model_from_arrays
from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.interop.torch_layouts import convert
from jaxatoms.models.gemnet_oc.config import LARGE, SMALL, TINY, GemNetOCConfig
from jaxatoms.models.gemnet_oc.shapes import gemnet_config
from jaxatoms.pickles.unpickler import StorageRef, TensorRef
from jaxatoms.types import InputError

FILES = Path(__file__).parents[1] / "fixtures" / "torch"


def opened(name: str) -> TorchFile:
    return TorchFile(FILES / f"{name}.pt")


@pytest.mark.parametrize("name", ["jmp", "jmp_legacy"])
def test_dimensions_are_inferred(name):
    result = convert(opened(name))
    assert result.config == TINY_GEMNET
    assert (result.layout, result.n_task, result.weights) == ("jmp", 2, "ema")


@pytest.mark.parametrize("config", [
    SMALL, LARGE, TINY, GemNetOCConfig(**NANO), dataclasses.replace(SMALL, direct_forces=True, num_concat=3)
])  # fmt: skip
def test_dimensions_of_the_presets_follow_from_their_shapes(config):
    assert gemnet_config(shapes_of(config, 1)) == config


FIRST_LAYERS = ("int_blocks.0.atom_update", "out_blocks.0")


@pytest.mark.parametrize("config,has_layer", [(SMALL, True), (TINY, False), (GemNetOCConfig(**NANO), False)])
def test_edge_sums_have_a_dense_layer_where_widths_differ(config, has_layer):
    """docs/reference/gemnet_oc.md, Atom update; what an earlier version wrote, or another, is refused by name."""
    shapes = shapes_of(config, 1)
    names = [f"backbone.{module}.layers.0.linear.weight" for module in FIRST_LAYERS]
    assert [name in shapes for name in names] == [has_layer, has_layer]
    changed = {name: shape for name, shape in shapes.items() if name not in names}
    if not has_layer:
        changed |= dict.fromkeys(names, (config.emb_size_atom, config.emb_size_edge))
    with pytest.raises(InputError, match="different widths.*pretrain again"):
        gemnet_config(changed, "old.pt")


def test_dimensions_of_equiformer_follow_from_shapes_and_settings():
    result = convert(opened("equiformer_v2"))
    assert result.config == TINY_EQUIFORMER
    assert (result.layout, result.n_task, result.weights) == ("equiformer_v2", 1, "raw")
    assert result.scales == {"energy_mean": -0.5, "energy_std": 2.0, "force_mean": 0.0, "force_std": 2.0}


@pytest.mark.parametrize("weights", ["ema", "raw", "reference"])
def test_weights(weights):
    """`reference` takes averages but in layers that have an alias (docs/reference/gemnet_oc.md, Moving average)."""
    arrays = convert(opened("jmp"), weights).arrays
    assert set(arrays) == set(shapes_of(TINY_GEMNET, 2))
    averaged = 0
    for name, array in arrays.items():
        aliased = ".out_blocks." in name and ".layers." in name
        raw = name.endswith("scale_factor") or weights == "raw" or (weights == "reference" and aliased)
        averaged += not raw
        expected = (torch_recipe.weight if raw else torch_recipe.average)(name, array.shape)
        assert np.array_equal(array, expected), name
    assert averaged == {"ema": 121, "raw": 0, "reference": 115}[weights]


def test_every_key_has_a_fate():
    fates = {}
    for record in convert(opened("jmp")).table:
        fates.setdefault(record.fate, []).append(record.key)
    assert {fate: len(keys) for fate, keys in fates.items()} == {
        "moving average": 121, "loaded": 15, "alias": 6, "buffer": 3}
    assert all("seq_energy_pre" in key for key in fates["alias"])
    assert all("scale_factor" in key for key in fates["loaded"])


def test_fairchem_names():
    result = convert(opened("fairchem_gemnet_oc"))
    assert result.config == TINY_GEMNET
    assert result.n_task == 0
    assert [r.key for r in result.table if r.fate == "head dropped"] == ["module.module.out_energy.linear.weight"]
    for name, array in result.arrays.items():
        assert np.array_equal(array, torch_recipe.weight(name, array.shape))


def edited(name: str, change) -> TorchFile:
    """A file whose content was changed after reading."""
    file = opened(name)
    change(file.content)
    return file


def first_layer(state: dict) -> str:
    return next(key for key in state if "seq_energy_pre" in key)


def spoil_alias(content: dict):
    state = content["state_dict"]
    state[first_layer(state)] = content["optimizer_states"][0]["ema"][0]


@pytest.mark.parametrize("change,words", [
    (spoil_alias, "must be the same"),
    (lambda c: c["optimizer_states"][0].update(ema=c["optimizer_states"][0]["ema"][:-1]), "120 averages for 121"),
    (lambda c: c["optimizer_states"][0].update(ema=c["optimizer_states"][0]["ema"][::-1]), "the average of"),
    (lambda c: c["state_dict"].pop("backbone.bases.mlp_rbf_h.linear.weight"), "121 averages for 120"),
    (lambda c: c.pop("optimizer_states"), "no moving average"),
    (lambda c: c.update(state_dict={"a.b": next(iter(c["state_dict"].values()))}), "unknown architecture"),
    (lambda c: c.update(state_dict=[1, 2]), "no state_dict"),
])  # fmt: skip
def test_inconsistent_files_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        convert(edited("jmp", change), "ema")


@pytest.mark.parametrize("key", [f"backbone.{x}.linear.weight" for x in ("bases.mlp_rbf_h", "out_blocks.0.dense_rbf")])
def test_missing_and_unknown_arrays_are_refused(key):
    state = opened("jmp").content["state_dict"]
    with pytest.raises(InputError, match=key.split(".")[-3]):
        _load(edited("jmp", lambda c: c["state_dict"].pop(key)))
    with pytest.raises(InputError, match="no place"):
        _load(edited("jmp", lambda c: c["state_dict"].update({"backbone.new.weight": state[key]})))


def _load(file: TorchFile):
    result = convert(file, "raw")
    return model_from_arrays(result.config, result.n_task, result.arrays, source="x")


def test_a_storage_is_not_a_tensor():
    """Only views are read; a bare storage among the weights is no weight."""
    storage = StorageRef("0", np.dtype(np.float32), 1)
    file = edited("jmp", lambda c: c["state_dict"].update(stray=storage))
    assert "stray" not in {record.key for record in convert(file).table}
    assert isinstance(file.content["state_dict"]["embedding.atom_embedding.weight"], TensorRef)

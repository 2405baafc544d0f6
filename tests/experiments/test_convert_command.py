"""`experiments.convert`: PyTorch files, safetensors and back, bit for bit; the card; refusals in one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures import checkpoints
from fixtures.nano import NANO
from flax import nnx
from safetensors.numpy import load_file

from experiments.convert import main
from jaxatoms.inference.model import restore_model
from jaxatoms.interop.arrays import export_arrays
from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.interop.torch_layouts import convert
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig

FILES = Path(__file__).parents[1] / "fixtures" / "torch"


def run(*args) -> int:
    return main([str(arg) for arg in args])


@pytest.mark.parametrize("name,n_array", [("jmp", 136), ("equiformer_v2", 124), ("fairchem_gemnet_oc", 100)])
def test_command_and_safetensors_round_trip(tmp_path, capsys, name, n_array):
    """PyTorch -> directory -> safetensors -> directory, bit for bit."""
    run("--torch", FILES / f"{name}.pt", "--out", tmp_path / "a")
    assert f"{n_array} arrays" in capsys.readouterr().out
    run("--checkpoint", tmp_path / "a", "--safetensors", tmp_path / "w.safetensors")
    run("--from-safetensors", tmp_path / "w.safetensors", "--out", tmp_path / "b")
    first, again = restore_model(str(tmp_path / "a")), restore_model(str(tmp_path / "b"))
    assert first.config == again.config
    assert [t.to_json() for t in first.meta.tasks] == [t.to_json() for t in again.meta.tasks]
    expected = convert(TorchFile(FILES / f"{name}.pt")).arrays
    for model in (first, again):
        arrays = export_arrays(model.module, model.config)
        assert set(arrays) == set(expected)
        assert all(np.array_equal(arrays[key], expected[key]) for key in expected)
    stored = load_file(tmp_path / "w.safetensors")
    assert {key: array.shape for key, array in stored.items()} == {key: a.shape for key, a in expected.items()}


@pytest.mark.parametrize("head", [
    HeadSpec(kind="gradient", stress=True), HeadSpec(kind="scalar", reduction="max"), HeadSpec(kind="direct", heads=2),
], ids=lambda head: head.kind)  # fmt: skip
def test_a_fine_tuned_model_comes_back_with_its_head(tmp_path, head):
    """The head was left out of the card: what came back had no stress, or was refused."""
    more = [{}] * (head.heads - 1)
    checkpoints.write_finetuned(tmp_path / "ft", GemNetOCConfig(**NANO), head, {"property": "gap"}, others=tuple(more))
    run("--checkpoint", tmp_path / "ft", "--safetensors", tmp_path / "w.safetensors")
    run("--from-safetensors", tmp_path / "w.safetensors", "--out", tmp_path / "again")
    first, again = restore_model(str(tmp_path / "ft")), restore_model(str(tmp_path / "again"))
    assert again.meta.head == head and again.kind == first.kind
    pairs = zip(*(jax.tree.leaves(nnx.state(model.module)) for model in (first, again)), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_heads_of_unknown_units_are_said(tmp_path):
    with pytest.warns(UserWarning, match="task0, task1: the file does not say in which units .* --tasks"):
        run("--torch", FILES / "jmp.pt", "--out", tmp_path, "--quiet")


def test_card(tmp_path):
    run("--torch", FILES / "jmp.pt", "--out", tmp_path, "--tasks", "ani1x,oc22", "--quiet")
    card = json.loads((tmp_path / "card.json").read_text())
    assert [head["name"] for head in card["heads"]] == ["ani1x", "oc22"]
    assert card["heads"][0]["force_std"] == pytest.approx(2.131422996520996)
    assert card["converted_from"]["weights"] == "ema"
    assert "Licence of the weights" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("args,words", [
    (["--torch", "none.pt", "--out", "x"], "No such file"),
    (["--torch", str(FILES / "jmp.pt")], "needs --out"),
    ([], "exactly one"),
    (["--torch", str(FILES / "equiformer_v2.pt"), "--out", "x", "--weights", "ema"], "--weights raw"),
    (["--torch", str(FILES / "jmp.pt"), "--out", "x", "--tasks", "a"], "2 different names"),
])  # fmt: skip
def test_command_refuses_in_one_line(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(args)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in error
    assert error.count("\n") == 1

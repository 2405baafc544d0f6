"""The commands with EquiformerV2: pretraining and its resume, prediction, features from a PyTorch file, CSI."""

import dataclasses
import json
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from fixtures.native_downstream import write_qm9
from fixtures.torch_models import TINY_EQUIFORMER

from experiments import extract, predict, pretrain
from jaxatoms.data import task_split
from jaxatoms.data.splits import Split
from jaxatoms.data.store import open_dataset
from jaxatoms.features.extraction import load_extracted, opened
from jaxatoms.features.extractors import load_extractor
from jaxatoms.models.equiformer_v2.architecture import EQUIFORMER_V2
from jaxatoms.models.gemnet_oc.architecture import GEMNET_OC
from jaxatoms.models.registry import model_record
from jaxatoms.training.checkpoint import restore

FILE = Path(__file__).parents[1] / "fixtures" / "torch" / "equiformer_v2.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("equiformer")


def run_extract(folder, name, *options):
    arguments = ["--dataset", "demo:organic", "--checkpoint", str(FILE), "--n", "12", "--blocks", "3", "--quiet",
                 "--out", str(folder / name), "--cache-dir", str(folder / "cache"), "--store", *options]
    assert extract.main(arguments) == 0
    return load_extracted(folder / name)


def test_features_of_a_pytorch_file(folder):
    """Width (lmax+1)^2 x channels; the two edge directions differ and have different names."""
    clean = run_extract(folder, "clean.npz", "--backbone", "equiformer_v2")
    paper = run_extract(folder, "paper.npz", "--backbone", "equiformer_v2", "--edge-direction", "source_to_target")
    width = TINY_EQUIFORMER.feature_width
    assert clean.features.features.shape == (clean.info["n_atom"], width)
    assert clean.info["extractor"].startswith("equiformer_v2:target_to_source:")
    assert paper.info["extractor"].startswith("equiformer_v2:source_to_target:")
    assert clean.features.features.shape == paper.features.features.shape
    assert not np.allclose(clean.features.features, paper.features.features)
    # Invariants of a norm: the first channels are those of l = 0.
    assert np.isfinite(clean.features.features).all()


@pytest.mark.parametrize("options,words", [
    (["--backbone", "gemnet_oc"], "is a equiformer_v2"),
    (["--edge-direction", "sideways"], "edge_direction must be"),
    (["--paper"], "needs --backbone"),
])  # fmt: skip
def test_extraction_refuses(folder, options, words, capsys):
    with pytest.raises(SystemExit):
        run_extract(folder, "x.npz", *options)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("architecture,expected", [(EQUIFORMER_V2, (12.0, 20)), (GEMNET_OC, (8.0, 30))])
def test_qm9_is_extracted_with_the_graph_of_the_paper(tmp_path, monkeypatch, architecture, expected):
    """docs/reference/csi.md, Graphs: not that of fine-tuning, nor that of GemNet-OC."""
    split = Split(*np.split(np.arange(40), [30, 35]))
    monkeypatch.setattr(task_split, "downstream_split", lambda name, store: split)
    file = write_qm9(tmp_path / "dsgdb9nsd.xyz.tar.bz2", indices=range(1, 41))
    name, cache = f"qm9:U_0@{file}", str(tmp_path / "cache")
    spec, store = open_dataset(name, None, cache)
    rules = architecture.finetuning.extraction_graphs
    graph = opened(name, spec, store, architecture.graphs, rules, None, cache)[0].tasks[0].graph
    assert (graph.cutoff, graph.max_neighbors) == expected


def test_an_extractor_knows_its_elements():
    assert load_extractor(str(FILE)).num_elements == TINY_EQUIFORMER.max_num_elements - 1


@pytest.mark.slow
def test_pretraining_resume_and_prediction(folder):
    config = dataclasses.replace(TINY_EQUIFORMER, num_layers=1, lmax=1, max_num_elements=90, grid_resolution=6)
    (folder / "model.json").write_text(json.dumps(model_record(config)))
    options = ["--upstream", "demo:organic", "--n", "32", "--epochs", "1", "--batch-size", "8", "--batch-shapes", "1",
               "--model", str(folder / "model.json"), "--val-samples", "8", "--lr", "1e-2", "--quiet",
               "--cache-dir", str(folder / "cache"), "--run-dir", str(folder / "run")]
    assert pretrain.main(options) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 4
    arrays, _ = restore(folder / "run" / "checkpoints" / "last")  # no average: it is the weights
    raw = {name.removeprefix("params/"): array for name, array in arrays.items() if name.startswith("params/")}
    assert raw and all(np.array_equal(array, arrays[f"ema/{name}"]) for name, array in raw.items())
    assert pretrain.main([*options, "--resume"]) == 0
    ase.io.write(folder / "in.extxyz", [ase.build.molecule("CH3OH"), ase.build.molecule("H2O")])
    assert predict.main(["--checkpoint", str(folder / "run"), "--structures", str(folder / "in.extxyz"),
                         "--out", str(folder / "out.extxyz")]) == 0
    out = ase.io.read(folder / "out.extxyz", ":")
    assert [len(atoms) for atoms in out] == [6, 3]
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in out)

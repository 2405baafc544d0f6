"""Fine-tuning of EquiformerV2 from the command line: forces, scalars, resuming, evaluation, prediction, refusals."""

import dataclasses
import json

import ase.build
import ase.io
import numpy as np
import pytest
from fixtures import checkpoints

from experiments import evaluate, finetune, predict
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.data.downstream import downstream
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.equiformer_v2.architecture import EQUIFORMER_V2
from jaxatoms.models.equiformer_v2.config import TINY
from jaxatoms.models.gemnet_oc.architecture import GEMNET_OC
from jaxatoms.models.registry import build_finetuned
from jaxatoms.runs import finetune_setup
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.recipes import find_recipe
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.types import InputError

FAST = ["--max-steps", "12", "--batch-size", "4", "--batch-shapes", "1", "--val-samples", "8", "--test-samples", "8",
        "--budget", "small", "--lr", "5e-3", "--ema-decay", "0.5", "--max-neighbors", "8", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The tiny preset with two heads, as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXATOMS_CACHE", str(folder / "cache"))
        yield checkpoints.write(folder / "run", TINY, {"a": {}, "b": {}}, reductions=("mean", "mean"))


def run(folder, pretrained, *options):
    assert finetune.main([*FAST, "--init", str(pretrained), "--run-dir", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def forces(pretrained, tmp_path_factory):
    return run(tmp_path_factory.mktemp("ft") / "forces", pretrained, "--downstream", "demo:aspirin")


@pytest.fixture(scope="module")
def scalar(pretrained, tmp_path_factory):
    # Enough steps and structures that the loss falls beyond their scatter.
    options = ["--downstream", "demo:gap", "--split", "record", "--max-steps", "48", "--val-samples", "32"]
    return run(tmp_path_factory.mktemp("ft") / "gap", pretrained, *options)


def read(path):
    return json.loads(path.read_text())


def params(folder, part="params"):
    return restore(folder / "checkpoints" / "last", None, only=(part,))[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forces", "scalar"])
def test_the_loss_falls_and_the_test_split_is_reported(kind, request):
    folder = request.getfixturevalue(kind)
    summary, resolved = read(folder / "summary.json"), read(folder / "resolved.json")
    assert summary["finished"] and summary["compiled_shapes"] == 1
    assert summary["validation"]["loss"] < summary["validation_before"]["loss"]
    assert summary["head"]["kind"] == {"forces": "direct", "scalar": "scalar"}[kind]
    assert read(folder / "test.json")["last_ema"]["mae"] > 0
    assert (resolved["model"]["energy_hidden"], resolved["model"]["force_hidden"]) == (32, 16)
    assert (resolved["optimizer"]["final_lr"], resolved["recipe"]["warmup_epochs"]) == (0.01, 5)


@pytest.mark.slow
def test_the_backbone_is_the_pretrained_one_and_the_head_is_new(pretrained):
    config = FinetuneConfig(downstream="demo:gap", init=str(pretrained), quiet=True, max_neighbors=8)
    setup = finetune_setup.prepare(config, None)
    source = restore(pretrained / "checkpoints" / "best", None, only=("ema",))[0]
    table = setup.model.params["backbone"]["sphere_embedding"]["kernel"]
    np.testing.assert_array_equal(table[...], source["ema/backbone/sphere_embedding/kernel/value"])
    assert setup.model_config.basis_width == TINY.basis_width


@pytest.mark.slow
def test_resuming_continues_bit_exactly_with_dropout(forces, pretrained, tmp_path, monkeypatch):
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) == 4)
    options = ["--downstream", "demo:aspirin"]
    run(tmp_path / "run", pretrained, *options)
    monkeypatch.undo()
    assert read(tmp_path / "run" / "summary.json")["steps"] == 5
    run(tmp_path / "run", pretrained, *options, "--resume")
    one, two = params(forces), params(tmp_path / "run")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forces", "scalar"])
def test_evaluate_gives_the_errors_of_the_run(kind, request):
    folder = request.getfixturevalue(kind)
    before = read(folder / "test.json")["last_ema"]["mae"]
    assert evaluate.main(["--run", str(folder), "--samples", "8"]) == 0
    assert read(folder / "test.json")["last_ema"]["mae"] == pytest.approx(before, rel=1e-4)


@pytest.mark.slow
def test_the_result_predicts(forces, scalar, tmp_path):
    ase.io.write(tmp_path / "in.extxyz", [ase.build.molecule("CH3OH"), ase.Atoms("C")])
    for folder in (forces, scalar):
        options = ["--checkpoint", str(folder), "--structures", str(tmp_path / "in.extxyz")]
        assert predict.main([*options, "--out", str(tmp_path / f"{folder.name}.extxyz")]) == 0
    by_force, by_gap = (ase.io.read(tmp_path / f"{name}.extxyz", ":") for name in ("forces", "gap"))
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in by_force)
    assert all(np.isfinite(atoms.info["target_gap"]) for atoms in by_gap)
    atoms = ase.build.molecule("CH3OH")
    atoms.calc = JaxAtomsCalculator(forces)
    np.testing.assert_allclose(atoms.get_forces(), by_force[0].get_forces(), atol=1e-4)
    with pytest.raises(InputError, match="a property of structures"):
        JaxAtomsCalculator(scalar)


def refusal(options, capsys):
    with pytest.raises(SystemExit) as stop:
        finetune.main([*FAST, *options])
    text = capsys.readouterr().err
    assert stop.value.code == 2 and len(text.splitlines()) == 1, text
    return text


def test_gradient_forces_and_classes_are_refused(pretrained, tmp_path, capsys):
    options = ["--downstream", "demo:aspirin", "--init", str(pretrained), "--run-dir", str(tmp_path / "run")]
    assert "EquiformerV2 has no gradient forces" in refusal([*options, "--forces", "gradient"], capsys)
    with pytest.raises(InputError, match="not for classes"):
        build_finetuned(TINY, HeadSpec(kind="scalar", n_class=2), None)


def test_an_element_beyond_the_tables_is_refused(tmp_path, capsys):
    atoms = [ase.build.bulk("Th", cubic=True) for _ in range(12)]
    for i, one in enumerate(atoms):
        one.rattle(0.1, seed=i)
        one.info["energy"], one.arrays["forces"] = float(i), np.full((4, 3), 0.1 * i)
    ase.io.write(tmp_path / "th.extxyz", atoms)
    options = ["--downstream", f"file:{tmp_path}/th.extxyz", "--init", "scratch", "--model", "equiformer_v2_tiny",
               "--n-train", "4", "--n-val", "1", "--cache-dir", str(tmp_path / "cache"),
               "--run-dir", str(tmp_path / "run")]  # fmt: skip
    assert "holds Th (atomic number 90), the model's embedding ends at 89" in refusal(options, capsys)


def test_recipes_and_graphs_are_those_of_the_family():
    """docs/reference/finetuning.md, EquiformerV2."""
    rmd17, qm9 = (downstream(name) for name in ("rmd17:aspirin", "qm9:U_0"))
    own = EQUIFORMER_V2.finetuning
    recipe = dataclasses.replace(find_recipe("rmd17:aspirin", rmd17), **own.changes("rmd17"))
    assert (recipe.epochs, recipe.lr, recipe.warmup_epochs, recipe.direct_forces) == (1000, 1e-5, 5, True)
    assert (recipe.patience, recipe.weight_decay, recipe.cosine_epochs, recipe.layer_rates) == (25, 0.1, None, False)
    recipe = dataclasses.replace(find_recipe("qm9:U_0", qm9), **own.changes("qm9"))
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.weight_decay) == (300, 5e-4, 48, 0.0)
    assert own.graphs == {"qm9": (12.0, 500)} and own.extraction_graphs == {"qm9": (12.0, 20)}
    assert (EQUIFORMER_V2.ema_decay, GEMNET_OC.ema_decay) == (0.0, 0.99)
    assert (rmd17.graph.cutoff, rmd17.graph.max_neighbors) == (7.0, 100)
    assert GEMNET_OC.finetuning.changes("rmd17") == {}
    small = find_recipe("rmd17:aspirin", rmd17)
    assert (small.epochs, small.lr) == (600, 8e-5)

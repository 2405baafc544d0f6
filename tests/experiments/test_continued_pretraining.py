"""Pretraining that goes on from a checkpoint: weights, heads by name, rows of new elements, exact resume."""

import json

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fixtures.torch_models import TINY_EQUIFORMER
from flax import nnx

from experiments import finetune, pretrain
from jaxatoms.models import registry
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs.continued import _with_rows
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.checkpoint_files import read_meta

OPTIONS = ["--n", "40", "--epochs", "1", "--batch-size", "10", "--batch-shapes", "1", "--val-samples", "10", "--split",
           "record"]  # fmt: skip


def _own_file(path, n=60, seed=0):
    """Molecules of carbon, sodium and hydrogen; the pretraining set has no sodium."""
    rng, frames = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = Atoms("C2NaH3", rng.normal(0, 0.1, (6, 3)) + 1.2 * np.arange(6)[:, None])
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(6, 3)))
        frames.append(atoms)
    ase.io.write(path, frames)
    return f"file:{path}"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return _own_file(tmp_path_factory.mktemp("own") / "own.extxyz")


def _run(run_dir, init, upstream, *options):
    words = ["--upstream", upstream, "--init", str(init), "--run-dir", str(run_dir), *OPTIONS, *options]
    assert pretrain.main(words) == 0
    return run_dir


def _arrays(run, top, which):
    return restore(run / "checkpoints" / which, None, only=(top,))[0]


def test_weights_and_heads_of_the_same_name_are_taken_over(nano_run, own, tmp_path, capsys):
    run = _run(tmp_path / "run", nano_run, f"demo:organic,{own}", "--max-steps", "0")
    told = capsys.readouterr().out
    assert "heads taken over: demo:organic; new heads: file:" in told and "with the mean of its elements: Na" in told
    before, after = _arrays(nano_run, "ema", "best"), _arrays(run, "params", "last")
    for name, array in before.items():
        own_name = name.replace("ema/", "params/")
        if "embedding/atom_embedding" in name:
            rows = np.setdiff1d(np.arange(len(array)), 10)
            np.testing.assert_array_equal(after[own_name][rows], array[rows])
            seen = [int(z) - 1 for z in read_meta(nano_run / "checkpoints" / "best")["tasks"][0]["reference"]]
            np.testing.assert_allclose(after[own_name][10], array[seen].mean(axis=0), rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(after[own_name], array, err_msg=name)
    new = after["params/output/out_energy/1/layers/0/kernel/value"]
    assert not np.array_equal(new, after["params/output/out_energy/0/layers/0/kernel/value"])
    constants = [_arrays(r, "constants", which) for r, which in ((nano_run, "best"), (run, "last"))]
    assert all(np.array_equal(value, constants[1][name]) for name, value in constants[0].items())


@pytest.mark.slow
def test_the_origin_is_recorded_and_the_run_resumes_exactly(nano_run, own, tmp_path, monkeypatch):
    whole = _run(tmp_path / "whole", nano_run, own, "--quiet")
    polls = iter(range(100))
    monkeypatch.setattr(cli.StopFlag, "__bool__", lambda self: next(polls) == 1)
    cut = _run(tmp_path / "cut", nano_run, own, "--quiet")
    monkeypatch.undo()
    assert json.loads((cut / "summary.json").read_text())["steps"] == 2
    _run(cut, nano_run, own, "--quiet", "--resume")
    meta = read_meta(cut / "checkpoints" / "last")
    assert meta["origin"]["upstream"] == "demo:organic" and meta["origin"]["init"] == str(nano_run)
    for top in ("params", "ema", "opt_state"):
        ours, theirs = (_arrays(run, top, "last") for run in (whole, cut))
        assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())
    options = ["--downstream", "demo:gap", "--max-steps", "1", "--val-samples", "4", "--test-samples", "4", "--quiet"]
    assert finetune.main([*options, "--init", str(cut), "--run-dir", str(tmp_path / "ft")]) == 0


def test_refusals(nano_run, own, tmp_path, refusal):
    base = ["--upstream", own, "--init", str(nano_run), "--run-dir", str(tmp_path / "run"), *OPTIONS]
    assert "other dimensions than gemnet_oc_s" in refusal(pretrain, [*base, "--model", "gemnet_oc_s"])
    assert "--scales has no effect with --init" in refusal(pretrain, [*base, "--scales", "shipped"])
    assert "no checkpoint at" in refusal(pretrain, [*base, "--init", str(tmp_path / "nowhere")])


def test_tables_grow_for_elements_beyond_them():
    """EquiformerV2's hold 89 elements; an actinide makes them longer, in the backbone and in the heads."""
    own = registry.architecture_of(TINY_EQUIFORMER)
    enlarged = own.element_tables.enlarged(TINY_EQUIFORMER, 95)
    assert own.largest_atomic_number(enlarged) == 95 and own.element_tables.enlarged(enlarged, 8) == enlarged
    both = (TINY_EQUIFORMER, enlarged)
    models = [nnx.eval_shape(lambda config=config: registry.make_model(config, 1, 0, Precision())) for config in both]
    small, large = (
        {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape
         for p, leaf in jax.tree.leaves_with_path(registry.split_model(model).params)} for model in models
    )  # fmt: skip
    changed = {name for name in small if small[name] != large[name]}
    assert changed == {name for name in small if own.element_tables.pattern.search(name)}


def test_rows_of_new_elements_are_the_mean_of_those_that_were_seen():
    table, tables = np.arange(12.0).reshape(1, 4, 3), registry.architecture_of(TINY_EQUIFORMER).element_tables
    new, seen = np.zeros(121, bool), np.zeros(121, bool)
    new[[2, 5]] = seen[[1, 3]] = True
    out = np.asarray(_with_rows(table, (1, 6, 3), tables, seen, new))
    np.testing.assert_array_equal(out[0, [0, 1, 3]], table[0, [0, 1, 3]])
    np.testing.assert_allclose(out[0, [2, 4, 5]], np.tile(table[0, [1, 3]].mean(axis=0), (3, 1)))


def test_a_plan_of_it_is_printed(nano_run, own, capsys):
    assert pretrain.main(["--upstream", own, "--init", str(nano_run), "--plan", *OPTIONS]) == 0
    assert f"model       {nano_run}" in capsys.readouterr().out

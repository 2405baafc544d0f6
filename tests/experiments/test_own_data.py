"""Data of one's own in training: partial labels, energies of several compositions, data that change under a run."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from experiments import evaluate, finetune, predict, pretrain
from jaxatoms.data.downstream_task import open_downstream
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.runs.pretraining import prepare_data
from jaxatoms.training.checkpoint_files import read_meta, resolve_checkpoint
from jaxatoms.types import InputError

FREE = {"C": -1030.0, "H": -13.6}
SHORT = ["--max-steps", "4", "--batch-size", "4", "--batch-shapes", "1", "--quiet"]


def _frames(n, labels=("energy", "forces"), seed=0):
    """Frames of two compositions, C2H2 and C2H4, in groups of two."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        symbols = "C2H2" if i % 4 < 2 else "C2H4"
        n_node = int(symbols[1]) + int(symbols[3])
        atoms = Atoms(symbols, rng.uniform(0, 1, (n_node, 3)) + 0.9 * np.arange(n_node)[:, None])
        energy = sum(FREE[s] for s in atoms.get_chemical_symbols()) + rng.normal() * 0.3
        found = {"energy": energy, "forces": rng.normal(size=(len(atoms), 3))}
        atoms.calc = SinglePointCalculator(atoms, **{name: found[name] for name in labels})
        atoms.info |= {"group": f"g{i // 2}", "gap": float(i)}
        yield atoms


@pytest.fixture(scope="module")
def own(nano_run, tmp_path_factory):
    """(run folder, file) of a run of forces on the file."""
    folder = tmp_path_factory.mktemp("own")
    ase.io.write(folder / "own.extxyz", list(_frames(60)))
    run, file = folder / "run", folder / "own.extxyz"
    options = ["--downstream", f"file:{file}", "--init", str(nano_run), "--run-dir", str(run), "--val-samples", "8"]
    assert finetune.main([*options, *SHORT]) == 0
    return run, file


def test_energies_of_every_training_composition_are_those_of_the_labels(own, tmp_path):
    run, file = own
    record = read_meta(resolve_checkpoint(run / "checkpoints" / "last"))["tasks"][0]
    assert record["energy_zero"] == "fitted" and "span" not in record
    assert predict.main(["--checkpoint", f"{run}/checkpoints/last", "--structures", str(file),
                         "--out", str(tmp_path / "out.extxyz")]) == 0  # fmt: skip
    for one, label in zip(ase.io.read(tmp_path / "out.extxyz", ":"), ase.io.read(file, ":"), strict=True):
        assert one.get_potential_energy() == pytest.approx(label.get_potential_energy(), abs=20), one.symbols


def test_data_that_changed_under_a_run_are_refused_and_both_fingerprints_named(own, refusal):
    run, file = own
    frames, config = list(_frames(60)), ["--config", str(run / "config.json"), "--resume"]
    before = json.loads((run / "test.json").read_text())
    assert evaluate.main(["--run", str(run)]) == 0
    after = json.loads((run / "test.json").read_text())
    assert after["last_ema"]["mae"] == pytest.approx(before["last_ema"]["mae"], rel=1e-5)
    for changed in (frames[1:], frames + list(_frames(40, seed=1))):
        ase.io.write(file, changed)
        for command, options in ((evaluate, ["--run", str(run)]), (finetune, config)):
            text = refusal(command, options)
            assert "split.npz: belongs to data with fingerprint" in text and "now has" in text
    ase.io.write(file, frames)


def test_pretraining_takes_its_own_split_and_references_again(tmp_path):
    file = tmp_path / "own.extxyz"
    ase.io.write(file, list(_frames(60)))
    config = PretrainConfig(upstream=f"file:{file}", n="all", cache_dir=str(tmp_path / "cache"))
    (first,) = prepare_data(config, tmp_path / "run", resumed=False)
    constants = tmp_path / "run" / "data" / "constants.json"
    constants.write_text(json.dumps({"energy_std": 7.0, "force_std": 3.0}))
    (again,) = prepare_data(config, tmp_path / "run", resumed=True)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert again.task.normalization.energy_std == 7.0
    np.testing.assert_array_equal(first.task.reference.coeff, again.task.reference.coeff)
    ase.io.write(file, list(_frames(100)))
    with pytest.raises(InputError, match="belongs to data with fingerprint"):
        prepare_data(config, tmp_path / "run", resumed=True)


@pytest.mark.parametrize("labels", [("energy",), ("forces",)])
def test_pretraining_learns_from_the_labels_there_are(nano, tmp_path, labels, capsys):
    ase.io.write(tmp_path / "own.extxyz", list(_frames(60, labels)))
    options = ["--upstream", f"file:{tmp_path / 'own.extxyz'}", "--n", "all", "--epochs", "1", "--batch-size", "10",
               "--batch-shapes", "1", "--model", str(nano), "--val-every", "1"]  # fmt: skip
    assert pretrain.main([*options, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    final = summary["validation"]
    known, unknown = ("energy_mae_mev", "force_mae_mev_per_angstrom")[:: 1 if labels == ("energy",) else -1]
    assert final[known] > 0 and final[unknown] is None and np.isfinite(final["loss"])
    record = read_meta(resolve_checkpoint(tmp_path / "run"))["tasks"][0]
    assert record["labels"] == list(labels)
    assert "nan" not in capsys.readouterr().out


def test_a_target_is_found_by_its_own_name(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", list(_frames(60)))
    name, cache = f"file:{tmp_path / 'a.extxyz'}", {"cache_dir": str(tmp_path / "cache")}
    for target, column, unit in (("gap", "target_gap", ""), ("energy", "energy", "eV")):
        task, split = open_downstream(name, targets=target, **cache)
        assert task.facts.column == column and task.facts.unit == unit and np.isfinite(task.std)
    assert task.facts.references[6] == pytest.approx(FREE["C"], abs=30)
    values = task.store.energy[split.train] - task.facts.reference(*_atoms(task.store, split.train))
    assert np.abs(values).max() < 3


def _atoms(store, records):
    systems = store.take(records)
    return systems.atomic_numbers, systems.n_node


def test_forces_come_first_then_energies(tmp_path):
    for labels, column in ((("energy", "forces"), "forces"), (("forces",), "forces"), (("energy",), "energy")):
        file = tmp_path / f"{'-'.join(labels)}.extxyz"
        ase.io.write(file, list(_frames(60, labels)))
        task, _ = open_downstream(f"file:{file}", cache_dir=str(tmp_path / "cache"))
        assert getattr(task.facts, "column", "forces") == column


def test_evaluate_reads_a_pretraining_run_too(nano_run, capsys):
    assert evaluate.main(["--run", str(nano_run), "--samples", "20"]) == 0
    assert "MAE of forces" in capsys.readouterr().out
    found = json.loads((nano_run / "test.json").read_text())
    assert found["n_structure"] == 20 and found["last_ema"]["force_mae_mev_per_angstrom"] > 0


def test_pretraining_refuses_elements_beyond_the_models_tables(tmp_path, refusal):
    """Tables of EquiformerV2 end at Z = 89: heavier elements were read as rows of zeros."""
    frames = list(_frames(40))
    frames[5].numbers[0] = 92
    ase.io.write(tmp_path / "own.extxyz", frames)
    options = ["--upstream", f"file:{tmp_path / 'own.extxyz'}", "--n", "all", "--model", "equiformer_v2_tiny",
               "--split", "record", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    told = refusal(pretrain, [*options, *SHORT])
    assert "holds U (atomic number 92), the model's embedding ends at 89" in told

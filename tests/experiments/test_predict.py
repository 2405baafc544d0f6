"""Prediction from the command line: order, formats, resuming, features, lone atoms, mixed periodicity, refusals."""

import itertools
import json
import re
from types import SimpleNamespace

import ase.build
import ase.db
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from fixtures import checkpoints
from fixtures.nano import NANO

from experiments import predict
from jaxatoms.csi.features import load_features
from jaxatoms.data import frames
from jaxatoms.data.readers import ase_file
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.inference import prediction
from jaxatoms.inference.compiled import CompiledShapes
from jaxatoms.inference.model import restore_model
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.registry import split_model
from jaxatoms.tools.drafts import BytesDraft, DatabaseDraft, Journal
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.types import InputError

NAMES = ("CH3OH", "H2O", "C6H6", "N2", "CH3CH2OH", "CO2", "NH3")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A nano model with one energy and one force head; knows the elements 1..39."""
    return checkpoints.write(tmp_path_factory.mktemp("nano"), GemNetOCConfig(**NANO), {"only": {"energy_std": 2.0}})


@pytest.fixture(scope="module")
def structures() -> list[ase.Atoms]:
    """Molecules of many sizes, lone atoms among them, and a slab."""
    out = [ase.build.molecule(name) for name in NAMES * 2]
    for i, atoms in enumerate(out):
        atoms.rattle(0.05, seed=i)
        atoms.info |= {"name": f"molecule {i}", "number": i, "pair": np.array([i, 0.5])}
    slab = ase.build.fcc111("Cu", (2, 2, 1), vacuum=5, periodic=True)
    return [ase.Atoms("H"), *out, slab, ase.Atoms("C", positions=[[1.0, 2, 3]])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, structures):
    out = tmp_path_factory.mktemp("in")
    ase.io.write(out / "in.extxyz", structures)
    ase.io.write(out / "in.traj", structures)
    ase.io.write(out / "in.db", structures)
    return out


def run(checkpoint, source, out, *options):
    arguments = ["--checkpoint", str(checkpoint), "--structures", str(source), "--out", str(out)]
    assert predict.main([*arguments, "--batch-edges", "128", "--quiet", *options]) == 0
    return ase.io.read(out, ":")


@pytest.fixture(scope="module")
def predicted(checkpoint, folder):
    """The extxyz of a run with features that nothing disturbed."""
    return run(checkpoint, folder / "in.extxyz", folder / "out.extxyz", "--features", str(folder / "atoms.npz"))


def assert_same(ours, theirs):
    assert [str(a.symbols) for a in ours] == [str(a.symbols) for a in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-4)


def test_the_order_is_kept_and_everything_is_finite(predicted, structures, folder):
    assert [str(a.symbols) for a in predicted] == [str(a.symbols) for a in structures]
    assert [a.info.get("name") for a in predicted] == [a.info.get("name") for a in structures]
    for atoms in predicted:
        assert np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()
    assert not list(folder.glob(".*")), "drafts and journal are gone"


def test_a_lone_atom_has_no_force(predicted):
    assert not predicted[0].get_forces().any()
    assert not predicted[-1].get_forces().any()


@pytest.mark.parametrize(("source", "target"), [("in.traj", "out.db"), ("in.db", "again.extxyz")])
def test_formats_agree(checkpoint, folder, predicted, source, target):
    assert_same(run(checkpoint, folder / source, folder / target), predicted)


def test_a_database_keeps_numbers_and_info(checkpoint, folder, predicted, structures):
    out = folder / "rows.db"
    run(checkpoint, folder / "in.extxyz", out)
    rows = list(ase.db.connect(out).select())
    assert [row.id for row in rows] == list(range(1, len(structures) + 1))
    assert rows[1].data["name"] == "molecule 0" and rows[3].data["number"] == 2
    np.testing.assert_array_equal(rows[3].data["pair"], [2, 0.5])


def test_batches_are_packed_and_shapes_are_used_again(checkpoint, structures):
    predictor = prediction.Predictor(restore_model(str(checkpoint)), None, 128)
    records = [prediction.Record(i, a, s) for i, (a, s) in enumerate(_systems(structures))]
    parts = list(prediction.chunks(records, 40))
    assert [r.index for part in parts for r in part] == list(range(len(records)))
    assert len(parts) > 2 and max(sum(len(r.atoms) for r in part[:-1]) for part in parts) < 40
    for part in [*parts, *parts]:
        predictor.predict("memory", part)
    assert predictor.n_compiled <= 3


def test_structures_in_memory_are_named_where_they_are_refused(checkpoint):
    predictor = prediction.Predictor(restore_model(str(checkpoint)), None, 128)
    assert predictor.predict_atoms([]) == []
    with pytest.raises(InputError, match="structures: structure 1: .* was not trained on U"):
        predictor.predict_atoms([ase.Atoms("H"), ase.Atoms("U")])
    with pytest.raises(InputError, match="mine: structure 0: tag 5"):
        predictor.predict_atoms([ase.Atoms("H", tags=[5])], "mine")


def _systems(structures):
    return [(atoms, system_from_atoms("memory", str(i), atoms, "")) for i, atoms in enumerate(structures)]


def test_features_are_what_the_heads_read(checkpoint, folder, predicted, structures):
    data = load_features(folder / "atoms.npz")
    counts = [len(atoms) for atoms in structures]
    np.testing.assert_array_equal(data.structure, np.repeat(np.arange(len(structures)), counts))
    np.testing.assert_array_equal(data.element, np.concatenate([a.numbers for a in structures]))
    model = restore_model(str(checkpoint))
    predictor = prediction.Predictor(model, None, 512)
    (pair,) = _systems([structures[1]])
    stream = predictor._plan("memory", [prediction.Record(0, *pair)])
    pure = split_model(model.module)
    own = jax.jit(pure.node_features)(pure.params, pure.constants, next(iter(stream.batches())))
    np.testing.assert_allclose(data.features[data.structure == 1], own[: len(structures[1])], atol=1e-5)


@pytest.mark.parametrize(("target", "torn"), [("out.extxyz", False), ("out.db", True)])
def test_a_killed_run_continues(checkpoint, folder, predicted, tmp_path, monkeypatch, capsys, target, torn):
    """Killed between chunks, or (torn) after the files grew and before the journal said so."""
    monkeypatch.setattr(prediction.Predictor, "chunk_atoms", 40)
    count, predictions, commit = itertools.count(), prediction.Predictor.predict, Journal.commit

    def die_before(self, path, chunk):
        if next(count) == 1:
            raise KeyboardInterrupt
        return predictions(self, path, chunk)

    def die_within(self, n, chunks):
        if next(count) == 1:
            for name, draft in self.drafts.items():
                draft.append(chunks[name])
            raise KeyboardInterrupt
        commit(self, n, chunks)

    monkeypatch.setattr(*((Journal, "commit", die_within) if torn else (prediction.Predictor, "predict", die_before)))
    options = ["--features", str(tmp_path / "atoms.npz")]
    with pytest.raises(SystemExit):
        run(checkpoint, folder / "in.extxyz", tmp_path / target, *options)
    assert not (tmp_path / target).exists() and not (tmp_path / "atoms.npz").exists()
    monkeypatch.setattr(Journal, "commit", commit)
    seen = []
    monkeypatch.setattr(prediction.Predictor, "predict",
                        lambda self, path, chunk: seen.extend(chunk) or predictions(self, path, chunk))
    ours = run(checkpoint, folder / "in.extxyz", tmp_path / target, *options)
    assert_same(ours, predicted)
    assert seen[0].index > 0 and len(seen) + seen[0].index == len(predicted), "what was done is not done again"
    data, whole = load_features(tmp_path / "atoms.npz"), load_features(folder / "atoms.npz")
    np.testing.assert_array_equal(data.structure, whole.structure)
    np.testing.assert_allclose(data.features, whole.features, atol=1e-4)
    if target.endswith(".db"):
        assert [row.id for row in ase.db.connect(tmp_path / target).select()] == list(range(1, len(predicted) + 1))
    assert not list(tmp_path.glob(".*"))


def test_a_draft_of_other_settings_is_not_continued(tmp_path):
    out = tmp_path / "out.extxyz"
    journal = Journal(out, {"out": BytesDraft(out)}, {"--checkpoint": "a"})
    journal.commit(3, {"out": b"text"})
    with pytest.raises(InputError, match="was begun with --checkpoint a"):
        Journal(out, {"out": BytesDraft(out)}, {"--checkpoint": "b"})
    with pytest.raises(InputError, match="shorter than its journal"):
        (tmp_path / ".out.extxyz.part").write_bytes(b"te")
        Journal(out, {"out": BytesDraft(out)}, {"--checkpoint": "a"})
    (tmp_path / ".out.extxyz.journal").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Journal(out, {"out": BytesDraft(out)}, {"--checkpoint": "a"})


def test_mixed_periodicity_is_a_slab_without_images_along_z(checkpoint, tmp_path):
    slab = ase.build.fcc111("Cu", (2, 2, 2), vacuum=20, periodic=True)
    slab.set_tags(0)  # ase.build numbers the layers; such tags are refused
    slab.rattle(0.05, seed=3)
    mixed = slab.copy()
    mixed.pbc = (True, True, False)
    thin = mixed.copy()
    thin.cell[2] = (0.3, -0.2, 4.0)  # not a period: its length must not matter
    ase.io.write(tmp_path / "in.extxyz", [slab, mixed, thin])
    whole, *others = run(checkpoint, tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    assert_same(others, [whole] * 2)
    assert (others[0].pbc == (True, True, False)).all()


def test_a_slab_without_a_third_vector_has_no_volume_and_no_stress(tmp_path):
    """The calculator says so as well; what was written was per area times 1 A."""
    head = HeadSpec(kind="gradient", stress=True)
    model = checkpoints.write_finetuned(tmp_path / "ft", GemNetOCConfig(**NANO), head, {"property": "forces"})
    slab = ase.build.fcc111("Cu", (2, 2, 1), vacuum=5, periodic=True)
    slab.set_tags(0)
    flat = slab.copy()
    flat.pbc, flat.cell[2] = (True, True, False), 0
    ase.io.write(tmp_path / "in.db", [slab, flat])
    whole, thin = run(model, tmp_path / "in.db", tmp_path / "out.extxyz")
    assert "stress" in whole.calc.results and "stress" not in thin.calc.results


@pytest.mark.parametrize("kind", ["scalar", "class", "direct"])
def test_what_a_fine_tuned_model_predicts_is_written(tmp_path, kind):
    head = HeadSpec(kind="direct" if kind == "direct" else "scalar", n_class=2 * (kind == "class"))
    record = {"property": "target_gap", "energy_std": 1e-3, "energy_mean": 100.0}
    checkpoints.write_finetuned(tmp_path / "ft", GemNetOCConfig(**NANO), head, record)
    ase.io.write(tmp_path / "in.extxyz", [ase.build.molecule(name) for name in NAMES[:3]])
    out = run(tmp_path / "ft", tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    for atoms in out:
        if kind == "direct":
            assert list(atoms.calc.results) == ["forces"]
        elif kind == "scalar":
            assert atoms.calc is None and atoms.info["target_gap"] == pytest.approx(100, abs=2)
        else:
            assert atoms.info["target_gap"] in (0, 1) and 0.5 <= atoms.info["target_gap_probability"] <= 1


def test_labels_of_the_input_are_not_read_and_not_copied(checkpoint, tmp_path):
    atoms = ase.build.molecule("H2O")
    atoms.info["energy"] = np.nan  # beside the results below: ASE refuses to write both
    atoms.calc = SinglePointCalculator(atoms, energy=np.nan, forces=np.full((3, 3), np.nan))
    ase.io.write(tmp_path / "in.traj", [atoms])
    out, = run(checkpoint, tmp_path / "in.traj", tmp_path / "out.extxyz")
    assert np.isfinite(out.get_potential_energy()) and np.isfinite(out.get_forces()).all()


def test_a_database_gives_back_ids_info_and_arrays(tmp_path):
    first = ase.build.molecule("H2O")
    first.info = {"key_value_pairs": {"sid": 7, "group": "w"}, "data": {"gap": 1.5}, "unique_id": "abc", "name": "x"}
    first.new_array("label", np.array(["a b", "", "c"], dtype=object))
    first.new_array("velocity", np.ones((3, 3)))
    draft = DatabaseDraft(tmp_path / "out.db")
    draft.append([(first, predict._row(first))])
    draft.finish()
    row = ase.db.connect(tmp_path / "out.db").get(1)
    assert row.key_value_pairs == {"sid": 7, "group": "w"}
    assert (row.data["gap"], row.data["name"], row.data["unique_id"]) == (1.5, "x", "abc")
    atoms, system = next(ase_file.read_atoms(tmp_path / "out.db"))
    assert system.group == "w"
    text = frames.for_extxyz(atoms)
    assert text.info["sid"] == 7 and text.info["label"] == '_JSON ["a b", "", "c"]'
    np.testing.assert_array_equal(text.arrays["velocity"], np.ones((3, 3)))


def refused(checkpoint, source, out, capsys, *options):
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, source, out, *options)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and len(text.splitlines()) == 1, text
    assert not out.exists()
    return text


def _gold(path):
    ase.io.write(path, [ase.build.molecule("H2O"), ase.Atoms("Au2", [[0, 0, 0], [0, 0, 2.5]])])


def _flat_cell(path):
    atoms = ase.Atoms("Cu", cell=[3, 3, 0], pbc=True)
    ase.io.write(path, [ase.build.molecule("H2O"), atoms])


def _cut(path):
    ase.io.write(path, [ase.build.molecule("H2O")] * 3)
    path.write_text(path.read_text()[:-40])


def _same_place(path):
    ase.io.write(path, ase.Atoms("H2", np.zeros((2, 3))))


BAD = {
    "empty.extxyz": (lambda p: p.write_text(""), "empty.extxyz"),
    "empty.db": (lambda p: p.write_bytes(b""), "empty.db"),
    "empty.traj": (lambda p: p.write_bytes(b""), "empty.traj"),
    "gold.extxyz": (_gold, r"gold.extxyz: structure 1: .* not trained on Au; leave it out"),
    "flat.extxyz": (_flat_cell, r"flat.extxyz: structure 1: .*zero volume; give every periodic direction"),
    "cut.extxyz": (_cut, r"cut.extxyz: structure 2: ASE cannot read it"),
    "text.extxyz": (lambda p: p.write_text("not a structure\n" * 9), r"text.extxyz: ASE cannot read it .*not what"),
    "text.db": (lambda p: p.write_text("not a database\n" * 9), r"text.db: ASE cannot read it .*not what its name"),
    "text.traj": (lambda p: p.write_text("not a trajectory\n" * 9), r"text.traj: ASE cannot read it .*not what"),
    "missing.extxyz": (lambda p: None, r"missing.extxyz: no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_structures_are_refused_in_one_line(checkpoint, tmp_path, capsys, name):
    make, words = BAD[name]
    make(tmp_path / name)
    text = refused(checkpoint, tmp_path / name, tmp_path / "out.extxyz", capsys)
    assert re.search(words, text), text


def test_what_cannot_be_predicted_is_left_out_by_the_command_that_stopped_there(checkpoint, tmp_path, capsys):
    """Before, one such structure in a long file made everything that was done unusable: the file must not change."""
    good = [ase.build.molecule(name) for name in ("H2O", "CO2", "CH4", "NH3", "C2H2")]
    flat, same = ase.Atoms("Cu", cell=[3, 3, 0.1], pbc=True), ase.Atoms("H2", np.zeros((2, 3)))
    ase.io.write(tmp_path / "in.extxyz", [*good[:2], ase.Atoms("Au"), *good[2:4], same, flat, good[4]])
    out, features = tmp_path / "out.extxyz", ["--features", str(tmp_path / "atoms.npz")]
    text = refused(checkpoint, tmp_path / "in.extxyz", out, capsys, *features)
    assert "not trained on Au" in text and "with --on-failure skip the same command goes on without it" in text
    predicted = run(checkpoint, tmp_path / "in.extxyz", out, *features, "--on-failure", "skip")
    assert_same(predicted, run(checkpoint, _written(tmp_path / "good.extxyz", good), tmp_path / "all.extxyz"))
    record = json.loads((tmp_path / "out.extxyz.failures.json").read_text())
    assert [failure["structure"] for failure in record["failures"]] == [2, 5, 6]
    reasons = [failure["reason"] for failure in record["failures"]]
    assert "not trained on Au" in reasons[0] and "in one place" in reasons[1] and "cells away" in reasons[2]
    assert sorted(set(np.load(tmp_path / "atoms.npz")["structure"])) == [0, 1, 3, 4, 7]
    assert not list(tmp_path.glob(".*")), "no draft is left"


def _written(path, structures):
    ase.io.write(path, structures)
    return path


def test_a_file_of_which_nothing_can_be_predicted_is_refused(checkpoint, tmp_path, capsys):
    ase.io.write(tmp_path / "in.extxyz", [ase.Atoms("Au"), ase.Atoms("Pt")])
    text = refused(checkpoint, tmp_path / "in.extxyz", tmp_path / "out.extxyz", capsys, "--on-failure", "skip")
    assert "no structure can be predicted, the first since" in text and "not trained on Au" in text


@pytest.mark.parametrize(("options", "words"), [
    (["--batch-edges", "0"], "--batch-edges must be positive"),
    (["--features", "x.txt"], "must be .npz"),
    (["--task", "other"], "choose one of them"),
])  # fmt: skip
def test_bad_settings_are_refused(checkpoint, folder, tmp_path, capsys, options, words):
    assert words in refused(checkpoint, folder / "in.extxyz", tmp_path / "out.extxyz", capsys, *options)


def test_the_output_must_be_a_known_format_in_a_folder_that_can_be_written(checkpoint, folder, tmp_path, capsys):
    assert ".extxyz, .xyz, .db" in refused(checkpoint, folder / "in.extxyz", tmp_path / "out.cif", capsys)
    assert "cannot write" in refused(checkpoint, folder / "in.extxyz", tmp_path / "none" / "out.extxyz", capsys)
    assert "cannot write" in refused(checkpoint, folder / "in.extxyz", tmp_path / "none" / "out.db", capsys)


def test_a_text_draft_is_cut_to_its_journal(tmp_path):
    out = tmp_path / "out.extxyz"
    journal = Journal(out, {"out": BytesDraft(out)}, {})
    journal.commit(1, {"out": b"whole\n"})
    journal.drafts["out"].append(b"ha")
    again = Journal(out, {"out": BytesDraft(out)}, {})
    assert again.done == 1
    again.commit(1, {"out": b"second\n"})
    assert not out.exists()
    again.finish()
    assert out.read_bytes() == b"whole\nsecond\n" and list(tmp_path.iterdir()) == [out]


def test_a_database_draft_is_cut_to_its_journal(tmp_path):
    draft = DatabaseDraft(tmp_path / "out.db")
    draft.rewind(0)
    draft.append([(ase.Atoms("H"), {"n": i}) for i in range(3)])
    draft.rewind(2)
    draft.append([(ase.Atoms("He"), {})])
    draft.finish()
    assert [(row.id, row.formula) for row in ase.db.connect(tmp_path / "out.db").select()] == [
        (1, "H"), (2, "H"), (3, "He")]  # fmt: skip


def test_streams_of_mixed_sizes_share_few_shapes(checkpoint):
    """Molecules, cells and lone atoms in any order, in chunks of all sizes; only shapes are compiled."""
    rng, predictor = np.random.default_rng(0), prediction.Predictor(restore_model(str(checkpoint)), None, 512)
    predictor._run = CompiledShapes(lambda state, batch: batch.energy)
    makers = [lambda: ase.build.molecule("CH3OH"), lambda: ase.build.molecule("C6H6"), lambda: ase.Atoms("H"),
              lambda: ase.build.bulk("Cu", cubic=True), lambda: ase.build.bulk("Al", cubic=True) * (2, 1, 1),
              lambda: ase.build.molecule("C60")]  # fmt: skip
    for chunk in range(12):
        own = [makers[i]() for i in rng.integers(0, 1 + chunk % len(makers), 1 + 10 * (chunk % 4))]
        for atoms in own:
            atoms.rattle(0.1, rng=rng)
        stream = predictor._plan("memory", [prediction.Record(i, a, s) for i, (a, s) in enumerate(_systems(own))])
        predictor._run(stream.budget, None, stream.batch(0))
    assert predictor.n_compiled <= 6


def test_atoms_outside_the_cell_are_predicted_and_stay_where_they_are(checkpoint, tmp_path):
    inside = ase.build.bulk("Cu", cubic=True)
    inside.rattle(0.05, seed=0)
    outside = inside.copy()
    outside.positions += [[21, 0, 0], [0, -33, 5], [0, 0, 0], [7, 7, 9]] @ np.asarray(inside.cell)
    ase.io.write(tmp_path / "in.extxyz", [inside, outside])
    one, two = run(checkpoint, tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    np.testing.assert_allclose(two.positions, outside.positions, atol=1e-6)
    # Atoms 120 A away have float32 positions that are off by 4e-6 A once they are back in the cell.
    assert two.get_potential_energy() == pytest.approx(one.get_potential_energy(), rel=5e-5)
    np.testing.assert_allclose(two.get_forces(), one.get_forces(), atol=5e-4)  # the file and the reader round


def test_a_flat_cell_is_named(checkpoint, tmp_path, capsys):
    flat = ase.Atoms("Cu", cell=[0.2, 9, 9], pbc=True)
    ase.io.write(tmp_path / "in.extxyz", [ase.build.molecule("H2O"), flat])
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    assert "in.extxyz: structure 1: neighbours within 5 A lie 24 cells away" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, full_disk):
    def journal():
        return Journal(tmp_path / "out.xyz", {"out": BytesDraft(tmp_path / "out.xyz")}, {})

    begun = journal()
    begun.commit(1, {"out": b"x" * 50_000})
    with full_disk(), pytest.raises(InputError, match="File too large; free disk space and run the same command again"):
        begun.commit(1, {"out": b"y" * 90_000})
    again = journal()
    assert again.done == 1
    again.commit(1, {"out": b"y" * 90_000})
    again.finish()
    assert (tmp_path / "out.xyz").read_bytes() == b"x" * 50_000 + b"y" * 90_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.xyz"]


def test_a_killed_prediction_does_not_go_on_with_other_weights(tmp_path):
    def save(value):
        with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
            store.save(1, {"w": np.full(3, value)}, {"made": value}, "best")

    save(1.0)
    xyz = tmp_path / "in.extxyz"
    xyz.write_text("1\n\nH 0 0 0\n")
    predictor = SimpleNamespace(model=SimpleNamespace(path=str(tmp_path / "run")), record=SimpleNamespace(name="only"))
    config = predict.PredictConfig(checkpoint="run", structures=str(xyz), out=str(tmp_path / "out.extxyz"))
    predict.open_outputs(config, predictor)[1].commit(1, {"failures": {}, "out": b"1"})
    assert predict.open_outputs(config, predictor)[1].done == 1
    save(2.0)
    with pytest.raises(InputError, match="begun with --checkpoint"):
        predict.open_outputs(config, predictor)

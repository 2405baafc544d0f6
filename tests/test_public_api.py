"""`import jaxatoms`: the public names, what they do, and that importing them costs nothing before they are used."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import ase.build
import numpy as np
import pytest
from fixtures import checkpoints, toys
from fixtures.torch_models import TINY_GEMNET

import jaxatoms
from jaxatoms import api
from jaxatoms.data.references import LinearReference

ROOT = Path(__file__).resolve().parents[1]
UNITS = {"energy_std": 2.0, "force_std": 3.0, "reference": {str(z): -1.0 * z for z in (1, 6, 7, 8)}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("api"), TINY_GEMNET, {"one": UNITS, "two": UNITS})


def test_importing_the_package_loads_neither_jax_nor_numpy():
    code = "import sys, jaxatoms; print(jaxatoms.__version__, *{'jax', 'numpy', 'ase'} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [jaxatoms.__version__]


def test_public_names_exist_and_are_documented():
    assert set(jaxatoms.__all__) <= set(dir(jaxatoms))
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "python.md").read_text()
    for name in jaxatoms.__all__:
        value = getattr(jaxatoms, name)
        assert isinstance(value, str) or value.__doc__
        assert re.search(rf"\b{name}\b", pages), f"docs/python.md does not name {name}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxatoms.nothing  # noqa: B018


def test_a_model_predicts_in_the_order_given_and_as_its_calculator(checkpoint):
    model = jaxatoms.load_model(checkpoint, "two")
    assert (model.task, model.tasks, model.kind) == ("two", ["one", "two"], "tasks")
    assert model.elements == ["H", "C", "N", "O"] and "task 'two', 4 elements" in repr(model)
    structures = [ase.build.molecule(name) for name in ("CH3OH", "H2O", "C6H6", "NH3")]
    found = model.predict(structures, features=True)
    for atoms, prediction in zip(structures, found, strict=True):
        assert prediction.forces.shape == (len(atoms), 3)
        assert prediction.features.shape == (len(atoms), TINY_GEMNET.emb_size_atom)
        atoms.calc = model.calculator()
        assert atoms.get_potential_energy() == pytest.approx(prediction.energy, rel=2e-6)
        np.testing.assert_allclose(atoms.get_forces(), prediction.forces, atol=1e-4)
    (alone,) = jaxatoms.predict(checkpoint, structures[1], "two")
    assert alone.energy == pytest.approx(found[1].energy, abs=1e-4) and alone.features is None


def test_a_models_calculator_has_its_weights_and_precision(checkpoint):
    model = jaxatoms.load_model(checkpoint, "two", raw_weights=True, precision="bfloat16")
    assert {"raw_weights": True, "precision": "bfloat16"}.items() <= model.calculator()._settings.items()
    assert model.calculator(dtype="float64")._settings["precision"] == "float32", "what was trained in less, too"
    with pytest.raises(jaxatoms.InputError, match="precision='bfloat16' multiplies in less than float64"):
        model.calculator(dtype="float64", precision="bfloat16")
    with pytest.raises(jaxatoms.InputError, match="^precision must be float32, tf32, bfloat16 or None, got 'fp16'$"):
        jaxatoms.load_model(checkpoint, "two", precision="fp16")


def test_a_model_of_several_heads_asks_for_one(checkpoint):
    with pytest.raises(jaxatoms.InputError, match="has the heads one, two; choose one"):
        jaxatoms.load_model(checkpoint)
    with pytest.raises(jaxatoms.InputError, match="structure 0: .*was not trained on Cu"):
        jaxatoms.load_model(checkpoint, "one").predict(ase.build.bulk("Cu"))


def test_data_sets_open_by_name(tmp_path):
    data = jaxatoms.open_dataset("demo:organic", cache_dir=tmp_path)
    assert len(data) > 100 and np.isfinite(data.take(np.arange(3)).energy).all()
    with pytest.raises(jaxatoms.InputError, match="unknown dataset 'demo:organics'; did you mean"):
        jaxatoms.open_dataset("demo:organics", cache_dir=tmp_path)


def test_the_index_of_rows_is_the_distance_of_their_gaussians(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)) * [1, 1, 2] + [1, 0, 0]
    found = jaxatoms.similarity(x, y)
    assert found.low < float(found) == found.value < found.high
    assert found.value == pytest.approx(1 + 1, abs=0.2)  # 1 of the means, (2 - 1)^2 of the widths
    assert str(found).startswith("CSI of upstream to downstream: ")
    np.savez(tmp_path / "y.npz", features=y, structure=np.arange(len(y)))
    assert jaxatoms.similarity(x, tmp_path / "y.npz").value == pytest.approx(found.value, rel=1e-6)
    with pytest.raises(jaxatoms.InputError, match="3 and 2 features"):
        jaxatoms.similarity(x, y[:, :2])
    with pytest.raises(jaxatoms.InputError, match="the downstream set needs checkpoint="):
        jaxatoms.similarity(x, "demo:aspirin")


MOLECULES = [ase.build.molecule(name) for name in ("CH3OH", "C6H6", "CH3CH2OH", "CH4", "CH3NO2", "C2H6") * 2]


def test_the_index_of_a_data_set_and_of_structures(checkpoint, tmp_path):
    one = jaxatoms.load_model(checkpoint, "one")
    rows = np.concatenate([found.features for found in one.predict(MOLECULES, features=True)])
    found = jaxatoms.similarity("demo:organic", rows, checkpoint=checkpoint, n=60, cache_dir=tmp_path)
    assert found.upstream == "demo:organic" and 0 < found.low <= found.value <= found.high


@pytest.fixture
def heads(monkeypatch):
    """`heads(field=(one, two))` puts a model without a network, with such records, in place of every checkpoint."""
    model = toys.restore("heads")("toy")

    def put(**fields):
        values = [dict(zip(fields, own, strict=True)) for own in zip(*fields.values(), strict=True)] or [{}, {}]
        tasks = tuple(dataclasses.replace(t, **own) for t, own in zip(model.meta.tasks, values, strict=True))
        changed = model._replace(meta=dataclasses.replace(model.meta, tasks=tasks))
        monkeypatch.setattr(api, "restore_model", lambda path, **_: changed)
        return changed

    return put


def test_structures_are_compared_without_naming_a_head(heads):
    heads()
    rows = np.concatenate([atoms.positions[:, :1] * np.ones(8, np.float32) for atoms in MOLECULES])  # as the toy's
    for task in (None, "two"):
        found = jaxatoms.similarity(MOLECULES, rows + 1, checkpoint="toy", task=task)
        assert found.plain == pytest.approx(8, rel=1e-4)  # the squared length of the shift


def test_structures_need_a_head_where_the_graphs_of_the_heads_differ(heads):
    heads(cutoff=(5.0, 6.0), max_neighbors=(30, 20))
    words = r"one 5 A and 30 neighbours, two 6 A and 20 neighbours\); choose one with task="
    with pytest.raises(jaxatoms.InputError, match=words):
        jaxatoms.similarity(MOLECULES, MOLECULES, checkpoint="toy")
    assert jaxatoms.similarity(MOLECULES, MOLECULES, checkpoint="toy", task="two").plain == pytest.approx(0, abs=1e-6)
    for few in ([], MOLECULES[0]):
        with pytest.raises(jaxatoms.InputError, match=r"the upstream set holds [01] structures; give at least two"):
            jaxatoms.similarity(few, MOLECULES, checkpoint="toy", task="two")


def test_structures_go_to_a_head_that_knows_their_elements(heads):
    seen = [np.isin(np.arange(121), elements) for elements in ((1, 6), (1, 6, 29))]
    model = heads(reference=tuple(LinearReference(np.zeros(121), known) for known in seen))
    given = {"C6H6": "one", "Cu": "two", "H2O": "one"}  # the last is refused, whichever head has it
    assert {name: api._any_head(model, [ase.Atoms(name)]) for name in given} == given

"""The linear probe finds what is linear in the features, in the units of the tables, and nothing else."""

import ase.build
import ase.io
import jax
import numpy as np
import pytest

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream_task import open_downstream
from jaxatoms.data.passes import plan_pass
from jaxatoms.inference.evaluation import BATCH_EDGES
from jaxatoms.runs.linear_probe import Probe

CHARGES = {1: 0.2, 6: -0.3, 7: 0.1, 8: -0.5}


def _molecules():
    for i in range(60):
        atoms = ase.build.molecule(["CH3OH", "CH4", "H2O", "NH3", "C2H6"][i % 5])
        atoms.rattle(0.1, seed=i)
        charges = np.array([CHARGES[z] for z in atoms.numbers])
        arm = atoms.positions - atoms.get_center_of_mass()
        atoms.arrays["q"] = charges
        atoms.info |= {"dipole": charges @ arm, "mean_charge": charges.mean(), "group": f"{i}"}
        energy = -10 * charges.sum() - 5 * len(atoms)
        atoms.info |= {"other": float(np.random.default_rng(i).normal()), "energy": energy}
        yield atoms


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "molecules.extxyz"
    ase.io.write(path, list(_molecules()))
    return f"file:{path}"


def _probe(name, targets, cache):
    task, split = open_downstream(name, cache_dir=str(cache), targets=targets, cutoff=3.0)
    corpus, shapes = Corpus((task,)), []
    val = list(plan_pass(corpus, samples_of(0, split.val), BATCH_EDGES, shapes).batches())
    elements = lambda unit, batch: unit * jax.nn.one_hot(batch.atomic_numbers, 10)[:, 1:] * batch.node_mask[:, None]  # noqa: E731
    return Probe(elements, (1.0,), corpus, val, shapes).errors(0, split.train, split.test)


def test_what_is_linear_in_the_elements_is_found(name, tmp_path):
    found = _probe(name, "mean_charge,q,dipole,other", tmp_path)
    for quantity in ("mean_charge", "q", "dipole"):
        assert max(found[quantity]["validation"], found[quantity]["test"]) < 1e-4, quantity
    assert found["other"]["test"] > 0.3  # it is noise


def test_a_scalar_alone_and_energies_are_in_the_units_of_the_tables(name, tmp_path):
    assert _probe(name, "mean_charge", tmp_path)["value"]["test"] < 1e-4
    noise = _probe(name, "other", tmp_path)["value"]
    values = [atoms.info["other"] for atoms in _molecules()]
    assert 0.4 * np.std(values) < noise["test"] < 2 * np.std(values)
    assert _probe(name, "energy", tmp_path)["value"]["test"] < 1.0  # meV


def test_forces_alone_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path))
    task, split = open_downstream("demo:aspirin")
    assert Probe(None, (), Corpus((task,)), [], []).errors(0, split.train, split.test) == {}

"""Downstream sets as training data: published constants and graphs, or constants of their own train split."""

from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data import loader
from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import Graph, downstream
from jaxatoms.data.downstream_task import _check_labels, check_any_label, open_downstream
from jaxatoms.data.splits import Split
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.types import InputError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def test_a_set_without_a_recipe_is_normalised_by_its_train_split(cache):
    task, split = open_downstream("demo:aspirin", cache_dir=cache)
    assert len(np.unique(np.concatenate(split))) == len(task.store) == sum(map(len, split))
    _, graphs, targets = Corpus((task,)).build(samples_of(0, split.train))
    assert targets.forces.std() == pytest.approx(1, rel=1e-3)
    assert abs(targets.energy.mean()) < 1e-3 and targets.energy.std() == pytest.approx(1, rel=1e-3)
    assert len(graphs.main.senders) > 0


def test_a_scalar_set_gives_its_column_and_no_forces(cache):
    task, split = open_downstream("demo:gap", cache_dir=cache)
    records = split.train[:9]
    targets = Corpus((task,)).build(samples_of(0, records))[2]
    values = task.store.column("target_gap")[records]
    np.testing.assert_allclose(targets.energy * task.std + task.mean, values, rtol=1e-5)
    assert np.isnan(targets.forces).all()


def test_sizes_make_a_split_and_too_large_ones_are_refused(cache):
    _, split = open_downstream("demo:aspirin", cache_dir=cache, sizes=(95, 5))
    assert [len(part) for part in split][:2] == [95, 5]
    with pytest.raises(InputError, match="asked for 990 training structures, but the training part .* has 800"):
        open_downstream("demo:aspirin", cache_dir=cache, sizes=(990, 10))


def test_a_missing_target_names_what_there_is(cache):
    with pytest.raises(InputError, match="no column 'target_dipole'; it has target_gap"):
        open_downstream("demo:gap", cache_dir=cache, targets="target_dipole")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_without_labels_is_refused(part):
    """Published constants do not need the labels, training does."""
    split = Split(*np.arange(9).reshape(3, 3))
    values = np.arange(9.0)
    values[getattr(split, part)] = np.nan
    values[0 if part != "train" else 3] = np.nan  # single gaps are fine
    store = SimpleNamespace(column=lambda name: values)
    with pytest.raises(InputError, match=f"qm9:U_0: no structure of the {part} split has a value of target_U_0"):
        _check_labels("qm9:U_0", downstream("qm9:U_0"), store, split)


def test_a_replayed_set_without_anything_that_is_learnt_is_refused(cache):
    task, split = open_downstream("demo:aspirin", cache_dir=cache)
    energies = SimpleNamespace(
        take=lambda records: SimpleNamespace(forces=np.full((len(records), 3), np.nan)),
        column=lambda name: np.zeros(9),
    )
    with pytest.raises(InputError, match="^more: no structure has forces, which are learnt; leave it out$"):
        check_any_label("more", task.facts, energies, np.arange(9))
    check_any_label("more", task.facts, task.store, split.train)


def test_a_published_set_has_no_other_target(cache):
    with pytest.raises(InputError, match="names its own target"):
        open_downstream("qm9:U_0", cache_dir=cache, targets="target_mu", data_root="nowhere")


def test_large_structures_get_fewer_neighbours(cache):
    task, split = open_downstream("demo:peptide", cache_dir=cache)
    systems = task.store.take(split.train[:3])
    assert Graph(12.0, conditional=True).neighbors([200, 201, 301]).tolist() == [30, 10, 5]
    few, many = (len(GEMNET_GRAPHS.build_batch(systems, 12.0, k).main.senders) for k in (5, 30))
    assert few < many


def test_steps_per_epoch_are_rounded_up_as_in_the_reference(cache):
    task, split = open_downstream("demo:aspirin", cache_dir=cache)
    batches = loader.TrainBatches(Corpus((task,)), samples_of(0, split.train[:10]), [], 3, 0, 0.0, 4, round_up=True)
    seen = [batches.indices(step) for step in range(batches.total_steps)]
    assert [len(step) for step in seen] == [4, 4, 2] * 3, "the last batch of an epoch holds what is left of it"
    for epoch in range(3):
        assert sorted(np.concatenate(seen[3 * epoch :][:3])) == list(range(10))


@pytest.mark.filterwarnings("ignore:.*names no groups")
def test_elements_that_only_the_test_holds_are_said(tmp_path):
    """Their structures have no energy to be compared with; forces count."""
    structures = []
    for i in range(10):
        atoms = molecule("H2O" if i < 9 else "NH3")
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * i, forces=np.eye(len(atoms), 3) * i)
        structures.append(atoms)
    ase.io.write(tmp_path / "own.extxyz", structures)
    np.savez(tmp_path / "split.npz", train=np.arange(7), val=[7, 8], test=[9])
    with pytest.warns(UserWarning, match="hold N, which have no reference energy since"):
        task, split = open_downstream(f"file:{tmp_path / 'own.extxyz'}", cache_dir=str(tmp_path / "cache"),
                                      targets="energy,forces", rule=str(tmp_path / "split.npz"))  # fmt: skip
    targets = Corpus((task,)).build(samples_of(0, split.test))[2]
    assert np.isnan(targets.energy).all() and np.isfinite(targets.forces).all()
    alone, _ = open_downstream(f"file:{tmp_path / 'own.extxyz'}", cache_dir=str(tmp_path / "cache"), targets="energy",
                               rule=str(tmp_path / "split.npz"))  # fmt: skip
    assert np.isnan(Corpus((alone,)).build(samples_of(0, split.test))[2].energy).all()

"""Samples of several tasks become structures, graphs and targets, each with its task's own constants."""

import numpy as np
import pytest

from jaxatoms.data import loader
from jaxatoms.data.corpus import Corpus, Samples, UpstreamTask, draw_over_tasks, samples_of
from jaxatoms.data.references import LinearReference, Normalization
from jaxatoms.data.store import write_store
from jaxatoms.types import InputError, System


def _systems(n, energy, seed, forces=True):
    rng = np.random.default_rng(seed)
    for i in range(n):
        n_node = 4 + i % 3
        yield System(
            atomic_numbers=np.array([8, 1, 1, 6, 1, 1][:n_node], np.uint8),
            positions=rng.uniform(0, 4, (n_node, 3)),
            energy=energy + 0.01 * i,
            forces=rng.normal(size=(n_node, 3)) if forces else None,
        )


def _reference(per_element):
    coeff, seen = np.zeros(121), np.zeros(121, bool)
    for z, value in per_element.items():
        coeff[z], seen[z] = value, True
    return LinearReference(coeff, seen)


@pytest.fixture
def corpus(tmp_path):
    """Two tasks: a labelled one near -1e4 eV, and one without forces, with a shorter cutoff."""
    one = write_store(_systems(6, -1e4, 0), tmp_path / "one", {})
    two = write_store(_systems(5, -50.0, 1, forces=False), tmp_path / "two", {})
    first = _reference({1: -10.0, 6: -1000.0, 8: -2000.0})
    second = _reference({1: -1.0, 6: -5.0, 8: -9.0})
    return Corpus(
        (
            UpstreamTask("one", one, first, Normalization(2.0, 0.5), cutoff=8.0),
            UpstreamTask("two", two, second, Normalization(4.0, 3.0), cutoff=2.0, max_neighbors=15),
        )
    )


def _samples(*pairs):
    task, record = zip(*pairs)
    return Samples(np.array(task, np.int32), np.array(record, np.int64))


def test_energies_lose_the_reference_in_float64_and_are_scaled_by_their_own_task(corpus):
    _, _, targets = corpus.build(_samples((0, 3), (1, 2)))
    # Record 3 has 4 atoms (OHHC), record 2 has 6 (OHHCHH).
    expected = [(-1e4 + 0.03 - (-2000 - 1000 - 20)) / 2, (-50 + 0.02 - (-9 - 5 - 4)) / 4]
    np.testing.assert_allclose(targets.energy, expected, rtol=1e-7)
    assert targets.energy.dtype == np.float32
    shift = corpus.build(_samples((0, 0), (0, 3)))[2].energy
    np.testing.assert_allclose(shift[1] - shift[0], 0.015, atol=4e-4)  # float32 spacing of the residual alone


def test_forces_are_divided_by_the_std_and_missing_ones_stay_nan(corpus):
    systems, _, targets = corpus.build(_samples((0, 1), (1, 0)))
    own = np.repeat(targets.task, systems.n_node) == 0
    np.testing.assert_allclose(targets.forces[own], systems.forces[own] / 0.5, rtol=1e-6)
    assert np.isnan(targets.forces[~own]).all()


def test_structures_come_out_ordered_by_task_and_otherwise_as_asked(corpus):
    mixed = _samples((1, 4), (0, 5), (1, 0), (0, 1))
    systems, _, targets = corpus.build(mixed)
    np.testing.assert_array_equal(targets.task, [0, 0, 1, 1])
    np.testing.assert_array_equal(systems.n_node, [6, 5, 5, 4])
    np.testing.assert_array_equal(corpus.n_node(mixed), [5, 6, 4, 5])


def test_each_structure_has_the_graph_it_has_alone(corpus):
    together = corpus.build(_samples((0, 2), (1, 2)))[1]
    alone = [corpus.build(_samples(pair))[1] for pair in ((0, 2), (1, 2))]
    for name in ("main", "a2ee2a", "qint", "a2a"):
        edges = [getattr(g, name) for g in alone]
        assert len(getattr(together, name).senders) == sum(len(e.senders) for e in edges)
    assert len(alone[1].main.senders) < len(alone[0].main.senders), "each task has its own cutoff"


def test_edge_dropout_follows_the_generator(corpus):
    def senders(seed):
        return corpus.build(_samples((0, 2), (0, 5)), np.random.default_rng(seed), 0.3)[1].a2a.senders

    np.testing.assert_array_equal(senders(0), senders(0))
    full = corpus.build(_samples((0, 2), (0, 5)))[1].a2a.senders
    assert len(senders(0)) < len(full)


def test_an_element_without_reference_names_the_record(corpus, tmp_path):
    odd = System(np.array([8, 1, 1, 79], np.uint8), np.eye(4, 3), energy=-1.0)
    store = write_store(iter([odd]), tmp_path / "odd", {})
    task = UpstreamTask("odd", store, corpus.tasks[0].reference, Normalization(1.0, 1.0), cutoff=8.0)
    with pytest.raises(InputError, match="odd: structure 0: element Au"):
        Corpus((task,)).build(samples_of(0, np.array([0])))


def test_samples_select_and_repeat():
    samples = samples_of(2, [5, 7, 9])
    picked = samples.at(np.array([2, 0, 2]))
    np.testing.assert_array_equal(picked.record, [9, 5, 9])
    np.testing.assert_array_equal(picked.task, [2, 2, 2])


def test_a_draw_over_tasks_gives_each_its_share_at_random():
    samples = Samples(np.repeat(np.arange(3, dtype=np.int32), [500, 40, 3]), np.arange(543))
    drawn = draw_over_tasks(samples, 60, seed=1)
    counts = np.bincount(drawn.task)
    assert counts[2] == 3 and abs(counts[0] - counts[1]) <= 1 and counts.sum() == 60
    assert len(set(drawn.record)) == 60 and drawn.record[drawn.task == 0].max() > 250
    again, other = draw_over_tasks(samples, 60, seed=1), draw_over_tasks(samples, 60, seed=2)
    np.testing.assert_array_equal(drawn.record, again.record)
    assert not np.array_equal(drawn.record, other.record)
    assert len(draw_over_tasks(samples, 1000, seed=0).record) == 543


def test_a_cell_that_reaches_too_far_is_found_before_the_first_step(tmp_path):
    def systems():
        for i in range(40):
            cell = np.diag([4.0, 4.0, 0.3 if i == 31 else 4.0])
            yield System(np.full(4, 29, np.uint8), np.eye(4, 3) * 0.2, cell=cell, pbc=(True, True, True), energy=0.0)

    store = write_store(systems(), tmp_path / "flat", {"path": "made.xyz"})
    everything = LinearReference(np.zeros(121), np.ones(121, bool))
    corpus = Corpus((UpstreamTask("flat", store, everything, Normalization(1.0, 1.0), cutoff=6.0),))
    assert loader.largest_structure(corpus, samples_of(0, np.arange(31))) == 4
    with pytest.raises(InputError, match="made.xyz: structure 31: neighbours within 6 A lie .* cells away"):
        loader.largest_structure(corpus, samples_of(0, np.arange(40)))

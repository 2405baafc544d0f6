"""Parts of a step: balanced, complete, of one shape, the same whoever builds them."""

from collections import Counter

import numpy as np
import pytest

from jaxatoms.data import loader, packing, shards
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.graphs.batch import budget_of, collate, empty_structures
from jaxatoms.types import InputError

DROPOUT = 0.1


@pytest.fixture(scope="module")
def organic(tmp_path_factory):
    """(corpus, training samples, sizes) of the shipped molecules."""
    cache = str(tmp_path_factory.mktemp("cache"))
    data = prepare_task("demo:organic", "all", 0, val_samples=10, data_root=None, cache_dir=cache)
    corpus, train, _ = make_corpus([data])
    return corpus, train, loader.measure(corpus, train, DROPOUT)


def _sharded(organic, n_part, own, *, packed=False, headroom=packing.HEADROOM, n=100, epochs=2):
    corpus, samples, sizes = organic
    some = samples.at(np.arange(n))
    args = dict(corpus=corpus, samples=some, epochs=epochs, seed=3, edge_dropout=DROPOUT)
    if packed:
        edges = loader.measure(corpus, some, DROPOUT, limit=None)["n_main"]
        whole = loader.TrainBatches(budgets=packing.packed_budgets(sizes, 4000, 20, edges), weights=edges, **args)
        groups = shards.drawn_groups(sizes, 0, 4000)
    else:
        edges = shards.expected_edges(sizes, corpus.n_node(some))
        whole = loader.TrainBatches(budgets=packing.fixed_budgets(sizes, 20, 20, 10), batch_size=20, **args)
        groups = shards.drawn_groups(sizes, 20, None)
    budgets = shards.part_budgets(sizes, groups, n_part, 20, 2, headroom)
    return shards.ShardedBatches(whole, edges, budgets, n_part, own)


@pytest.mark.parametrize("n_part", [1, 2, 3, 8])
def test_no_part_exceeds_the_mean_by_more_than_one_item(n_part):
    rng = np.random.default_rng(0)
    for n in (n_part, 20, 333):
        weights = rng.integers(0, 500, n)
        parts = shards.balanced_parts(weights, n_part)
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        assert n < n_part or all(len(part) for part in parts)
        loads = [(weights[part] + 1).sum() for part in parts]
        assert max(loads) <= (weights + 1).sum() / n_part + weights.max() + 1
        assert all((np.diff(part) > 0).all() for part in parts)


def test_structures_without_edges_are_spread_too():
    parts = shards.balanced_parts(np.zeros(8, int), 4)
    assert [len(part) for part in parts] == [2, 2, 2, 2]


@pytest.mark.parametrize("packed", [False, True])
def test_four_processes_visit_every_sample_once_per_epoch(organic, packed):
    processes = [_sharded(organic, 8, (2 * i, 2 * i + 1), packed=packed) for i in range(4)]
    visits = Counter()
    for step in range(processes[0].total_steps):
        for process in processes:
            parts = process.parts(step)
            visits.update(np.concatenate([parts[i] for i in process.own]).tolist())
    assert visits == Counter(dict.fromkeys(range(100), 2))


def test_parts_do_not_depend_on_who_builds_them(organic):
    together = _sharded(organic, 4, range(4))
    together.budgets = together.budgets[-1:]
    apart = [_sharded(organic, 4, (i,)) for i in range(4)]
    for step in (0, 7):
        parts = together.batch(step)
        assert len({budget_of(part) for part in parts}) == 1
        for i, process in enumerate(apart):
            (own,) = process.batch(step)
            for a, b in zip(own, parts[i], strict=True):
                for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
                    np.testing.assert_array_equal(x, y)


def test_a_structure_loses_the_same_edges_alone_and_in_company(organic):
    batches = _sharded(organic, 1, (0,)).whole
    index = batches.indices(2)
    systems, graphs, _ = batches.build(2, index)
    ends = np.cumsum(systems.n_node)
    for i in (0, 5, 19):
        alone = batches.build(2, index[i : i + 1])[1].main
        own = (graphs.main.receivers >= ends[i] - systems.n_node[i]) & (graphs.main.receivers < ends[i])
        np.testing.assert_array_equal(graphs.main.senders[own] - (ends[i] - systems.n_node[i]), alone.senders)


def test_dropout_differs_between_steps_and_keeps_its_rate(organic):
    batches = _sharded(organic, 1, (0,)).whole
    index = np.arange(100)
    counts = [len(batches.build(step, index)[1].a2a.senders) for step in (0, 1)]
    batches.edge_dropout = 0.0
    everything = len(batches.build(0, index)[1].a2a.senders)
    assert counts[0] != counts[1]
    assert counts[0] / everything == pytest.approx(1 - DROPOUT, abs=0.01)


def test_a_part_that_outgrows_its_budget_stops_a_run_of_several_processes(organic):
    with pytest.raises(InputError, match="part-headroom"):
        for step in range(10):
            _sharded(organic, 4, (1,), headroom=0.5).batch(step)
    with pytest.warns(UserWarning, match="one more shape"):
        for step in range(10):
            _sharded(organic, 4, range(4), headroom=0.5).batch(step)


def test_an_empty_batch_is_all_padding_and_groups_are_filled_up_with_it(organic):
    corpus, samples, _ = organic
    batches = loader.eval_batches(corpus, samples.at(np.arange(30)), 10)
    groups = loader.grouped(batches, 2, (0, 1))
    assert [len(group) for group in groups] == [2, 2]
    blank = groups[1][1]
    assert budget_of(blank) == budget_of(batches[0])
    assert not blank.graph_mask.any() and not blank.node_mask.any() and not blank.energy_mask.any()
    assert collate(*empty_structures(), budget_of(blank)).swap.min() == len(blank.swap)

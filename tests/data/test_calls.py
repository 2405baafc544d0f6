"""Calls of several steps: every step once, none across a validation, the same after a resume; one shape for all."""

import numpy as np
import pytest

from jaxatoms.data import calls, loader, packing, shards
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.graphs.batch import budget_of


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Batches of four molecules in several shapes."""
    cache = str(tmp_path_factory.mktemp("cache"))
    data = prepare_task("demo:organic", "all", 0, val_samples=10, data_root=None, cache_dir=cache)
    corpus, samples, _ = make_corpus([data])
    sizes = loader.measure(corpus, samples, 0.1)
    budgets = packing.fixed_budgets(sizes, 4, 20, 100, alike=3)
    return loader.TrainBatches(corpus, samples, budgets, epochs=1, seed=0, edge_dropout=0.1, batch_size=4), sizes


@pytest.mark.parametrize(("total", "every", "length"), [(20, 5, 4), (23, 100, 4), (12, 4, 4), (7, 2, 3), (9, 3, 1)])
def test_every_step_is_made_once_and_validations_lie_between_calls(total, every, length):
    stops = (every, 2 * every)
    plan = list(calls.plan_calls(0, total, stops, length))
    assert [s for c in plan for s in range(c.first, c.first + c.length)] == list(range(total))
    ends = {c.first + c.length for c in plan}
    assert ends >= {total, *range(every, total, every)} and {c.length for c in plan} <= {length, 1}
    singles = sum(c.length == 1 for c in plan)
    assert length == 1 or singles <= (total // every + 1) * (length - 1), "as few single steps as possible"
    for i, call in enumerate(plan):
        assert list(calls.plan_calls(call.first, total, stops, length)) == plan[i:], "a resumed run differs"


def test_a_stack_holds_the_batches_of_its_steps_in_one_shape(source):
    batches, _ = source
    seen = set()
    for first in range(0, 30, 3):
        stacked = calls.StackedBatches(batches).batch(calls.Call(first, 3))
        alone = [batches.batch(step) for step in range(first, first + 3)]
        assert stacked.swap.shape == (3, max(len(b.swap) for b in alone))
        assert stacked.graph_mask.sum() == 12 and stacked.node_mask.sum() == sum(b.node_mask.sum() for b in alone)
        for i, one in enumerate(alone):
            np.testing.assert_array_equal(stacked.positions[i][stacked.node_mask[i]], one.positions[one.node_mask])
            np.testing.assert_array_equal(stacked.energy[i][stacked.graph_mask[i]], one.energy[one.graph_mask])
        assert loader.occupancy(stacked)[0] == sum(loader.occupancy(b)[0] for b in alone)
        seen.add(stacked.swap.shape)
    assert 1 < len(seen) <= len(batches.budgets)


def test_levels_for_calls_waste_fewer_slots_than_those_for_single_batches(source):
    _, sizes = source
    rng = np.random.default_rng(1)
    groups = rng.integers(len(sizes["n_main"]), size=(4000, 4))
    need = packing.largest_of(packing.group_sizes(sizes, groups), 8)["n_main"]

    def slots(budgets):
        levels = np.array([b.n_main for b in budgets])
        return levels[np.minimum(np.searchsorted(levels, need), len(levels) - 1)].sum()

    single, calls_of_8 = (packing.fixed_budgets(sizes, 4, 20, 100, alike=alike) for alike in (1, 8))
    assert slots(calls_of_8) < slots(single)


def test_parts_of_a_device_are_stacked_below_its_steps(source):
    whole, sizes = source
    edges = shards.expected_edges(sizes, whole.corpus.n_node(whole.samples))
    groups = shards.drawn_groups(sizes, 4, None)
    budgets = shards.part_budgets(sizes, groups, 4, 20, 2, alike=3)
    sharded = shards.ShardedBatches(whole, edges, budgets, 2, (0, 1), accumulate=2)
    devices = calls.StackedBatches(sharded).batch(calls.Call(5, 3))
    assert len(devices) == 2 and all(d.swap.shape[:2] == (3, 2) for d in devices)
    assert sum(d.graph_mask.sum() for d in devices) == 12
    for i, step in enumerate(range(5, 8)):
        energies = np.concatenate([d.energy[i][d.graph_mask[i]] for d in devices])
        one = whole.batch(step)
        np.testing.assert_array_equal(np.sort(energies), np.sort(one.energy[one.graph_mask]))
    assert budget_of(sharded.whole.batch(0)) in whole.budgets

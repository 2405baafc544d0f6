"""The stream of batches: exact repetition from (seed, step), nothing lost, workers that cannot hang a run."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxatoms.data import loader, packing
from jaxatoms.data.corpus import Samples
from jaxatoms.data.passes import plan_pass
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.graphs.batch import BudgetOverflow, collate
from jaxatoms.io import is_running
from jaxatoms.types import InputError

ROOT = Path(__file__).resolve().parents[2]
DROPOUT = 0.1


@pytest.fixture(scope="module")
def organic(tmp_path_factory):
    """(corpus, training samples) of the shipped molecules."""
    cache = str(tmp_path_factory.mktemp("cache"))
    data = prepare_task("demo:organic", "all", 0, val_samples=10, data_root=None, cache_dir=cache)
    corpus, train, _ = make_corpus([data])
    return corpus, train


@pytest.fixture(scope="module")
def sizes(organic):
    return loader.measure(*organic, DROPOUT)


def _fixed(organic, sizes, n, batch_size, epochs, seed=0):
    corpus, samples = organic
    budgets = packing.fixed_budgets(sizes, batch_size, 20, 1000)
    return loader.TrainBatches(corpus, samples.at(np.arange(n)), budgets, epochs, seed, DROPOUT, batch_size)


def _packed(organic, sizes, n, epochs, seed=0, n_main=1500):
    corpus, samples = organic
    some = samples.at(np.arange(n))
    weights = loader.measure(corpus, some, DROPOUT, limit=None)["n_main"]
    budgets = packing.packed_budgets(sizes, n_main, 20, weights)
    return loader.TrainBatches(corpus, some, budgets, epochs, seed, DROPOUT, weights=weights)


def _leaves(batch):
    for field in batch:
        yield from (x for x in (field if isinstance(field, tuple) else (field,)) if x is not None)


def _assert_equal(one, two):
    for a, b in zip(_leaves(one), _leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def _differ(one, two):
    pairs = list(zip(_leaves(one), _leaves(two), strict=True))
    return any(a.shape != b.shape or (a != b).any() for a, b in pairs)


@pytest.mark.parametrize("make", [lambda *a: _fixed(*a, 60, 10, 2), lambda *a: _packed(*a, 60, 2)])
def test_a_batch_depends_on_seed_and_step_alone(organic, sizes, make):
    forward, backward = make(organic, sizes), make(organic, sizes)
    steps = range(forward.total_steps)
    ahead = {step: forward.batch(step) for step in steps}
    for step in reversed(steps):
        _assert_equal(backward.batch(step), ahead[step])
    other = dataclasses.replace(forward, seed=1)
    assert _differ(other.batch(0), ahead[0]) and _differ(ahead[0], ahead[1])


def test_edge_dropout_differs_between_epochs_of_the_same_structures(organic, sizes):
    batches = _fixed(organic, sizes, 10, 10, 2)
    totals = [loader.occupancy(batches.batch(step))[0] for step in (0, 1)]
    assert sorted(batches.indices(0)) == sorted(batches.indices(1)) == list(range(10))
    assert totals[0] != totals[1]


@pytest.mark.parametrize(("n", "batch_size", "epochs"), [(60, 10, 3), (20, 20, 4), (12, 1, 2)])
def test_every_structure_comes_exactly_once_per_epoch_where_the_batch_divides_n(
    organic, sizes, n, batch_size, epochs
):
    batches = _fixed(organic, sizes, n, batch_size, epochs)
    assert batches.total_steps == n // batch_size * epochs
    per_epoch = n // batch_size
    for epoch in range(epochs):
        seen = np.concatenate([batches.indices(epoch * per_epoch + s) for s in range(per_epoch)])
        assert sorted(seen.tolist()) == list(range(n))


def test_each_epoch_has_its_own_order(organic, sizes):
    batches = _fixed(organic, sizes, 60, 10, 2)
    first, second = (np.concatenate([batches.indices(e * 6 + s) for s in range(6)]) for e in (0, 1))
    assert (first != second).any()


def test_where_the_batch_does_not_divide_n_the_stream_has_no_gap(organic, sizes):
    batches = _fixed(organic, sizes, 53, 10, 4)
    assert batches.total_steps == 53 // 10 * 4
    stream = np.concatenate([batches.indices(step) for step in range(batches.total_steps)])
    for first in range(0, len(stream) - 52, 53):
        assert sorted(stream[first : first + 53].tolist()) == list(range(53)), "an epoch lost or repeated a structure"
    counts = Counter(stream.tolist())
    assert len(stream) == 200 and set(counts.values()) <= {3, 4}


def test_packed_epochs_hold_every_structure_once_and_keep_to_their_edges(organic, sizes):
    batches = _packed(organic, sizes, 200, 2)
    for epoch in range(2):
        first, end = (0, *batches._ends)[epoch], batches._ends[epoch]
        groups = [batches.indices(step) for step in range(first, end)]
        assert sorted(np.concatenate(groups).tolist()) == list(range(200))
        assert max(batches.weights[g].sum() for g in groups) <= batches.budgets[0].n_main


def test_a_batch_holds_the_structures_its_step_names(organic, sizes):
    corpus, samples = organic
    batches = _fixed(organic, sizes, 60, 10, 2)
    chosen = samples.at(batches.indices(7))
    batch = batches.batch(7)
    np.testing.assert_array_equal(np.bincount(batch.node_graph[batch.node_mask]), corpus.n_node(chosen))
    energy = corpus.build(chosen)[2].energy
    np.testing.assert_array_equal(batch.energy[:10], energy)


def test_batches_take_the_smallest_budget_that_holds_them(organic, sizes):
    batches, used = _fixed(organic, sizes, 480, 10, 1), set()
    for step in range(batches.total_steps):
        batch = batches.batch(step)
        place = [b.n_main for b in batches.budgets].index(len(batch.swap))
        used.add(place)
        if place:
            parts = batches.build(step, batches.indices(step))
            with pytest.raises(BudgetOverflow):
                collate(*parts, batches.budgets[place - 1])
    assert len(used) > 2, "almost all went into one budget"


def test_a_batch_over_every_budget_gets_a_shape_of_its_own_and_says_so(organic, sizes):
    batches = _fixed(organic, sizes, 60, 10, 1)
    small = [dataclasses.replace(b, n_a2a=64) for b in batches.budgets]
    with pytest.warns(UserWarning, match=r"step 0: n_a2a=\d+, over 64; one more shape is compiled"):
        batch = dataclasses.replace(batches, budgets=small).batch(0)
    whole = batches.batch(0)
    np.testing.assert_array_equal(batch.positions[batch.node_mask], whole.positions[whole.node_mask])
    assert len(batch.a2a.senders) < 1.25 * len(whole.a2a.senders) + 64 and len(batch.swap) == small[-1].n_main


def test_a_batch_larger_than_the_data_is_refused(organic, sizes):
    with pytest.raises(InputError, match="batch of 100 is larger than the 60 structures"):
        _fixed(organic, sizes, 60, 100, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetch_keeps_the_order_with_a_thread_and_with_processes(organic, sizes, workers):
    batches = _fixed(organic, sizes, 60, 10, 2)
    got = list(loader.prefetch(batches.batch, range(3, 11), workers))
    assert len(got) == 8
    for step, batch in zip(range(3, 11), got, strict=True):
        _assert_equal(batch, batches.batch(step))


def _fail_at_five(step):
    if step == 5:
        raise InputError(f"record {step} is broken")
    return step


def _die_at_two(step):
    if step == 2:
        os._exit(3)
    return step


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_in_a_worker_surfaces_at_its_step_with_its_own_message(workers):
    stream, seen = loader.prefetch(_fail_at_five, range(100), workers), []
    with pytest.raises(InputError, match=r"^record 5 is broken$"):
        for step in stream:
            seen.append(step)
    assert seen == [0, 1, 2, 3, 4]


def _stop_at_two(step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    return step


def test_a_killed_worker_process_ends_the_stream_instead_of_hanging():
    began = time.monotonic()
    with pytest.raises(InputError, match="was killed .* fewer --workers, and go on with --resume"):
        list(loader.prefetch(_die_at_two, range(50), 2))
    assert time.monotonic() - began < 60


def test_what_asks_the_command_to_stop_does_not_end_its_workers():
    """Ctrl-C and a batch system signal the whole group; the run saves with the batches that the workers still build."""
    assert list(loader.prefetch(_stop_at_two, range(6), 1)) == list(range(6))


def test_workers_end_when_the_run_is_killed():
    code = (
        "import time\nfrom jaxatoms.data.loader import prefetch\n"
        "print(next(prefetch(eval, 9 * ['__import__(\"os\").getpid()'], 1)), flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(worker)


def test_a_stream_left_early_lets_the_program_end():
    code = (
        "from jaxatoms.data.loader import prefetch\nimport time\n"
        "stream = prefetch(lambda s: time.sleep(0.05) or s, range(10**6))\n"
        "print(next(stream), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_a_range_without_steps_gives_no_batches():
    assert list(loader.prefetch(_fail_at_five, range(0))) == []


def test_evaluation_batches_have_one_shape_and_all_samples_in_order(organic):
    corpus, samples = organic
    some = samples.at(np.arange(47))
    batches = loader.eval_batches(corpus, some, 10)
    assert len({tuple(x.shape for x in _leaves(b)) for b in batches}) == 1
    assert [int(b.graph_mask.sum()) for b in batches] == [10, 10, 9, 9, 9]
    energy = np.concatenate([b.energy[b.graph_mask] for b in batches])
    np.testing.assert_array_equal(energy, corpus.build(some)[2].energy)
    for one, two in zip(batches, loader.eval_batches(corpus, some, 10), strict=True):
        _assert_equal(one, two)


def test_measuring_everything_keeps_the_order_of_the_samples(organic):
    corpus, samples = organic
    measured = loader.measure(corpus, samples, DROPOUT, limit=None)
    np.testing.assert_array_equal(measured["n_node"], corpus.n_node(samples))
    some = loader.measure(corpus, samples, DROPOUT, limit=50)
    assert {len(v) for v in some.values()} == {50}


def test_samples_may_repeat_a_record(organic):
    corpus, _ = organic
    twice = Samples(np.zeros(3, np.int32), np.array([4, 4, 9]))
    energy = corpus.build(twice)[2].energy
    assert energy[0] == energy[1] != energy[2]


def test_occupancy_counts_real_edges(organic, sizes):
    corpus, samples = organic
    batches = _fixed(organic, sizes, 60, 10, 1)
    some = samples.at(np.arange(5))
    systems, graphs, targets = corpus.build(some)
    batch = loader.collate_smallest(systems, graphs, targets, batches.budgets)
    assert loader.occupancy(batch) == (len(graphs.main.senders), len(batch.swap))


def test_a_pass_over_no_samples_has_no_batch(organic):
    """A set without any label of a quantity ended a run at its start with a traceback."""
    corpus, samples = organic
    assert list(plan_pass(corpus, samples.at(np.arange(0)), 100, []).batches()) == []

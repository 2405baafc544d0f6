"""One step: descends, averages, donates its input, compiles once per shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.losses import pretraining_loss

from jaxatoms.data import calls, loader, packing, shards
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.scale_fit import fit_scale_factors
from jaxatoms.models.registry import make_model, split_model
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.losses.terms import mean_loss
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_eval_step, make_train_step

NANO = GemNetOCConfig(
    num_blocks=1, emb_size_atom=8, emb_size_edge=8, emb_size_trip_in=4, emb_size_trip_out=4, emb_size_quad_in=4,
    emb_size_quad_out=4, emb_size_aint_in=4, emb_size_aint_out=4, emb_size_rbf=4, emb_size_cbf=4, emb_size_sbf=4,
    num_spherical=2, num_radial=16, num_before_skip=0, num_after_skip=0, num_concat=0, num_atom=0,
    num_output_afteratom=0, num_atom_emb_layers=0, num_global_out_layers=0,
)  # fmt: skip
SCALES = LossScales(jnp.ones(1), 10 * jnp.ones(1))
TERMS = pretraining_terms(SCALES)


@pytest.fixture(scope="module")
def organic(tmp_path_factory):
    """(corpus, training samples) of the shipped molecules."""
    cache = str(tmp_path_factory.mktemp("cache"))
    data = prepare_task("demo:organic", "all", 0, val_samples=10, data_root=None, cache_dir=cache)
    corpus, train, _ = make_corpus([data])
    return corpus, train


@pytest.fixture(scope="module")
def batches(organic):
    """Batches of a run, in several shapes."""
    corpus, samples = organic
    budgets = packing.fixed_budgets(loader.measure(corpus, samples, 0.1), 4, 20, 100)
    return loader.TrainBatches(corpus, samples, budgets, epochs=1, seed=0, edge_dropout=0.1, batch_size=4)


def _toy(params, constants, batch: GraphBatch, edge_dropout=0.0):
    """A model small enough to compile in no time: energies per element, forces along the positions."""
    per_atom = params["energy"][batch.atomic_numbers] * constants["scale"]
    energy = jnp.zeros(batch.energy.shape).at[batch.node_graph].add(jnp.where(batch.node_mask, per_atom, 0))
    forces = batch.positions * params["force"]
    return ModelOutput(energy[:, None], forces[..., None])


def _toy_state(config=OptimConfig(lr=0.01, warmup_steps=0), **options):
    params = {"energy": jnp.zeros(121), "force": jnp.zeros(3)}
    optimizer = make_optimizer(config, 100)
    step = make_train_step(_toy, optimizer, TERMS, ema_decay=0.9, edge_dropout=0.0, **options)
    return init_state(params, optimizer), {"scale": jnp.ones(())}, step


def test_the_average_starts_at_the_parameters_in_memory_of_its_own(batches):
    state, *_ = _toy_state()
    assert int(state.step) == 0
    for raw, mean in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(raw, mean)
        assert raw.unsafe_buffer_pointer() != mean.unsafe_buffer_pointer(), "donation would free both"


def test_the_average_follows_its_formula_without_bias_correction(batches):
    state, constants, step = _toy_state()
    ema = jax.tree.map(np.array, state.ema)
    for i in range(5):
        state, _ = step(state, constants, batches.batch(i))
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * np.asarray(p), ema, state.params)
    assert int(state.step) == 5
    for ours, expected in zip(jax.tree.leaves(state.ema), jax.tree.leaves(ema), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8)


def test_the_old_state_is_donated_and_the_constants_are_not(batches):
    state, constants, step = _toy_state()
    new, _ = step(state, constants, batches.batch(0))
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.ema, state.opt_state)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((new, constants)))


def test_metrics_are_those_of_the_parameters_before_the_update(batches):
    state, constants, step = _toy_state()
    before = make_eval_step(_toy, TERMS)(state.params, constants, batches.batch(0))
    _, metrics = step(state, constants, batches.batch(0))
    assert set(metrics) == {"loss", "energy_loss", "force_loss", "grad_norm"}
    assert float(metrics["loss"]) == pytest.approx(mean_loss(TERMS, before), rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["energy_loss"] + metrics["force_loss"]), rel=1e-6)


def test_the_reported_norm_is_that_of_the_gradient_before_clipping(batches):
    state, constants, step = _toy_state(OptimConfig(lr=0.01, warmup_steps=0, clip_norm=1e-3))
    batch = jax.device_put(batches.batch(0))

    def loss(params):
        out = _toy(params, constants, batch)
        return pretraining_loss(out.energy, out.forces, batch, SCALES)[0]

    expected = float(optax.global_norm(jax.grad(loss)(state.params)))
    _, metrics = step(state, constants, batch)
    assert float(metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5) and expected > 1e-3


def test_a_step_compiles_once_per_shape_and_never_again(batches):
    state, constants, step = _toy_state()
    made = [batches.batch(i) for i in range(60)]
    shapes = {len(b.swap): b for b in made}
    assert len(shapes) > 2
    for batch in shapes.values():
        state, _ = step(state, constants, jax.device_put(batch))
    assert step._cache_size() == len(shapes)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for batch in made[:30]:
            state, metrics = step(state, constants, jax.device_put(batch))
    finally:
        jax.monitoring.clear_event_listeners()
    assert step._cache_size() == len(shapes) and compiled == []
    assert np.isfinite(float(metrics["loss"]))


def _stacked(batches, first, length):
    return calls.StackedBatches(batches).batch(calls.Call(first, length))


def test_a_call_of_several_steps_makes_the_updates_of_single_ones(batches):
    batches = dataclasses.replace(batches, budgets=batches.budgets[-1:])
    (single, constants, step), (state, _, many) = _toy_state(), _toy_state(steps_per_call=4)
    losses = []
    for i in range(8):
        single, metrics = step(single, constants, batches.batch(i))
        losses.append(metrics)
    called = []
    for first in (0, 4):
        state, metrics = many(state, constants, _stacked(batches, first, 4))
        called += [{name: values[i] for name, values in metrics.items()} for i in range(4)]
    assert many._cache_size() == 1 and int(state.step) == 8
    for one, two in zip(*map(jax.tree.leaves, ((single, losses), (state, called))), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-9)


def test_calls_compile_once_per_shape(batches):
    state, constants, many = _toy_state(steps_per_call=3)
    shapes = set()
    for first in range(0, 60, 3):
        stacked = _stacked(batches, first, 3)
        shapes.add(stacked.swap.shape)
        state, _ = many(state, constants, stacked)
    assert many._cache_size() == len(shapes) <= len(batches.budgets)


def _in_parts(batches, accumulate):
    """The same steps, each in `accumulate` parts on one device."""
    corpus, samples = batches.corpus, batches.samples
    sizes = loader.measure(corpus, samples, batches.edge_dropout)
    groups = shards.drawn_groups(sizes, batches.batch_size, None)
    budgets = shards.part_budgets(sizes, groups, accumulate, 20, 1)
    edges = shards.expected_edges(sizes, corpus.n_node(samples))
    return shards.ShardedBatches(batches, edges, budgets, 1, [0], accumulate)


def test_accumulated_batches_are_one_large_batch(batches):
    large = dataclasses.replace(batches, batch_size=12, budgets=batches.budgets[-1:])
    large.budgets = packing.fixed_budgets(loader.measure(large.corpus, large.samples, 0.1), 12, 20, 100, shapes=1)
    (whole, constants, step), (state, _, parts) = _toy_state(), _toy_state(accumulate=3)
    for i in range(5):
        whole, expected = step(whole, constants, large.batch(i))
        (batch,) = _in_parts(large, 3).batch(i)
        state, metrics = parts(state, constants, batch)
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), rel=1e-6), name
    for one, two in zip(*map(jax.tree.leaves, (whole.params, state.params)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


def test_parts_with_unequal_numbers_of_labels_count_by_structure(batches):
    """A mean of the parts' means would be another number."""
    large = dataclasses.replace(batches, batch_size=12)
    (batch,) = _in_parts(large, 3).batch(0)
    some = np.array(batch.energy_mask)
    some[0] = False  # no energies in the first part
    batch = batch._replace(energy_mask=some)
    state, constants, step = _toy_state(accumulate=3)
    _, metrics = step(state, constants, batch)
    expected = np.abs(batch.energy[some]).sum() / some.sum()
    assert float(metrics["energy_loss"]) == pytest.approx(expected, rel=1e-6)


def test_calls_of_accumulated_steps(batches):
    parts = _in_parts(dataclasses.replace(batches, batch_size=12), 3)
    (single, constants, step), (state, _, many) = _toy_state(accumulate=3), _toy_state(accumulate=3, steps_per_call=2)
    for i in range(2):
        single, expected = step(single, constants, parts.batch(i)[0])
    state, metrics = many(state, constants, calls.StackedBatches(parts).batch(calls.Call(0, 2))[0])
    assert float(metrics["loss"][1]) == pytest.approx(float(expected["loss"]), rel=1e-6)


def test_equal_states_and_batches_give_equal_results(batches):
    results = []
    for _ in range(2):
        state, constants, step = _toy_state()
        for i in range(3):
            state, metrics = step(state, constants, batches.batch(i))
        results.append(jax.tree.map(np.asarray, (state, metrics)))
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, two)


def test_evaluation_does_not_depend_on_how_structures_are_batched(organic):
    """Some structures lack labels, so batches differ in how many they have."""
    corpus, samples = organic
    some = samples.at(np.linspace(0, len(samples.record) - 1, 24).astype(int))  # small and large ones
    state, constants, _ = _toy_state()
    evaluate = make_eval_step(_toy, TERMS)
    totals = []
    for size in (3, 8, 24):
        batches = [_without_labels(batch) for batch in loader.eval_batches(corpus, some, size)]
        sums = [evaluate(state.params, constants, batch) for batch in batches]
        totals.append({k: sum(np.asarray(s[k], np.float64) for s in sums) for k in sums[0]})
    for other in totals[1:]:
        for name, value in totals[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, err_msg=name)
        assert mean_loss(TERMS, other) == pytest.approx(mean_loss(TERMS, totals[0]), rel=1e-5)
    whole = jax.device_put(_without_labels(loader.eval_batches(corpus, some, 24)[0]))
    out = _toy(state.params, constants, whole)
    assert mean_loss(TERMS, totals[0]) == pytest.approx(float(pretraining_loss(*out[:2], whole, SCALES)[0]), rel=1e-5)
    assert totals[0]["force_labels"] > 0 and 0 < totals[0]["energy_labels"] < 24 == len(some.record)


def _without_labels(batch: GraphBatch) -> GraphBatch:
    """The labels of larger structures alone."""
    size = (batch.node_table < len(batch.atomic_numbers)).sum(axis=1)
    return batch._replace(
        energy_mask=batch.energy_mask & (size > 9), force_mask=batch.force_mask & (size[batch.node_graph] > 11)
    )


@pytest.mark.slow
def test_gemnet_overfits_four_structures_with_one_compilation(organic):
    corpus, samples = organic
    (batch,) = loader.eval_batches(corpus, samples.at(np.array([50, 150, 250, 350])), 4)
    batch = jax.device_put(batch)
    model = make_model(NANO, 1, 0, Precision())
    fit_scale_factors(model, [batch], lambda _: None)
    pure = split_model(model)
    optimizer = make_optimizer(OptimConfig(lr=1e-2, warmup_steps=0, weight_decay=0.0), 300)
    step = make_train_step(pure.apply, optimizer, TERMS, ema_decay=0.99, edge_dropout=0.0)
    state, losses = init_state(pure.params, optimizer), []
    for _ in range(300):
        state, metrics = step(state, pure.constants, batch)
        losses.append(metrics["loss"])
    losses = np.array(losses)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}")
    assert np.isfinite(losses).all() and losses[-1] < 0.2 * losses[0]
    assert step._cache_size() == 1

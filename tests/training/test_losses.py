"""The loss is the published equation on what is labelled, and blind to padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.losses import pretraining_loss

from jaxatoms.graphs.batch import BatchBudget, Targets, collate
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.training.losses.energy import cross_entropy
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.forces import atom_weights, norm_by_structure
from jaxatoms.training.losses.pretraining import LossScales, structure_losses
from jaxatoms.training.losses.tasks import of_structures, own_task
from jaxatoms.training.losses.terms import Term, combined, label_counts, label_sums, mean_loss
from jaxatoms.types import Edges, Graphs, SystemBatch

COUNTS = np.array([3, 1, 4, 2], np.int32)
TASK = np.array([0, 1, 0, 1], np.int32)
SCALES = LossScales(jnp.array([1.0, 2.0]), jnp.array([10.0, 73.0]))
N = int(COUNTS.sum())


def _batch(energy, forces, fixed=None, n_graph=5, n_node=11, counts=COUNTS, task=TASK):
    """A padded batch without edges."""
    n = int(counts.sum())
    none = np.zeros(0, np.int32)
    edges = Edges(none, none, np.zeros((0, 3), np.int32))
    systems = SystemBatch(
        n_node=counts,
        atomic_numbers=np.ones(n, np.uint8),
        positions=np.zeros((n, 3), np.float32),
        forces=np.zeros((n, 3), np.float32),
        tags=np.full(n, 2, np.uint8),
        fixed=np.zeros(n, bool) if fixed is None else fixed,
        energy=np.zeros(len(counts)),
        cell=np.zeros((len(counts), 3, 3), np.float32),
        pbc=np.zeros((len(counts), 3), bool),
    )
    ones = dict.fromkeys(BatchBudget.__dataclass_fields__, 1)
    budget = BatchBudget(**ones | {"n_graph": n_graph, "n_node": n_node, "n_per_graph": 5})
    targets = Targets(energy.astype(np.float32), forces.astype(np.float32), task)
    return jax.device_put(collate(systems, Graphs(edges, none, edges, edges, edges), targets, budget))


def _case(seed=0, missing=True, **budget):
    """(energy predictions, force predictions, batch, labels) with some labels missing."""
    rng = np.random.default_rng(seed)
    energy, forces = rng.normal(size=4), rng.normal(size=(N, 3))
    if missing:
        energy[2] = np.nan
        forces[1, 2] = np.nan  # one component of an atom of structure 0
        forces[3] = np.nan  # the only atom of structure 1
    batch = _batch(energy, forces, np.arange(N) == 5, **budget)
    e_hat = np.zeros((batch.energy.shape[0], 2), np.float32)
    f_hat = np.zeros((batch.forces.shape[0], 3, 2), np.float32)
    e_hat[:4], f_hat[:N] = rng.normal(size=(4, 2)), rng.normal(size=(N, 3, 2))
    return e_hat, f_hat, batch, energy, forces


def _expected(e_hat, f_hat, energy, forces):
    """The equations, structure by structure, in float64."""
    e_terms, f_terms, start = [], [], 0
    for g, count in enumerate(COUNTS):
        t, own = TASK[g], slice(start, start + count)
        start += count
        if np.isfinite(energy[g]):
            e_terms.append(float(SCALES.energy[t]) * abs(float(e_hat[g, t]) - energy[g]))
        d = f_hat[own, :, t].astype(np.float64) - forces[own]
        norms = np.sqrt(((d + 1e-6) ** 2).sum(1))
        norms = norms[np.isfinite(norms)]
        if len(norms):
            f_terms.append(float(SCALES.forces[t]) * norms.mean())
    return np.mean(e_terms), np.mean(f_terms)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_equation_over_two_tasks(seed, missing):
    e_hat, f_hat, batch, energy, forces = _case(seed, missing)
    loss, parts = pretraining_loss(e_hat, f_hat, batch, SCALES)
    e, f = _expected(e_hat, f_hat, energy, forces)
    np.testing.assert_allclose(parts["energy_loss"], e, rtol=1e-5)
    np.testing.assert_allclose(parts["force_loss"], f, rtol=1e-5)
    np.testing.assert_allclose(loss, e + f, rtol=1e-5)


def test_the_force_term_averages_structures_not_atoms():
    counts, task = np.array([1, 4], np.int32), np.zeros(2, np.int32)
    forces = np.zeros((5, 3))
    forces[0] = [3, 0, 4]
    batch = _batch(np.zeros(2), forces, counts=counts, task=task)
    scales = LossScales(jnp.ones(1), jnp.ones(1))
    _, parts = pretraining_loss(np.zeros((5, 1), np.float32), np.zeros((11, 3, 1), np.float32), batch, scales)
    assert float(parts["force_loss"]) == pytest.approx(2.5, rel=1e-5)  # (5 + 0) / 2, over atoms it would be 1


def test_fixed_atoms_count_in_the_loss_but_not_in_the_reported_errors():
    forces = np.zeros((N, 3))
    forces[5] = 1.0
    batch = _batch(np.zeros(4), forces, np.arange(N) == 5)
    e_hat, f_hat = np.zeros((5, 2), np.float32), np.zeros((11, 3, 2), np.float32)
    assert float(pretraining_loss(e_hat, f_hat, batch, SCALES)[1]["force_loss"]) > 1
    sums = error_sums(ModelOutput(e_hat, f_hat), batch, 2)
    np.testing.assert_array_equal(sums["force_error"], [0, 0])
    np.testing.assert_array_equal(sums["force_count"], [3 * 6, 3 * 3])
    np.testing.assert_allclose(sums["all_force_error"], [3, 0])
    assert sum(sums["all_force_count"] - sums["force_count"]) == 3
    free = pretraining_loss(e_hat, f_hat, batch, SCALES, free_only=True)[1]["force_loss"]
    assert float(free) < 1e-3


def test_the_loss_and_its_gradient_are_blind_to_the_amount_of_padding():
    args = {"argnums": (0, 1), "has_aux": True}
    results = []
    for n_graph, n_node in ((5, 11), (9, 40)):
        e_hat, f_hat, batch, *_ = _case(0, n_graph=n_graph, n_node=n_node)
        e_hat[4:], f_hat[N:] = 7.0, -3.0  # whatever a model writes into padding
        (loss, _), (e_grad, f_grad) = jax.value_and_grad(pretraining_loss, **args)(e_hat, f_hat, batch, SCALES)
        results.append((float(loss), np.asarray(e_grad)[:4], np.asarray(f_grad)[:N]))
        assert not np.asarray(e_grad)[4:].any() and not np.asarray(f_grad)[N:].any()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-6)


def _gradient(e_hat, f_hat, batch):
    return jax.grad(lambda e, f: pretraining_loss(e, f, batch, SCALES)[0], argnums=(0, 1))(e_hat, f_hat)


@pytest.mark.parametrize("labels", ["some", "none", "met exactly"])
def test_the_gradient_is_never_nan(labels):
    e_hat, f_hat, batch, *_ = _case(1)
    if labels == "none":
        batch = _batch(np.full(4, np.nan), np.full((N, 3), np.nan))
        loss, _ = pretraining_loss(e_hat, f_hat, batch, SCALES)
        assert float(loss) == 0
    if labels == "met exactly":
        batch = _batch(np.zeros(4), np.zeros((N, 3)))
        e_hat, f_hat = np.zeros_like(e_hat), np.zeros_like(f_hat)
    for gradient in _gradient(e_hat, f_hat, batch):
        assert np.isfinite(gradient).all()


def test_the_heads_of_other_tasks_and_missing_labels_get_no_gradient():
    e_hat, f_hat, batch, *_ = _case(2)
    e_grad, f_grad = map(np.asarray, _gradient(e_hat, f_hat, batch))
    node_task = np.repeat(TASK, COUNTS)
    assert not e_grad[np.arange(4), 1 - TASK].any() and not e_grad[2].any()
    assert not f_grad[np.arange(N), :, 1 - node_task].any() and not f_grad[[1, 3]].any()
    labelled = np.setdiff1d(np.arange(N), [1, 3])
    assert f_grad[labelled, :, node_task[labelled]].all()


def test_own_task_picks_each_rows_entry():
    rng = np.random.default_rng(0)
    task = np.array([2, 0, 1, 2], np.int32)
    for shape in ((4, 3), (4, 5, 3)):
        values = rng.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(own_task(values, task), values[np.arange(4), ..., task])


def test_atom_weights_average_over_masked_atoms_and_leave_out_empty_graphs():
    _, _, batch, *_ = _case()
    mask = np.zeros(11, bool)
    mask[[0, 2, 4]] = True
    weights, some = atom_weights(jnp.array(mask), batch)
    means = np.bincount(batch.node_graph, np.arange(11.0) * weights, minlength=5)
    np.testing.assert_array_equal(means, [1, 0, 4, 0, 0])
    np.testing.assert_array_equal(some, [True, False, True, False, False])


def test_error_sums_give_the_mean_absolute_errors_of_each_task():
    e_hat, f_hat, batch, energy, forces = _case(3)
    sums = {k: np.asarray(v) for k, v in error_sums(ModelOutput(e_hat, f_hat), batch, 2).items()}
    node_task = np.repeat(TASK, COUNTS)
    for t in range(2):
        own = (t == TASK) & np.isfinite(energy)
        assert sums["energy_count"][t] == own.sum()
        np.testing.assert_allclose(sums["energy_error"][t], np.abs(e_hat[:4, t] - energy)[own].sum(), rtol=1e-5)
        atoms = (node_task == t) & np.isfinite(forces).all(1) & (np.arange(N) != 5)
        assert sums["force_count"][t] == 3 * atoms.sum()
        f_error = np.abs(f_hat[:N, :, t] - forces)[atoms].sum()
        np.testing.assert_allclose(sums["force_error"][t], f_error, rtol=1e-5)


def test_losses_of_structures_are_the_terms_of_the_pretraining_loss_before_the_means():
    e_hat, f_hat, batch, *_ = _case()
    energy, forces = map(np.asarray, structure_losses(ModelOutput(e_hat, f_hat), batch, SCALES))
    _, parts = pretraining_loss(e_hat, f_hat, batch, SCALES)
    assert np.isnan(energy).tolist() == [False, False, True, False, True]  # structure 2 has no energy; padding
    assert np.isnan(forces).tolist() == [False, True, False, False, True]
    np.testing.assert_allclose(np.nanmean(energy), parts["energy_loss"], rtol=1e-5)
    np.testing.assert_allclose(np.nanmean(forces), parts["force_loss"], rtol=1e-5)


def squared_error() -> Term:
    """Mean over labelled structures of (E - y)^2; docs/how-to/loss.md."""

    def total(output, batch):
        difference = jnp.where(batch.energy_mask, of_structures(output.energy, batch) - batch.energy, 0)
        return jnp.sum(difference**2)

    return Term("energy", total, lambda batch: jnp.sum(batch.energy_mask))


def test_a_new_term_is_divided_by_its_labels_and_ignores_missing_ones():
    e_hat, f_hat, batch, _, _ = _case()
    terms = (squared_error(), dataclasses.replace(norm_by_structure(jnp.ones(2)), weight=0.0))
    loss, parts = combined(terms, ModelOutput(e_hat, f_hat), batch)
    mask, first = np.asarray(batch.energy_mask), np.arange(len(batch.task)) < 2
    own = e_hat[np.arange(len(batch.task)), batch.task] - batch.energy
    expected = float(np.mean(own[mask] ** 2))
    assert float(loss) == pytest.approx(expected, rel=1e-5) and float(parts["force_loss"]) == 0
    parts = (batch._replace(energy_mask=mask & own) for own in (first, ~first))
    halves = [label_sums(terms, ModelOutput(e_hat, f_hat), part) for part in parts]
    both = {name: halves[0][name] + halves[1][name] for name in halves[0]}
    assert mean_loss(terms, both) == pytest.approx(expected, rel=1e-5)


def test_a_sum_over_the_step_is_the_same_whatever_parts_the_step_consists_of():
    """The cross entropy was divided by the number of parts: other devices gave other gradients."""
    e_hat, f_hat, batch, _, _ = _case()
    terms = (cross_entropy((1.0, 2.0)),)
    first = np.arange(len(batch.task)) < 2
    output, classes = ModelOutput(e_hat[:, :2], f_hat), batch._replace(energy=jnp.zeros_like(batch.energy))
    whole, _ = combined(terms, output, classes)
    halves = [classes._replace(energy_mask=classes.energy_mask & own) for own in (first, ~first)]
    counts = sum(label_counts(terms, half)["class"] for half in halves)
    parts = [combined(terms, output, half, {"class": counts})[0] for half in halves]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6) and float(whole) > 0

"""Losses, learning rates and the plateau rule of fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.gemnet_oc.config import SMALL
from jaxatoms.models.gemnet_oc.per_parameter import block_multipliers, rate_multipliers
from jaxatoms.training import finetuning
from jaxatoms.training.finetuning import FinetuneOptim, Plateau
from jaxatoms.training.losses.energy import absolute_error, cross_entropy
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.forces import norm_by_atom
from jaxatoms.training.losses.terms import combined


class _Batch:
    """Two structures of two atoms, one of them unlabelled or fixed where marked, and padding."""

    forces = jnp.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9], [0, 0, 0]])
    force_mask = jnp.array([True, True, True, False, False])
    free = jnp.array([True, False, True, True, False])
    energy = jnp.array([1.0, 0.0, 0.0])
    energy_mask = jnp.array([True, True, False])
    task = jnp.zeros(3, int)
    node_graph = jnp.array([0, 0, 1, 1, 2])
    node_table = jnp.array([[0, 1], [2, 3], [5, 5]])
    atomic_numbers = jnp.array([1, 1, 1, 1, 0])
    stress = None


def _loss(term, energy) -> float:
    """Of predictions per structure."""
    return float(combined((term,), ModelOutput(energy, None), _Batch)[0])


def test_the_force_loss_is_the_plain_mean_of_atom_norms():
    predicted = _Batch.forces.at[0].add(jnp.array([3.0, 4.0, 0.0])).at[3].set(jnp.nan)
    terms = (norm_by_atom(10.0),)
    loss, grad = jax.value_and_grad(lambda f: combined(terms, ModelOutput(None, f), _Batch)[0])(predicted)
    assert float(loss) == pytest.approx(10 * (5.0 + 2 * np.sqrt(3) * 1e-6) / 3, rel=1e-5)
    assert np.isfinite(grad).all() and (grad[3:] == 0).all()


def test_scalar_and_class_losses():
    assert _loss(absolute_error(), jnp.array([3.0, -1.0, jnp.inf])) == pytest.approx(1.5)
    logits = jnp.array([[0.0, np.log(3)], [np.log(3), 0.0], [5.0, 1.0]])
    expected = -(2.0 * np.log(0.75) + 1.0 * np.log(0.75))  # summed, weighted by class, padding left out
    assert _loss(cross_entropy((1.0, 2.0)), logits) == pytest.approx(expected)


def test_errors_count_free_labelled_atoms_and_real_structures_only():
    out = ModelOutput(jnp.array([2.0, 0.5, 7.0]), _Batch.forces + 1.0)
    sums = error_sums(out, _Batch)
    assert sums["force_error"].tolist() == [6] and sums["force_count"].tolist() == [6]
    assert sums["energy_error"].tolist() == [1.5] and sums["energy_count"].tolist() == [2]
    classes = error_sums(ModelOutput(jnp.array([[0.0, 1], [1, 0], [0, 1]]), None), _Batch, n_class=2)
    assert classes["class_right"].tolist() == [1, 1] and classes["class_count"].tolist() == [1, 1]


def test_multipliers_are_the_published_ones():
    assert block_multipliers(4) == (0.35, 0.40, 0.55, 0.625)
    assert block_multipliers(6) == (0.55, 0.40, 0.30, 0.40, 0.55, 0.625)
    tree = {"embedding": {"kernel": 0}, "backbone": {"int_blocks": {"0": 0, "3": 0}, "bases": 0, "out_mlp_E": 0,
            "out_blocks": {"0": 0, "1": 0, "2": 0, "4": 0}}, "out_energy": 0}  # fmt: skip
    found = rate_multipliers(tree, SMALL)
    assert found == {"embedding": {"kernel": 0.3}, "backbone": {"int_blocks": {"0": 0.35, "3": 0.625}, "bases": 1.0,
                     "out_mlp_E": 1.0, "out_blocks": {"0": 0.35, "1": 0.35, "2": 0.4, "4": 0.625}}, "out_energy": 1.0}


@pytest.mark.parametrize("multiplier", [0.3, 0.625, 1.0])
def test_every_group_ends_at_a_tenth_of_the_base_rate(multiplier):
    config = FinetuneOptim(cosine_steps=100)
    factor = [float(finetuning.rate_factor(config, s, multiplier)) for s in (0, 50, 100, 1000)]
    assert factor[0] == pytest.approx(1) and factor[2] == factor[3]
    assert multiplier * factor[3] == pytest.approx(0.1)
    assert factor[1] == pytest.approx((1 + factor[3]) / 2)


def test_warm_up_rises_from_a_fifth_before_the_cosine():
    config = FinetuneOptim(warmup_steps=50, cosine_steps=200, final_lr=0.01)
    factor = [float(finetuning.rate_factor(config, s, 1.0)) for s in (0, 25, 50, 125, 200, 300)]
    assert factor == pytest.approx([0.2, 0.6, 1.0, 0.505, 0.01, 0.01])


def test_the_optimiser_is_adamw_with_a_rate_per_group_and_clipped_components():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    grads = {"a": jnp.array([0.5, 30.0]), "b": jnp.array([8.0])}
    optim = FinetuneOptim(lr=0.1, cosine_steps=320)
    optimizer = finetuning.make_finetune_optimizer(optim, dict(a=1.0, b=0.5), dict(a=1, b=16))
    state, p = optimizer.init(params), params
    for _ in range(3):
        updates, state = optimizer.update(grads, state, p, plateau=0.8)
        p = optax.apply_updates(p, updates)
    for name, multiplier, clipped in (("a", 1.0, [0.5, 1.0]), ("b", 0.5, [0.5])):
        rate = [0.1 * 0.8 * multiplier * float(finetuning.rate_factor(optim, s, multiplier)) for s in range(3)]
        twin = optax.adamw(lambda s, r=rate: jnp.array(r)[s], 0.9, 0.95, 1e-8, weight_decay=0.1)
        expected, twin_state = params[name], twin.init(params[name])
        for _ in range(3):
            u, twin_state = twin.update(jnp.array(clipped), twin_state, expected)
            expected = expected + u
        np.testing.assert_allclose(p[name], expected, rtol=1e-6)


def test_the_plateau_rule_is_that_of_torch():
    # torch 2.13, ReduceLROnPlateau(factor=0.8, patience=2, threshold=1e-4): the rate after each of these metrics.
    metrics = [1.0, 0.9, 0.90001, 0.89995, 0.9, 0.91, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    rates = [1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.64, 0.64, 0.64, 0.512]
    state, found = Plateau(), []
    for metric in metrics:
        state = state.after(metric, patience=2)
        found.append(state.factor)
    np.testing.assert_allclose(found, rates)

"""The optimiser does what the recipe says: schedule, clipping, shared gradients, AdamW."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxatoms.training.optim import OptimConfig, divide_by, make_optimizer, warmup_cosine


def test_the_rate_for_the_log_does_not_wait_for_the_device():
    """It was a JAX array, which queues behind the step that is under way; in the step it still is one."""
    schedule = warmup_cosine(OptimConfig(lr=1e-4, warmup_steps=10), 100)
    assert not isinstance(schedule(30), jax.Array)
    assert float(jax.jit(schedule)(30)) == pytest.approx(float(schedule(30)), rel=1e-6)


def test_the_learning_rate_has_its_published_values_at_the_corners():
    schedule = warmup_cosine(OptimConfig(lr=1e-4), 500_000)
    assert float(schedule(0)) == pytest.approx(0.2e-4)
    assert float(schedule(1999)) == pytest.approx(1e-4)
    assert float(schedule(2000)) == pytest.approx(1e-4)
    assert float(schedule(251_000)) == pytest.approx(0.55e-4)  # half way: the mean of peak and end
    assert float(schedule(500_000)) == pytest.approx(1e-5)


def test_the_learning_rate_stays_at_its_end_instead_of_climbing_again():
    schedule = warmup_cosine(OptimConfig(lr=1e-4, warmup_steps=10), 100)
    assert [float(schedule(step)) for step in (100, 101, 150, 10_000)] == pytest.approx([1e-5] * 4)


def test_warm_up_rises_by_equal_increments():
    schedule = warmup_cosine(OptimConfig(lr=1.0, warmup_steps=5), 100)
    np.testing.assert_allclose([schedule(i) for i in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


@pytest.mark.parametrize("step", [10, 37, 80, 99])
def test_the_cosine_follows_its_formula(step):
    schedule = warmup_cosine(OptimConfig(lr=2.0, warmup_steps=10, final_lr=0.1), 100)
    expected = 0.2 + 0.5 * (2.0 - 0.2) * (1 + math.cos(math.pi * (step - 10) / 90))
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (1, 10), (10, 10), (10, 5), (0, 1)])
def test_short_runs_have_finite_positive_rates(warmup, steps):
    schedule = warmup_cosine(OptimConfig(lr=1.0, warmup_steps=warmup), steps)
    rates = np.array([schedule(i) for i in range(steps + 2)])
    assert np.isfinite(rates).all() and (rates > 0).all() and (rates <= 1 + 1e-6).all()


def _one_step(config, params, grads, divisors=None, max_steps=100):
    optimizer = make_optimizer(config, max_steps, divisors)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.tree.map(np.asarray, optax.apply_updates(params, updates))


def test_two_adamw_steps_agree_with_a_hand_computation():
    config = OptimConfig(lr=0.01, warmup_steps=0, clip_norm=1e9)
    params, grads = {"w": jnp.array([1.0, -2.0])}, [np.array([0.3, -0.1]), np.array([-0.2, 0.5])]
    optimizer = make_optimizer(config, 100)
    state, w = optimizer.init(params), np.array([1.0, -2.0])
    m = v = np.zeros(2)
    for step, g in enumerate(grads):
        updates, state = optimizer.update({"w": jnp.array(g)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        rate = 0.001 + 0.5 * 0.009 * (1 + math.cos(math.pi * step / 100))
        w = w - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + 0.1 * w)  # decoupled decay
        np.testing.assert_allclose(params["w"], w, rtol=2e-6)


def test_weight_decay_reaches_every_parameter():
    params = {"w": jnp.full((2, 2), 2.0), "bias": jnp.array([2.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    after = _one_step(OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5), params, zero)
    for leaf in jax.tree.leaves(after):
        np.testing.assert_allclose(leaf, 2.0 * (1 - 0.05), rtol=1e-6)


def _clipped(grads, divisors=None, clip=1.0):
    """Gradients as Adam receives them: its first moment after one step is a tenth of them."""
    optimizer = make_optimizer(OptimConfig(clip_norm=clip), 100, divisors)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    mu = next(s.mu for s in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu"))
    return jax.tree.map(lambda x: np.asarray(x) * 10, mu)


def test_gradients_are_clipped_by_their_global_norm():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = _clipped(grads)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-6)
    small = _clipped(grads, clip=6.0)
    np.testing.assert_allclose([small["a"][0], small["b"][0]], [3.0, 4.0], rtol=1e-6)


def test_shared_gradients_are_divided_before_clipping():
    grads = {"a": jnp.array([6.0]), "b": jnp.array([4.0])}
    clipped = _clipped(grads, {"a": 2, "b": 1})
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-6)


def test_divide_by_leaves_parameters_used_once_alone():
    grads = {"a": jnp.array([6.0, 3.0]), "b": jnp.array([5.0])}
    transform = divide_by({"a": 3, "b": 1})
    updates, _ = transform.update(grads, transform.init(grads))
    np.testing.assert_array_equal(updates["a"], [2.0, 1.0])
    assert updates["b"] is grads["b"]

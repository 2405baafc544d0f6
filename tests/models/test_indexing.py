"""Moves of rows against plain indexing, to second order, and the absence of scatters from training steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import golden
from fixtures.structures import GALLERY, pad
from flax import nnx

from jaxatoms.models.common import indexing
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.step import init_state, make_train_step

# index, and its inverse, with "none" on both sides
ROWS = np.array([4, 6, 0, 2, 6], np.int32), np.array([2, 5, 3, 5, 0, 5], np.int32)  # from 6 rows to 5
MANY = np.array([2, 0, 2, 3, 2, 0, 3], np.int32)  # to 3 rows; 3 = none
TABLE = np.array([[1, 5, 7], [7, 7, 7], [0, 2, 4]], np.int32)
SEGMENT = np.array([0, 0, 2, 2, 2, 3, 5, 5], np.int32)  # to 5 segments, 1 and 4 are empty; 5 = padding


def _pick(x, index):
    padded = jnp.concatenate([x, jnp.zeros_like(x[:1])])
    return padded[index]


def _plain_sum(x, segment, count):
    return jnp.zeros((count + 1, *x.shape[1:]), x.dtype).at[segment].add(x)[:count]


def _segments():
    return SEGMENT, indexing.last_of_segment(jnp.asarray(SEGMENT), 5), 3  # rows of the longest, padding apart


MOVES = {  # ours, plain indexing, number of input rows
    "take_rows": (lambda x: indexing.take_rows(x, *ROWS), lambda x: _pick(x, ROWS[0]), 6),
    "take_many": (lambda x: indexing.take_many(x, MANY, TABLE), lambda x: _pick(x, MANY), 3),
    "sum_rows": (lambda x: indexing.sum_rows(x, TABLE, MANY), lambda x: _plain_sum(x, MANY, 3), 7),
    "sum_segments": (lambda x: indexing.sum_segments(x, *_segments()), lambda x: _plain_sum(x, SEGMENT, 5), 8),
    "take_segments": (lambda x: indexing.take_segments(x, *_segments()), lambda x: _pick(x, SEGMENT), 5),
}


@pytest.mark.parametrize("shape", [(2,), (2, 3), ()])
@pytest.mark.parametrize("name", MOVES)
def test_value_and_two_derivatives(name, shape):
    ours, plain, n = MOVES[name]
    rng = np.random.default_rng(0)

    def results(move):
        def first(x):
            return jax.grad(lambda y: jnp.sum(jnp.sin(move(y)) * move(y * y)))(x)

        second = jax.grad(lambda y: jnp.sum(first(y) ** 2))
        return jax.jit(lambda x: (move(x), first(x), second(x)))(x)

    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(n, *shape)))
        for mine, theirs in zip(results(ours), results(plain), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_stacking_and_its_inverse_have_the_derivatives_of_jnp_stack():
    x = [jnp.asarray(row) for row in np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)]

    def squared_gradient(stack, parts_of):
        def value(x):
            first, *_, last = parts_of(stack([jnp.sin(part) for part in x]))
            return jnp.sum(first * last)

        return jax.grad(lambda x: sum(jnp.sum(g**2) for g in jax.grad(value)(x)))(x)

    expected = squared_gradient(lambda x: jnp.stack(x, 1), lambda y: [y[:, i] for i in range(3)])
    ours = squared_gradient(lambda x: indexing.stacked(x, 1), lambda y: indexing.unstacked(y, 1))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_last_of_segment():
    assert _segments()[1].tolist() == [1, 8, 4, 5, 8]
    assert indexing.last_of_segment(jnp.full(4, 3, jnp.int32), 3).tolist() == [4, 4, 4]


@functools.cache
def _step(kind):
    """The lowered training step: what XLA is given, before any backend rewrites a scatter as something else."""
    name = {"direct": "tiny", "gradient": "tiny_gradient"}[kind]
    graphdef, params, rest = nnx.split(golden.model(name, np.float32), nnx.Param, ...)

    def apply(params, constants, batch, edge_dropout):
        model = nnx.merge(graphdef, params, constants)
        if kind == "direct":
            return model(batch, edge_dropout=edge_dropout)
        out = model(batch)
        return type(out)(out.energy[:, None], out.forces[..., None])

    optimizer = optax.adamw(1e-3)
    scales = LossScales(jnp.ones(2), jnp.ones(2)) if kind == "direct" else LossScales(jnp.ones(1), jnp.ones(1))
    step = make_train_step(apply, optimizer, pretraining_terms(scales), ema_decay=0.99, edge_dropout=0.1)
    batch = pad(list(GALLERY.values()), np.float32)
    batch = batch if kind == "direct" else batch._replace(task=np.zeros_like(batch.task))
    return step.lower(init_state(params, optimizer), rest, batch)


@pytest.mark.parametrize("kind", ["direct", "gradient"])
def test_training_step_gives_xla_no_scatter(kind):
    text = _step(kind).as_text(debug_info=True)
    plain = jax.jit(jax.grad(lambda x: jnp.sum(x[jnp.array([0, 1, 1])] ** 2))).lower(jnp.ones(3))
    assert "stablehlo.scatter" in plain.as_text() and " scatter(" in _compiled(plain), "the search is blind"
    found = [line.strip()[:200] for line in text.splitlines() if "stablehlo.scatter" in line]
    assert not found


@pytest.mark.slow
def test_compiled_training_step_has_no_scatter():
    found = [line.strip()[:300] for line in _compiled(_step("direct")).splitlines() if " scatter(" in line]
    assert not found


def _compiled(lowered) -> str:
    """The compiled program, by the code generator that does not turn scatters into loops (conftest takes the other)."""
    options = {"xla_cpu_use_fusion_emitters": True} if jax.default_backend() == "cpu" else None
    return lowered.compile(options).as_text()

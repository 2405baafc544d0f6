"""Parameters as one vector train as their arrays do, and are saved and restored under the arrays' names."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxatoms.training import flat
from jaxatoms.training.checkpoint import CheckpointStore, restore
from jaxatoms.training.checkpoint_files import MARKER
from jaxatoms.training.finetuning import FinetuneOptim, make_finetune_optimizer
from jaxatoms.training.flat import MULTIPLE, flattened, packed, per_parameter, unpacked
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_update
from jaxatoms.types import InputError


class Model(NamedTuple):
    params: dict
    apply: object
    node_features: object = None


def tree():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (), "c": (5,), "d": (2, 2, 2)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def apply(params, x):
    return jnp.tanh(x @ params["a"]) * params["b"] + jnp.sum(params["c"]) * jnp.sum(params["d"] ** 2)


def loss(apply):
    return lambda params, constants, batch, step: (jnp.sum((apply(params, batch) - 1) ** 2), {})


def trained(model, optimizer, n_step=4, **extra):
    update = make_update(loss(model.apply), optimizer, ema_decay=0.9)
    state = init_state(model.params, optimizer)
    batch = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    for _ in range(n_step):
        state, metrics = update(state, (), batch, **extra)
    return state, metrics


DIVISORS = {"a": 1, "b": 3, "c": 3, "d": 1}
OPTIMIZERS = {
    "pretraining": lambda: make_optimizer(OptimConfig(lr=0.1, warmup_steps=2), 10, DIVISORS),
    "fine-tuning": lambda: make_finetune_optimizer(
        FinetuneOptim(lr=0.1, cosine_steps=10),
        {"a": 0.3, "b": 0.5, "c": 0.5, "d": 1.0},
        DIVISORS,
    ),
}


@pytest.mark.parametrize("recipe", OPTIMIZERS)
def test_a_vector_is_trained_as_its_arrays_are(recipe):
    extra = {"plateau": 0.7} if recipe == "fine-tuning" else {}
    want, metrics = trained(Model(tree(), apply), OPTIMIZERS[recipe](), **extra)
    got, flat_metrics = trained(flattened(Model(tree(), apply)), OPTIMIZERS[recipe](), **extra)
    assert jax.tree.structure(unpacked(got)) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(unpacked(got)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(flat_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-6)
    vectors = [leaf for leaf in jax.tree.leaves(got) if leaf.shape]
    assert len(vectors) == 4 and all(leaf.shape == (MULTIPLE,) for leaf in vectors)
    assert all(not np.any(leaf[26:]) for leaf in vectors), "what fills the vector up stays zero"


def test_the_gradient_is_one_concatenation():
    """Without the written-out gradient every array's would be padded to the whole vector."""
    model = flattened(Model(tree(), apply))
    text = jax.jit(jax.grad(lambda p, x: jnp.sum(model.apply(p, x)))).lower(model.params, jnp.ones((6, 3))).as_text()
    assert text.count("stablehlo.concatenate") == 1
    assert f"tensor<{MULTIPLE}xf32>, tensor<{MULTIPLE}xf32>" not in text


def test_packing_takes_the_arrays_over_unless_only_shapes_are_wanted():
    params = tree()
    flattened(Model(params, apply), shapes_only=True)
    assert not any(leaf.is_deleted() for leaf in params.values())
    packed(params)
    assert all(leaf.is_deleted() for leaf in params.values())


def test_parameters_of_several_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"bfloat16.*float32"):
        packed(tree() | {"e": jnp.zeros(3, jnp.bfloat16)})


def test_neighbours_with_equal_numbers_are_one_piece():
    seen = []

    def divide(values, divisor):
        seen.append(values.shape)
        return values / divisor

    got = per_parameter(divide, packed(tree()), DIVISORS)
    want = per_parameter(lambda g, d: g / d, tree(), DIVISORS)
    assert seen == [(12,), (6,), (MULTIPLE - 18,)]
    for ours, theirs in zip(jax.tree.leaves(unpacked(got)), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_checkpoints_hold_the_arrays_under_their_names(tmp_path):
    optimizer = OPTIMIZERS["pretraining"]()
    state, _ = trained(flattened(Model(tree(), apply)), optimizer)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        folder = store.save(4, state._asdict(), {})
    table = json.loads((folder / MARKER).read_text())["arrays"]
    of_arrays = init_state(tree(), optimizer)._asdict()
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(of_arrays)}
    assert set(table) == names and table["opt_state/2/0/mu/a"] == ["float32", [3, 4]]

    again, _ = restore(folder, init_state(packed(tree()), optimizer)._asdict())
    assert jax.tree.structure(again) == jax.tree.structure(state._asdict())
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state._asdict()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    arrays, _ = restore(folder, {"ema": tree()})  # a run that is continued by a version without vectors, say
    np.testing.assert_array_equal(arrays["ema"]["d"], unpacked(state.ema)["d"])
    with pytest.raises(InputError, match=r"params/a.* is float32\[3, 4\] there and float32\[3, 5\] here"):
        restore(folder, {"params": packed(tree() | {"a": jnp.zeros((3, 5))})})


def test_one_program_serves_every_state_of_a_layout():
    model = flattened(Model(tree(), apply))
    function = jax.jit(model.apply)
    for params in (model.params, packed(tree()), flat.packed_like(model.params, tree())):
        function(params, jnp.ones((6, 3)))
    assert function._cache_size() == 1


def test_an_optimizer_sees_a_tree_with_one_leaf():
    params = packed(tree())
    updates, _ = optax.adamw(1e-3).update(params, optax.adamw(1e-3).init(params), params)
    assert isinstance(updates, flat.FlatParams) and len(jax.tree.leaves(updates)) == 1


@pytest.mark.parametrize(("n", "size"), [(1, 1), (MULTIPLE - 1, 1), (MULTIPLE, 1), (MULTIPLE + 1, 2)])
def test_the_vector_is_the_shortest_that_devices_share_evenly(n, size):
    params = packed({"a": jax.ShapeDtypeStruct((n,), jnp.float32)})
    assert params.vector.shape == (size * MULTIPLE,)

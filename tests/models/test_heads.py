"""Reductions, spatial extent and dropout of the heads on padded batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from fixtures.nano import NANO
from fixtures.structures import GALLERY, pad
from flax import nnx

from jaxatoms.data.downstream import downstream
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import reduce_atoms, squared_distances
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.heads import HeadMLP
from jaxatoms.models.gemnet_oc.model import ScalarModel
from jaxatoms.models.gemnet_oc.names import checkpoint_name
from jaxatoms.models.gemnet_oc.network import Features
from jaxatoms.runs.recipes import find_recipe

CONFIG = GemNetOCConfig(**NANO, direct_forces=False)


@pytest.fixture(scope="module")
def padded():
    systems = [GALLERY[name] for name in list(GALLERY)[:4]]
    batch = pad(systems, np.float32)
    return systems, batch


@pytest.mark.parametrize(("how", "expected"), [("sum", np.sum), ("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("width", [(), (3,)])
def test_reductions_see_real_atoms_only(padded, how, expected, width):
    systems, batch = padded
    values = np.random.default_rng(0).normal(size=(len(batch.atomic_numbers), *width)).astype(np.float32) - 5
    poisoned = jnp.where(batch.node_mask.reshape(-1, *(1,) * len(width)), values, 1e9)
    found, grad = jax.value_and_grad(lambda v: jnp.sum(reduce_atoms(v, batch, how)), has_aux=False)(poisoned)
    out = reduce_atoms(poisoned, batch, how)
    for g in range(len(systems)):
        own = values[(batch.node_graph == g) & batch.node_mask]
        np.testing.assert_allclose(out[g], expected(own, axis=0), rtol=1e-5)
    assert (np.asarray(out[len(systems) :]) == 0).all() and np.isfinite(found)
    assert (np.asarray(grad)[~batch.node_mask] == 0).all() and np.isfinite(grad).all()


def test_squared_distances_are_to_the_centre_of_mass(padded):
    systems, batch = padded
    found = np.asarray(squared_distances(batch))
    assert (found[~batch.node_mask] == 0).all()
    for g in range(len(systems)):
        own = (batch.node_graph == g) & batch.node_mask
        atoms = Atoms(batch.atomic_numbers[own], batch.positions[own])
        expected = ((atoms.positions - atoms.get_center_of_mass()) ** 2).sum(axis=1)
        np.testing.assert_allclose(found[own], expected, rtol=1e-4, atol=1e-5)


def _filled(reduction: str, batch, **options):
    """(scalar model whose head has random weights and whose backbone gives random features, weights, features)."""
    head = HeadSpec(kind="scalar", reduction=reduction, **options)
    model = nnx.eval_shape(lambda: ScalarModel(CONFIG, head, nnx.Rngs(0)))
    rng, weights = np.random.default_rng(1), {}
    for path, variable in nnx.to_flat_state(nnx.state(model.out_energy)):
        weights[checkpoint_name(("out_energy", *path))] = rng.normal(size=variable.shape) / 3
        variable.set_value(jnp.asarray(weights[checkpoint_name(("out_energy", *path))], jnp.float32))
    return model, weights, rng.normal(size=(len(batch.atomic_numbers), CONFIG.emb_size_atom)).astype(np.float32)


def _evaluate(weights: dict[str, np.ndarray], x: np.ndarray, n_layer: int) -> np.ndarray:
    """[n, n_out] of linear layers 0, 2, 4, ... with scaled SiLU between them."""
    for layer in range(0, 2 * n_layer, 2):
        x = x @ weights[f"out_energy.{layer}.weight"] + weights.get(f"out_energy.{layer}.bias", 0)
        x = x if layer == 2 * n_layer - 2 else x / (1 + np.exp(-x)) / 0.6
    return x


def _names(n_layer: int, biases: int) -> set[str]:
    numbered = [f"out_energy.{2 * layer}" for layer in range(n_layer)]
    return {f"{name}.weight" for name in numbered} | {f"{name}.bias" for name in numbered[:biases]}


@pytest.mark.parametrize(
    "reduction,options,n_layer,biases",
    [("sum", {}, 5, 4), ("max", {}, 5, 4), ("sum", {"n_class": 2, "dropout": 0.5}, 5, 5), ("extent", {}, 6, 0)],
    ids=["sum", "max", "classes", "extent"],
)
def test_heads_of_fine_tuning(padded, monkeypatch, reduction, options, n_layer, biases):
    """Layers, biases and reduction against NumPy (docs/reference/gemnet_oc.md, Fine-tuning heads)."""
    systems, batch = padded
    model, weights, x = _filled(reduction, batch, **options)
    monkeypatch.setattr(ScalarModel, "features", lambda self, batch, **_: Features(jnp.asarray(x), None, None))
    assert set(weights) == _names(n_layer, biases)
    found = model(batch).energy
    per_atom = _evaluate(weights, x, n_layer)
    for g in range(len(systems)):
        own = (batch.node_graph == g) & batch.node_mask
        values = per_atom[own]
        if reduction == "extent":
            atoms = Atoms(batch.atomic_numbers[own], batch.positions[own])
            values = values * ((atoms.positions - atoms.get_center_of_mass()) ** 2).sum(axis=1, keepdims=True)
        expected = values.max(axis=0) if reduction == "max" else values.sum(axis=0)
        np.testing.assert_allclose(np.atleast_1d(found[g]), expected, rtol=1e-4, atol=1e-4)


def test_the_logits_of_mp_is_metal_are_sums():
    facts = downstream("matbench:mp_is_metal/0")
    assert (facts.reduction, facts.n_class) == ("sum", 2)
    assert find_recipe("matbench:mp_is_metal/0", facts).dropout == 0.5


def test_dropout_acts_on_the_features_alone(padded):
    """With one feature that is not 0, an atom's logits are those of twice the feature or of none."""
    model, weights, x = _filled("sum", padded[1], n_class=2, dropout=0.5)
    x = x * (np.arange(x.shape[1]) == 3)
    found = np.asarray(model.out_energy(jnp.asarray(x), jax.random.key(0)))
    kept, dropped = _evaluate(weights, 2 * x, 5), _evaluate(weights, 0 * x, 5)
    is_kept = np.isclose(found, kept, rtol=1e-4, atol=1e-4).all(axis=1)
    is_dropped = np.isclose(found, dropped, rtol=1e-4, atol=1e-4).all(axis=1)
    assert (is_kept | is_dropped).all() and 0.2 < is_kept.mean() < 0.8


def test_dropout_acts_only_with_a_key():
    head = HeadMLP(16, nnx.Rngs(0), Precision(), n_out=2, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (50, 16))
    np.testing.assert_array_equal(head(x), head(x))
    one, two = (head(x, jax.random.key(k)) for k in (1, 2))
    assert one.shape == (50, 2) and not np.allclose(one, two)
    np.testing.assert_array_equal(one, head(x, jax.random.key(1)))

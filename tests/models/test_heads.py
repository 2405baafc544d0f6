"""Reductions, spatial extent and dropout of the heads on padded batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from fixtures.structures import GALLERY, pad
from flax import nnx

from jaxatoms.models.heads import HeadMLP, reduce_atoms, squared_distances
from jaxatoms.models.precision import Precision


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


def test_dropout_acts_only_with_a_key():
    head = HeadMLP(16, nnx.Rngs(0), Precision(), n_out=2, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (50, 16))
    np.testing.assert_array_equal(head(x), head(x))
    one, two = (head(x, jax.random.key(k)) for k in (1, 2))
    assert one.shape == (50, 2) and not np.allclose(one, two)
    np.testing.assert_array_equal(one, head(x, jax.random.key(1)))

"""Blocks computed again in the backward pass against blocks that keep what they computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import quick_jit
from fixtures.nano import NANO
from fixtures.structures import GALLERY, pad
from flax import nnx

from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.registry import build_model

SMALL = GemNetOCConfig(**NANO | {"num_blocks": 2})
TOLERANCE = 1e-10  # float64, relative to each parameter's largest gradient


def _gradients(direct: bool, remat: bool):
    """(energy, forces, gradient of a sum over both by every parameter) in float64."""
    config = dataclasses.replace(SMALL, direct_forces=direct, remat=remat)
    model = build_model(config, ("sum",), nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda x: x.astype(np.float64), nnx.state(model)))
    batch = pad([GALLERY[name] for name in ("seven", "water")])

    def total(model, batch):
        out = model(batch)
        return jnp.sum(out.energy) + jnp.sum(out.forces**2), out

    gradients, out = quick_jit(nnx.grad(total, has_aux=True))(model, batch)
    return jax.tree.map(np.asarray, (out.energy, out.forces, nnx.to_flat_state(gradients)))


@pytest.mark.parametrize("direct", [True, False])
def test_recomputation_changes_nothing(direct):
    with jax.enable_x64(True):
        energy, forces, plain = _gradients(direct, remat=False)
        energy_2, forces_2, gradients = _gradients(direct, remat=True)
    np.testing.assert_allclose(energy_2, energy, rtol=TOLERANCE)
    np.testing.assert_allclose(forces_2, forces, rtol=0, atol=TOLERANCE * np.abs(forces).max())
    for (path, expected), (path_2, found) in zip(plain, gradients, strict=True):
        assert path == path_2
        error = np.abs(found[...] - expected[...]).max()
        assert error <= TOLERANCE * np.abs(expected[...]).max(), (path, error)

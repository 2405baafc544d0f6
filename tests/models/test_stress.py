"""The stress of a potential is its strain derivative, and its gradient in training has no colliding scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.nano import NANO
from fixtures.structures import BUDGET, GALLERY, pad
from flax import nnx

from jaxatoms.inference.model import cast
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.strain import strained
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.model import GradientModel


@pytest.fixture(scope="module")
def potential():
    """(model, batch) in float64: a crystal, a molecule and padding."""
    with jax.enable_x64(True):
        config = GemNetOCConfig(**NANO, direct_forces=False)
        model = GradientModel(config, nnx.Rngs(0), head=HeadSpec(kind="gradient", stress=True))
        definition, state = cast(model, np.float64)
        yield nnx.merge(definition, state), jax.device_put(
            pad([GALLERY["crystal"], GALLERY["seven"]], np.float64, BUDGET)
        )


def test_stress_is_the_strain_derivative_by_volume(potential):
    model, batch = potential
    with jax.enable_x64(True):
        out = jax.jit(lambda batch: model(batch))(batch)
        energy = jax.jit(lambda strain: model.energy(*strained(batch, batch.positions, strain)))
        volume, step = abs(np.linalg.det(batch.cell[0])), 1e-5
        assert float(batch.volume[0]) == pytest.approx(volume)
        for i, j in ((0, 0), (1, 2), (0, 2)):
            direction = jnp.zeros((len(batch.cell), 3, 3)).at[0, i, j].set(step)
            slope = (energy(direction) - energy(-direction))[0] / (2 * step)
            assert float(out.stress[0, i, j]) * volume == pytest.approx(float(slope), rel=1e-6)
            assert float(out.stress[0, i, j]) == pytest.approx(float(out.stress[0, j, i]), rel=1e-9)
        assert (out.stress[1:] == 0).all()  # a molecule has none


def test_forces_and_energy_are_those_of_the_model_without_stress(potential):
    model, batch = potential
    with jax.enable_x64(True):
        out = jax.jit(lambda batch: model(batch))(batch)
        model.stress = False
        plain = jax.jit(lambda batch: model(batch))(batch)
        model.stress = True
    np.testing.assert_allclose(out.energy, plain.energy, rtol=1e-12)
    np.testing.assert_allclose(out.forces, plain.forces, rtol=1e-9, atol=1e-12)
    assert plain.stress is None


def test_training_on_stress_scatters_nowhere(potential):
    model, batch = potential
    definition, state = nnx.split(model)

    def loss(state):
        return jnp.sum(nnx.merge(definition, state)(batch).stress ** 2)

    with jax.enable_x64(True):
        text = jax.jit(jax.grad(loss)).lower(state).as_text()
    assert "stablehlo.scatter" not in text

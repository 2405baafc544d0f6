"""One network written in two ways: blocks that compute again or keep, programs for a CPU or for accelerators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden, recipe
from fixtures.nano import NANO
from fixtures.structures import GALLERY, concatenate, graphs_of, pad
from fixtures.torch_models import shapes_of
from flax import nnx
from twins.gemnet_oc_enumerated import forward, heads

from jaxatoms.interop.arrays import model_from_arrays
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.registry import build_model
from jaxatoms.ops.target import compiling_for

SMALL = GemNetOCConfig(**NANO | {"num_blocks": 2})
TOLERANCE = 1e-10  # float64, relative to each parameter's largest gradient


def _gradients(direct: bool, **dimensions):
    """(energy, forces, gradient of a sum over both by every parameter) in float64."""
    config = dataclasses.replace(SMALL, direct_forces=direct, **dimensions)
    model = build_model(config, ("sum",), nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda x: x.astype(np.float64), nnx.state(model)))
    batch = pad([GALLERY[name] for name in ("seven", "water")])

    def total(model, batch):
        out = model(batch)
        return jnp.sum(out.energy) + jnp.sum(out.forces**2), out

    gradients, out = jax.jit(nnx.grad(total, has_aux=True))(model, batch)
    return jax.tree.map(np.asarray, (out.energy, out.forces, nnx.to_flat_state(gradients)))


def _assert_equal(first, second):
    (energy, forces, plain), (energy_2, forces_2, gradients) = first, second
    np.testing.assert_allclose(energy_2, energy, rtol=TOLERANCE)
    np.testing.assert_allclose(forces_2, forces, rtol=0, atol=TOLERANCE * np.abs(forces).max())
    for (path, expected), (path_2, found) in zip(plain, gradients, strict=True):
        assert path == path_2
        error = np.abs(found[...] - expected[...]).max()
        assert error <= TOLERANCE * np.abs(expected[...]).max(), (path, error)


def test_equal_widths_against_the_enumerated_twin():
    """Atoms and edges of one width: no dense layer behind the sums over edges."""
    config = dataclasses.replace(SMALL, num_atom=1)
    arrays = {name: recipe.weight(0, name, shape) if shape else np.float32(1) for name, shape in
              shapes_of(config, 1).items()}  # fmt: skip
    systems = concatenate([GALLERY[name] for name in ("seven", "water")])
    built = graphs_of(systems)
    graphs = {name: (np.stack(getattr(built, name)[:2]), -getattr(built, name).shifts) for name in golden.GRAPHS}
    node_graph = np.repeat(np.arange(2), systems.n_node)
    args = (systems.atomic_numbers, systems.positions, systems.cell, node_graph, graphs | {"id_swap": built.swap})
    expected = heads(arrays, forward(arrays, *args))
    with jax.enable_x64(True):
        wide = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        model = model_from_arrays(config, 1, wide, source="here")
        out = jax.jit(lambda model, batch: model(batch))(model, pad([GALLERY[name] for name in ("seven", "water")]))
    for found, wanted in zip(out[:2], expected, strict=True):
        np.testing.assert_allclose(found[: len(wanted), ..., 0], wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("direct", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_recomputation_changes_nothing(direct):
    with jax.enable_x64(True):
        _assert_equal(_gradients(direct, remat=False), _gradients(direct, remat=True))


@pytest.mark.parametrize("direct", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_programs_for_accelerators_compute_the_same(direct):
    """Some sums are written differently for them; what is run here is that program, on a CPU."""
    with jax.enable_x64(True):
        here = _gradients(direct, num_blocks=1, num_spherical=4)
        with compiling_for("tpu"):
            there = _gradients(direct, num_blocks=1, num_spherical=4)
        _assert_equal(here, there)

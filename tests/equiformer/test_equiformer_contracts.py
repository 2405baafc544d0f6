"""Symmetries, padding, batching, tiles and degenerate structures of EquiformerV2; dropout of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import equiformer
from fixtures.structures import GALLERY, concatenate
from flax import nnx

from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models.equiformer_v2.config import TINY
from jaxatoms.models.equiformer_v2.model import EquiformerV2Model

CONFIG = dataclasses.replace(TINY, lmax=3, grid_resolution=14)
NAMES = ("seven", "crystal", "atom", "co2", "apart", "water")


@functools.cache
def model(config=CONFIG):
    with jax.enable_x64(True):
        return equiformer.named_model(config, np.float64)


@functools.cache
def compiled(graphdef):
    return jax.jit(lambda state, batch, key: nnx.merge(graphdef, state)(batch, key=key))


def predict(systems, config=CONFIG, spare=0.0, key=None):
    """(energies, forces per structure) in float64."""
    systems_batch = concatenate(systems)
    n = len(systems)
    edges = NEAREST_GRAPH.build(systems_batch.positions, systems_batch.n_node, systems_batch.cell, systems_batch.pbc,
                                 None, np.full(n, 5.0), np.full(n, 12)).main
    with jax.enable_x64(True):
        batch = equiformer.padded(systems_batch, edges, np.float64, spare)
        out = jax.tree.map(np.asarray, compiled(*nnx.split(model(config))[:1])(nnx.split(model(config))[1], batch, key))
    total = int(systems_batch.n_node.sum())
    assert not np.any(out.forces[total:]) and not np.any(out.energy[n:])
    assert np.isfinite(out.energy).all() and np.isfinite(out.forces).all()
    return out.energy[:n, 0], np.split(out.forces[:total, :, 0], np.cumsum(systems_batch.n_node)[:-1])


def test_batch_equals_singles_whatever_the_padding():
    systems = [GALLERY[name] for name in NAMES]
    energy, forces = predict(systems, spare=0.4)
    for i, system in enumerate(systems):
        alone_energy, alone_forces = predict([system])
        assert alone_energy[0] == pytest.approx(energy[i], abs=1e-11)
        assert alone_forces[0] == pytest.approx(forces[i], abs=1e-11)


@pytest.mark.parametrize("name", ["atom", "apart"])
def test_atoms_without_neighbours_are_finite(name):
    energy, forces = predict([GALLERY[name]])
    assert np.isfinite(energy).all() and not np.any(forces[0])


def test_order_of_atoms_does_not_matter():
    system, order = GALLERY["seven"], np.random.default_rng(0).permutation(7)
    mixed = system._replace(atomic_numbers=system.atomic_numbers[order], positions=system.positions[order])
    (energy, forces), (energy_2, forces_2) = predict([system]), predict([mixed])
    assert energy_2 == pytest.approx(energy, abs=1e-11)
    assert forces_2[0] == pytest.approx(forces[0][order], abs=1e-11)


def random_rotation():
    q, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("resolution,tolerance", [(14, 1e-2), (50, 1e-5)])
def test_rotation(resolution, tolerance):
    """Up to the aliasing of the sphere grids, which vanishes with their resolution."""
    config = dataclasses.replace(CONFIG, grid_resolution=resolution)
    q = random_rotation()
    for name in ("seven", "crystal"):
        system = GALLERY[name]
        cell = None if system.cell is None else system.cell @ q.T
        (energy, forces), (energy_2, forces_2) = (
            predict([s], config) for s in (system, system._replace(positions=system.positions @ q.T, cell=cell))
        )
        assert energy_2 == pytest.approx(energy, rel=tolerance)
        assert np.abs(forces_2[0] - forces[0] @ q.T).max() < tolerance * np.abs(forces[0]).max()


def test_edge_direction_is_point_inversion():
    system = GALLERY["seven"]
    reversed_config = dataclasses.replace(CONFIG, edge_direction="source_to_target")
    energy, _ = predict([system], reversed_config)
    assert predict([system._replace(positions=-system.positions)])[0] == pytest.approx(energy, abs=1e-11)
    assert abs(predict([system])[0] - energy) > 1e-6


def test_tiles_do_not_change_the_result():
    systems = [GALLERY[name] for name in NAMES]
    small = dataclasses.replace(CONFIG, tile_edges=7, tile_nodes=3)
    for ours, whole in zip(predict(systems, small), predict(systems), strict=True):
        assert np.concatenate([np.ravel(x) for x in ours]) == pytest.approx(
            np.concatenate([np.ravel(x) for x in whole]), abs=1e-12)


def test_dropout_is_random_in_its_key_and_off_without():
    systems = [GALLERY["seven"]]
    first, again, other = (predict(systems, key=jax.random.key(seed))[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert predict(systems)[0] == predict(systems)[0]


@pytest.mark.parametrize("norm", ["rms_norm_sh", "layer_norm"])
def test_other_norms_run(norm):
    energy, _ = predict([GALLERY["water"]], dataclasses.replace(CONFIG, norm_type=norm))
    assert np.isfinite(energy).all()


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradients_are_finite_and_match_differences(remat):
    """Of a function of all outputs with respect to the parameters, with tiles and padding."""
    config = dataclasses.replace(CONFIG, tile_edges=16, tile_nodes=4, remat=remat)
    systems = concatenate([GALLERY[name] for name in ("water", "atom", "crystal")])
    edges = NEAREST_GRAPH.build(systems.positions, systems.n_node, systems.cell, systems.pbc, None,
                                 np.full(3, 5.0), np.full(3, 6)).main
    with jax.enable_x64(True):
        batch = equiformer.padded(systems, edges, np.float64, 0.3)
        graphdef, params = nnx.split(model(config))

        def loss(params):
            out = nnx.merge(graphdef, params)(batch)
            return jnp.sum(jnp.sin(out.energy)) + jnp.sum(jnp.cos(out.forces) * batch.node_mask[:, None, None])

        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        leaves = jax.tree.leaves(grads)
        assert all(np.isfinite(g).all() for g in leaves)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        direction = jax.tree.unflatten(jax.tree.structure(grads), [
            jax.random.normal(k, g.shape, g.dtype) for k, g in zip(keys, leaves, strict=True)])
        slope = sum(jnp.vdot(g, d) for g, d in zip(leaves, jax.tree.leaves(direction), strict=True))
        moved = [jax.jit(loss)(jax.tree.map(lambda p, d, s=s: p + s * 1e-5 * d, params, direction)) for s in (1, -1)]
        assert float(moved[0] - moved[1]) / 2e-5 == pytest.approx(float(slope), rel=1e-6)
        assert np.isfinite(value)


def test_fresh_models_have_the_specified_scale():
    """docs/reference/equiformer_v2.md, Initialisation: normal atoms, almost-zero edge tables, zero biases."""
    fresh = nnx.jit(lambda: EquiformerV2Model(TINY, ("sum",), nnx.Rngs(0)))()
    assert np.std(fresh.backbone.sphere_embedding.kernel[...]) == pytest.approx(1, abs=0.1)
    assert np.abs(fresh.backbone.blocks.ga.source_embedding.kernel[...]).max() <= 1e-3
    assert not np.any(fresh.backbone.blocks.ga.so2_conv_1.fc_m0.bias[...])
    stacked = np.asarray(fresh.backbone.blocks.ga.so2_conv_1.fc_m0.kernel[...])
    assert not np.allclose(stacked[0], stacked[1])

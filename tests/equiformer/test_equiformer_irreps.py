"""Features inside EquiformerV2 turn with the structure as e3nn-jax says that its irreps turn."""

import dataclasses
import functools

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import equiformer
from fixtures.structures import GALLERY, concatenate

from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models.equiformer_v2.config import M31, TINY, EquiformerV2Config
from jaxatoms.models.equiformer_v2.irreps import node_irreps, to_irreps_array

NAMES = ("seven", "crystal")
EMBEDDINGS = ("edge_degree", "norm of the embedding")  # before any sphere grid
FINE = dataclasses.replace(TINY, grid_resolution=50)
DEEP = dataclasses.replace(FINE, lmax=4, mmax=2)


def rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def batch_of(turn: np.ndarray):
    """Two structures turned as a whole, in float64."""
    turned = [GALLERY[name]._replace(positions=GALLERY[name].positions @ turn.T) for name in NAMES]
    systems = concatenate([s if s.cell is None else s._replace(cell=s.cell @ turn.T) for s in turned])
    edges = NEAREST_GRAPH.build(systems.positions, systems.n_node, systems.cell, systems.pbc, None,
                                 np.full(2, 5.0), np.full(2, 12)).main  # fmt: skip
    return equiformer.padded(systems, edges, np.float64, 0.3)


@functools.cache
def _program(config: EquiformerV2Config):
    backbone = equiformer.named_model(config, np.float64).backbone

    def run(batch):
        seen: dict = {}
        node = backbone(batch, observe=lambda name, value: seen.update({name: value})).node
        out = {"edge_degree": seen["edge_degree"], "norm of the embedding": seen["block_norm1"][0], "node": node}
        for name in ("ga", "ffn", "out"):
            out |= {f"{name} of block {i}": value for i, value in enumerate(seen[f"block_{name}"])}
        return out

    return jax.jit(run)


def features(config: EquiformerV2Config, turn: np.ndarray) -> dict[str, e3nn.IrrepsArray]:
    """Node tensors [n_node, (lmax+1)**2, channels] from embedding to output, as irreps."""
    return {name: to_irreps_array(value) for name, value in _program(config)(batch_of(turn)).items()}


def errors(config: EquiformerV2Config, turn: np.ndarray) -> dict[str, float]:
    """Largest difference of features turned and features of the turned structure, relative to the largest feature."""
    with jax.enable_x64(True):
        before, after = features(config, np.eye(3)), features(config, turn)
        return {
            name: float(jnp.abs(x.transform_by_matrix(turn).array - after[name].array).max() / jnp.abs(x.array).max())
            for name, x in before.items()
        }


@pytest.mark.parametrize(("config", "tolerance"), [(TINY, 1e-3), (FINE, 1e-8), (DEEP, 1e-5)],
                         ids=["preset", "fine grid", "lmax 4, mmax 2"])  # fmt: skip
def test_features_turn_as_their_irreps(config, tolerance):
    """Embeddings to rounding; behind a sphere grid up to its aliasing, which vanishes with the grid's resolution."""
    found = errors(config, rotation())
    assert len(found) == 9
    for name, error in found.items():
        assert error < (1e-12 if name in EMBEDDINGS else tolerance), (name, error)


def test_the_opposite_rotation_would_be_noticed():
    """So that the agreement above is none of features that hardly depend on the direction."""
    with jax.enable_x64(True):
        before, after = features(TINY, np.eye(3)), features(TINY, rotation())
        for name, x in before.items():
            wrong = x.transform_by_matrix(rotation().T).array
            assert jnp.abs(wrong - after[name].array).max() > 0.1 * jnp.abs(x.array).max(), name


def test_only_the_first_embedding_has_the_parities_of_the_irreps():
    found = errors(FINE, -rotation())
    assert max(found[name] for name in EMBEDDINGS) < 1e-12
    assert min(error for name, error in found.items() if name not in EMBEDDINGS) > 1e-3


def test_irreps_of_the_presets():
    assert node_irreps(TINY) == "16x0e+16x1o+16x2e"
    assert node_irreps(M31).dim == M31.feature_width


def test_components_of_a_channel_come_together():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 9, 16)), jnp.float32)
    irreps = to_irreps_array(x)
    assert irreps.irreps == node_irreps(TINY)
    for degree, chunk in enumerate(irreps.chunks):
        assert chunk.shape == (5, 16, 2 * degree + 1)
        np.testing.assert_array_equal(chunk[:, 3], x[:, degree**2 : (degree + 1) ** 2, 3])

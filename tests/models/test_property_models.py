"""Several properties from one head: how they follow from the atoms' values, and how they turn with the structure."""

import jax
import numpy as np
import pytest
from fixtures import equiformer
from fixtures.nano import NANO
from fixtures.structures import BUDGET, GALLERY, concatenate, pad
from fixtures.torch_models import TINY_EQUIFORMER
from flax import nnx
from scipy.spatial.transform import Rotation

from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models import registry
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import ATOMIC_MASSES, reduce_properties
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig

SYSTEMS = [GALLERY[name] for name in ("seven", "water", "six")]
OUTPUTS = ("sum", "dipole", "atom", "mean", "extent", "atom", "max", "dipole")
TURN = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()


def _batch(systems, architecture):
    if architecture == "gemnet":
        return pad(systems, np.float32, BUDGET)
    joined, n = concatenate(systems), len(systems)
    edges = NEAREST_GRAPH.build(joined.positions, joined.n_node, joined.cell, joined.pbc, None, np.full(n, 5.0),
                                np.full(n, 12)).main  # fmt: skip
    return equiformer.padded(joined, edges, np.float32, 0.0)


def test_properties_are_the_sums_of_the_documented_equations():
    batch = pad(SYSTEMS, np.float64, BUDGET)
    values = np.random.default_rng(0).normal(size=(len(batch.atomic_numbers), len(OUTPUTS)))
    per_graph, per_atom = map(np.asarray, reduce_properties(jax.numpy.asarray(values), batch, OUTPUTS))
    for graph in range(len(SYSTEMS)):
        own = (batch.node_graph == graph) & (batch.atomic_numbers > 0)
        v, mass = values[own], ATOMIC_MASSES[batch.atomic_numbers[own]]
        arm = batch.positions[own] - (mass[:, None] * batch.positions[own]).sum(0) / mass.sum()
        expected = [v[:, 0].sum(), *(v[:, 1] @ arm), v[:, 3].mean(), v[:, 4] @ (arm**2).sum(1), v[:, 6].max(),
                    *(v[:, 7] @ arm)]  # fmt: skip
        np.testing.assert_allclose(per_graph[graph], expected, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(per_atom[own], v[:, [2, 5]], rtol=1e-6)
    assert (per_atom[batch.atomic_numbers == 0] == 0).all() and (per_graph[len(SYSTEMS) :] == 0).all()


@pytest.mark.parametrize("architecture", ["gemnet", "equiformer"])
def test_dipoles_turn_with_the_structure_and_the_rest_stays(architecture):
    config = GemNetOCConfig(**NANO, direct_forces=False) if architecture == "gemnet" else TINY_EQUIFORMER
    head = HeadSpec(kind="properties", outputs=OUTPUTS)
    model = registry.split_model(registry.build_finetuned(config, head, nnx.Rngs(0), Precision()))
    apply = jax.jit(model.apply)
    moved = [system._replace(positions=system.positions @ TURN.T + [1.0, -2.0, 0.5]) for system in SYSTEMS]
    batches = [_batch(systems, architecture) for systems in (SYSTEMS, moved)]
    before, after = (apply(model.params, model.constants, batch) for batch in batches)
    n, vectors = len(SYSTEMS), [[1, 2, 3], [7, 8, 9]]
    first, second = (np.array(out.properties[:n]) for out in (before, after))
    # EquiformerV2 is equivariant up to the grid of its activations.
    accuracy = 1e-4 if architecture == "gemnet" else 3e-2
    for columns in vectors:
        size = np.abs(first[:, columns]).max()
        assert size > 1e-3
        np.testing.assert_allclose(second[:, columns], first[:, columns] @ TURN.T, atol=accuracy * size)
    scalars = [0, 4, 5, 6]
    np.testing.assert_allclose(second[:, scalars], first[:, scalars], rtol=accuracy, atol=accuracy)
    np.testing.assert_allclose(after.atom_properties, before.atom_properties, rtol=accuracy, atol=accuracy)
    assert before.energy is None and before.forces is None


def test_one_property_of_atoms_has_one_column():
    config = GemNetOCConfig(**NANO, direct_forces=False)
    model = registry.build_finetuned(config, HeadSpec(kind="properties", outputs=("atom",)), nnx.Rngs(0), Precision())
    out = jax.jit(lambda batch: model(batch))(pad(SYSTEMS, np.float32, BUDGET))
    assert out.atom_properties.shape == (BUDGET.n_node, 1) and out.properties.shape == (BUDGET.n_graph, 0)


def test_a_head_is_the_same_after_json():
    head = HeadSpec(kind="properties", outputs=OUTPUTS)
    assert HeadSpec(**head.to_json()) == head
    assert HeadSpec(**(head.to_json() | {"outputs": list(OUTPUTS)})) == head
    assert "outputs" not in HeadSpec(kind="scalar").to_json()

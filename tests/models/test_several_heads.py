"""Several heads on one backbone: every structure gets what its own data set's head gives."""

import jax
import numpy as np
import pytest
from fixtures import equiformer
from fixtures.nano import NANO
from fixtures.structures import BUDGET, GALLERY, concatenate, pad
from fixtures.torch_models import TINY_EQUIFORMER
from flax import nnx

from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models import registry
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig

SYSTEMS = [GALLERY[name] for name in ("seven", "water", "six")]


def _nearest():
    systems, n = concatenate(SYSTEMS), len(SYSTEMS)
    edges = NEAREST_GRAPH.build(systems.positions, systems.n_node, systems.cell, systems.pbc, None, np.full(n, 5.0),
                                np.full(n, 12)).main  # fmt: skip
    return equiformer.padded(systems, edges, np.float32, 0.0)


KINDS = {
    "gemnet scalar": (GemNetOCConfig(**NANO, direct_forces=False), HeadSpec(kind="scalar", heads=2)),
    "gemnet direct": (GemNetOCConfig(**NANO), HeadSpec(kind="direct", energy=True, heads=2)),
    "equiformer scalar": (TINY_EQUIFORMER, HeadSpec(kind="scalar", heads=2)),
    "equiformer direct": (TINY_EQUIFORMER, HeadSpec(kind="direct", energy=True, heads=2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_structure_gets_its_own_head(kind):
    config, head = KINDS[kind]
    model = registry.split_model(registry.build_finetuned(config, head, nnx.Rngs(0), Precision()))
    batch = _nearest() if "equiformer" in kind else pad(SYSTEMS, np.float32, BUDGET)
    batch, apply = jax.device_put(batch), jax.jit(model.apply)
    tasks = {name: batch.task * 0 + value for name, value in (("first", 0), ("second", 1))}
    tasks["mixed"] = tasks["first"].at[1].set(1)
    out = {name: apply(model.params, model.constants, batch._replace(task=task)) for name, task in tasks.items()}
    n_graph, node = len(SYSTEMS), np.asarray(batch.node_graph)
    for i in range(n_graph):
        source = "second" if i == 1 else "first"
        assert float(out["mixed"].energy[i]) == pytest.approx(float(out[source].energy[i]), rel=1e-5, abs=1e-7)
        if head.kind == "direct":
            own = (node == i) & np.asarray(batch.node_mask)
            np.testing.assert_allclose(out["mixed"].forces[own], out[source].forces[own], rtol=1e-4, atol=1e-6)
    assert abs(float(out["first"].energy[0] - out["second"].energy[0])) > 1e-6

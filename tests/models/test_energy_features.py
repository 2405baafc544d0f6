"""The energy of a model of fine-tuning is linear in what the last layer of its energy head reads."""

import jax
import jax.numpy as jnp
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
WITHOUT_EDGES = GemNetOCConfig(**NANO, direct_forces=False)
KINDS = {
    "gemnet gradient": (WITHOUT_EDGES, HeadSpec(kind="gradient", heads=2, kept=1)),
    "gemnet direct": (GemNetOCConfig(**NANO), HeadSpec(kind="direct", energy=True)),
    "gemnet mean": (WITHOUT_EDGES, HeadSpec(kind="scalar", reduction="mean", heads=2)),
    "gemnet extent": (WITHOUT_EDGES, HeadSpec(kind="scalar", reduction="extent")),
    "equiformer direct": (TINY_EQUIFORMER, HeadSpec(kind="direct", energy=True, heads=2)),
    "equiformer mean": (TINY_EQUIFORMER, HeadSpec(kind="scalar", reduction="mean")),
}


def _batch(kind: str):
    if "gemnet" in kind:
        return pad(SYSTEMS, np.float32, BUDGET)
    systems, n = concatenate(SYSTEMS), len(SYSTEMS)
    edges = NEAREST_GRAPH.build(systems.positions, systems.n_node, systems.cell, systems.pbc, None, np.full(n, 5.0),
                                np.full(n, 12)).main  # fmt: skip
    return equiformer.padded(systems, edges, np.float32, 0.0)


def _last_weights(head) -> np.ndarray:
    """The weights of a head's last layer, with its bias where it has one."""
    if not hasattr(head, "energy_block"):
        return np.asarray(head.layers[-1].kernel[...])[:, 0]
    last = head.energy_block.so3_linear_2
    return np.concatenate([np.asarray(last.kernel[...])[0, :, 0], np.asarray(last.bias[...])])


@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_is_the_features_times_the_weights_of_the_last_layer(kind):
    config, spec = KINDS[kind]
    model = registry.build_finetuned(config, spec, nnx.Rngs(0), Precision())
    batch = jax.device_put(_batch(kind))
    batch = batch._replace(task=batch.task.at[1].set(spec.heads - 1))
    heads = list(model.out_energy) if spec.heads > 1 else [model.out_energy]
    if "equiformer" in kind:
        for head in heads:
            head.energy_block.so3_linear_2.bias[...] = jnp.full(1, 0.7)
    graphdef, state = nnx.split(model)

    @jax.jit
    def both(state, batch):
        merged = nnx.merge(graphdef, state)
        return merged(batch).energy, merged.energy_features(batch)

    energy, features = map(np.asarray, both(state, batch))
    assert features.shape[0] == len(energy) and not features[len(SYSTEMS) :].any(), "padding is zero"
    for i in range(len(SYSTEMS)):
        weights = _last_weights(heads[spec.heads - 1 if i == 1 else 0]).astype(np.float64)
        scale = np.abs(features[i] * weights).sum()
        assert features[i].astype(np.float64) @ weights == pytest.approx(energy[i], rel=1e-6, abs=1e-6 * max(scale, 1))

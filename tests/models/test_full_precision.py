"""Under the float32 policy every product of float32 numbers asks for full precision, on whatever backend.

At the default precision a GPU multiplies in tf32 and a TPU in one bfloat16 pass, which no test on a CPU could see.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.nano import NANO
from fixtures.structures import GALLERY, concatenate, pad

from jaxatoms.csi.moments import empty_moments, update_part
from jaxatoms.graphs.batch import Targets, collate
from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH, nearest_budget
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.registry import abstract_model, find_config
from jaxatoms.ops.target import compiling_for
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.step import init_state, make_eval_step, make_train_step

SCALES = LossScales(jnp.ones(1), jnp.ones(1))


def _loose(lowered) -> list[str]:
    """The products of float32 numbers at default precision in a lowered program."""
    lines = (line.strip() for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line)
    of_float32 = (line for line in lines if "xf32>" in line.split(" : (")[1].split(")")[0])
    return [line[:200] for line in of_float32 if "DEFAULT" in line or "precision" not in line]


def _programs(kind: str) -> list:
    """The lowered training and evaluation steps of a small model."""
    model, batch = _equiformer() if kind == "equiformer_v2" else _gemnet(kind)
    optimizer = optax.adamw(1e-3)
    step = make_train_step(model.apply, optimizer, pretraining_terms(SCALES), ema_decay=0.99, edge_dropout=0.0)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), model.params)
    evaluation = make_eval_step(model.apply, pretraining_terms(SCALES))
    return [step.lower(state, model.constants, batch), evaluation.lower(model.params, model.constants, batch)]


def _gemnet(kind: str):
    config = GemNetOCConfig(**NANO | {"direct_forces": kind == "direct"})
    model = abstract_model(config, 1, Precision())
    if kind == "gradient":
        apply = model.apply
        squeezed = lambda *args: (lambda out: ModelOutput(out.energy[:, None], out.forces[..., None]))(apply(*args))  # noqa: E731
        model = model._replace(apply=squeezed)
    return model, pad([GALLERY["seven"]], np.float32)


def _equiformer():
    config = dataclasses.replace(find_config("equiformer_v2_tiny"), alpha_drop=0.0, drop_path_rate=0.0)
    systems = concatenate([GALLERY["seven"]])
    one = np.ones(1)
    graphs = NEAREST_GRAPH.build(
        systems.positions, systems.n_node, systems.cell, systems.pbc, systems.tags, 8 * one, np.full((1, 4), 20)
    )
    targets = Targets(one, np.ones((len(systems.positions), 3)), np.zeros(1, np.int32))
    return abstract_model(config, 1, Precision()), collate(systems, graphs, targets, nearest_budget(systems, graphs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target"), [("direct", "cpu"), ("direct", "gpu"), ("gradient", "gpu"), ("equiformer_v2", "cpu")]
)
def test_no_product_of_a_step_is_left_at_default_precision(kind, target):
    plain = jax.jit(jnp.matmul).lower(jnp.ones((4, 4)), jnp.ones((4, 4)))
    assert len(_loose(plain)) == 1, "the search is blind"
    with compiling_for(target):
        for lowered in _programs(kind):
            assert "stablehlo.dot_general" in lowered.as_text()
            assert not _loose(lowered)


def test_no_product_of_feature_moments_is_left_at_default_precision():
    rows = jnp.ones((16, 8))
    for matmul in ("float64", "slices"):
        with jax.enable_x64(matmul == "float64"):
            lowered = jax.jit(update_part, static_argnames=("part", "matmul")).lower(
                empty_moments(8, 2), part=0, rows=rows, mask=jnp.ones(16, bool), matmul=matmul
            )
        assert not _loose(lowered)

"""Every layer, output, loss and gradient of the model against a PyTorch float64 run with the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden
from flax import nnx

from jaxatoms.interop.names import checkpoint_name, to_theirs
from jaxatoms.models.gemnet_oc.indices import derive
from jaxatoms.models.gemnet_oc.shared import gradient_divisors
from jaxatoms.training.losses import FORCE_EPS, LossScales, pretraining_loss

FILES = ("tiny", "tiny_gradient", "tiny_gradient_linear")
TOLERANCE = {np.float64: 1e-9, np.float32: 2e-5}
# Gradients sum over thousands of edges with cancellation; the reference's own float32 run has no stored gradients.
GRADIENT_TOLERANCE = {np.float64: 1e-9, np.float32: 1e-4}
GATES = {"e2e": "e2e", "qint": "quad", "a2e": "a2e", "e2a": "e2a", "atom_update": "atom", "output": "out"}
PARTS = r"int_blocks\.(\d+)\.((?:trip|quad|atom_edge|edge_atom|atom)_interaction|atom_update)"


class Case:
    """A golden file run in one precision: results by golden key, in our order and with padding."""

    def __init__(self, name: str, dtype, gradients: bool = True):
        self.gold = golden.read(name)
        self.dtype, self.divisors = dtype, {}
        with jax.enable_x64(dtype == np.float64):
            self.batch, self.graphs = golden.batch(self.gold, dtype)
            model = golden.model(self.gold, golden.weights(self.gold), dtype)
            self.model_config = model.backbone.config
            results = _run(model, self.batch, self.gold, gradients)
            self.values, self.grads = jax.tree.map(np.asarray, results)
        self.order = {graph: golden.edge_order(self.gold, graph, self.graphs) for graph in golden.GRAPHS}

    def value(self, key: str) -> np.ndarray:
        """Our result in the file's order and without padding."""
        base = re.sub(r"_(mean|norm)$", "", key)
        x = self.values[base]
        if x.ndim == 0:
            return x
        edges = {len(self.batch.swap): "main", len(self.batch.a2ee2a.senders): "a2ee2a"}
        if base == "basis/rbf_a2e":
            x = x[self.order["a2ee2a"]]
        elif base.startswith(("basis", "emb", "feature/edge")) or base.endswith(("/m", "x_F")) or (
            "interaction" in base and not base.endswith(("edge_atom_interaction", "/atom_interaction"))
        ):
            assert len(x) in edges
            x = x[self.order["main"]]
        elif base == "output/energy":
            x = x[: len(self.gold["input/natoms"])]
        else:
            x = x[: len(self.gold["input/batch"])]
        if key.endswith("_mean"):
            return x.mean(1)
        return np.linalg.norm(x, axis=1) if key.endswith("_norm") else x

    def errors(self, prefixes) -> dict[str, float]:
        keys = [key for key in self.gold if key.startswith(prefixes) and not key.endswith("|norm")]
        assert keys
        return {key: golden.error(self.value(key), self.gold, key) for key in keys if "per_atom" not in key}


def _run(model, batch, gold, gradients):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, batch):
        model, seen = nnx.merge(graphdef, params, rest), {}

        def observe(name, value=None, reference=None, **parts):
            if match := re.fullmatch(PARTS, name):
                seen[f"block{match[1]}/{match[2]}"] = value
            elif name == "emb":
                seen["emb/m"] = value
            seen.update({f"{name}/{k}": v for k, v in parts.items() if v is not None})

        loss, out = (_direct if model.backbone.config.direct_forces else _gradient)(model, batch, gold, observe)
        basis = model.backbone.bases(batch, batch.positions, derive(batch))
        out |= {f"basis/rbf_{name}": getattr(basis, f"gate_{ours}") for name, ours in GATES.items()}
        return loss, seen | out | {"basis/radial_main_raw": basis.radial, "train/loss": loss}

    if not gradients:
        return jax.jit(loss_fn)(params, batch)[1], None
    (_, values), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch)
    spherical = model.backbone.config.num_spherical
    named = {checkpoint_name(path): v[...] for path, v in nnx.to_flat_state(grads)}
    return values, {name: to_theirs(name, g, spherical) for name, g in named.items()}


def _direct(model, batch, gold, observe):
    features = model.features(batch, observe=observe)
    energy, forces = model.output(features, batch, model.reductions)
    scales = (jnp.asarray(gold[f"train/{key}"].max(0), energy.dtype) for key in ("y_scale", "force_scale"))
    loss, parts = pretraining_loss(energy, forces, batch, LossScales(*scales))
    named = {"feature/node": features.node, "feature/edge": features.edge, "output/energy": energy}
    return loss, named | {"output/forces": forces} | {f"train/{key}": value for key, value in parts.items()}


def _gradient(model, batch, gold, observe):
    features = model.backbone(batch, model.embedding(batch.atomic_numbers), observe=observe)
    energy, forces = model(batch)
    difference = jnp.where(batch.force_mask[:, None], forces - batch.forces + FORCE_EPS, 1.0)
    norms = jnp.sqrt(jnp.sum(difference**2, axis=1)) * batch.force_mask
    loss = 10 * jnp.sum(norms) / jnp.sum(batch.force_mask)
    return loss, {"feature/node": features.node, "output/energy": energy, "output/forces": forces}


case_of = functools.cache(Case)


@pytest.fixture(scope="module", params=[(f, d) for f in FILES for d in TOLERANCE], ids=lambda p: f"{p[0]}-{p[1].__name__}")
def case(request):
    return case_of(*request.param)


def assert_within(errors: dict[str, float], tolerance: float):
    bad = {key: f"{e:.1e}" for key, e in errors.items() if not e < tolerance}
    assert errors
    assert not bad, f"over {tolerance}: {bad}"


@pytest.mark.parametrize("name", (*FILES, "small_S"))
@pytest.mark.parametrize("graph", golden.GRAPHS)
def test_our_graphs_have_the_same_edges(name, graph):
    gold = golden.read(name)
    assert golden.edge_order(gold, graph, golden.graphs(gold)[1]) is not None


def test_layers(case):
    assert_within(case.errors(("basis/", "emb/", "block", "out0", "out1", "out2")), TOLERANCE[case.dtype])


def test_features_and_outputs(case):
    assert_within(case.errors(("feature/", "output/")), TOLERANCE[case.dtype])


def test_losses(case):
    assert_within(case.errors(("train/loss", "train/energy_loss", "train/force_loss")[:1]), TOLERANCE[case.dtype])
    if "train/y" in case.gold:
        assert_within(case.errors(("train/energy_loss", "train/force_loss")), TOLERANCE[case.dtype])


def test_gradients(case):
    """Of the loss with respect to every parameter; through the forces, second order, in the gradient files."""
    names = {key.removeprefix("train/grad/") for key in case.gold if key.startswith("train/grad/")}
    names = {name for name in names if not name.endswith("|norm")}
    assert names <= set(case.grads)
    errors = {name: golden.error(case.grads[name], case.gold, f"train/grad/{name}") for name in names}
    assert_within(errors, GRADIENT_TOLERANCE[case.dtype])
    without = {name for name in set(case.grads) - names if np.any(case.grads[name])}
    assert not without, "the reference has no gradient here"

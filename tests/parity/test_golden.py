"""Every layer, output, loss and gradient of the model against a PyTorch float64 run with the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden
from fixtures.losses import pretraining_loss
from flax import nnx

from jaxatoms.models.gemnet_oc.indices import derive
from jaxatoms.models.gemnet_oc.names import checkpoint_name, to_theirs
from jaxatoms.models.gemnet_oc.per_parameter import gradient_divisors
from jaxatoms.training.losses.forces import FORCE_EPS
from jaxatoms.training.losses.pretraining import LossScales

FILES = ("tiny", "tiny_gradient", "tiny_gradient_linear")
TOLERANCE = {np.float64: 1e-9, np.float32: 2e-5}
# Gradients sum over thousands of edges with cancellation; the reference's own float32 run has no stored gradients.
GRADIENT_TOLERANCE = {np.float64: 1e-9, np.float32: 1e-4}
GATES = {"e2e": "e2e", "qint": "quad", "a2e": "a2e", "e2a": "e2a", "atom_update": "atom", "output": "out"}
PARTS = r"int_blocks\.(\d+)\.((?:trip|quad|atom_edge|edge_atom|atom)_interaction|atom_update)"


class Case:
    """A golden file run in one precision: results by golden key, in our order and with padding."""

    def __init__(self, name: str, dtype, gradients: bool = True):
        self.gold, self.dtype = golden.read(name), dtype
        alike = [file for file in FILES if golden.read(file)["config"]["seed"] == self.gold["config"]["seed"]]
        budget = golden.largest(golden.tight_budget(*golden.graphs(golden.read(file))) for file in alike or [name])
        with jax.enable_x64(dtype == np.float64):
            self.batch, self.graphs = golden.batch(self.gold, dtype, budget)
            self.model = golden.model(name, dtype)
            results = _run(self.model, self.batch, self.gold, gradients)
            self.values, self.grads = jax.tree.map(np.asarray, results)
        self.order = {graph: golden.edge_order(self.gold, graph, self.graphs) for graph in golden.GRAPHS}

    def value(self, key: str) -> np.ndarray:
        """Our result in the file's order and without padding."""
        if key == "feature/edge_mean_per_atom":
            receivers, x = self.graphs.main.receivers, self.values["feature/edge"]
            total = np.zeros((len(self.gold["input/batch"]), x.shape[1]))
            np.add.at(total, receivers, x[: len(receivers)])
            return total / np.maximum(np.bincount(receivers, minlength=len(total)), 1)[:, None]
        base = re.sub(r"_(mean|norm)$", "", key)
        x = self.values[base]
        rows = _rows_of(base)
        if rows in self.order:
            x = x[self.order[rows]]
        elif rows:
            x = x[: len(self.gold[f"input/{rows}"])]
        if key.endswith("_mean"):
            return x.mean(1)
        return np.linalg.norm(x, axis=1) if key.endswith("_norm") else x

    def errors(self, prefixes) -> dict[str, float]:
        """Relative errors of all results whose golden key starts so."""
        keys = [key for key in self.gold if key.startswith(prefixes) and not key.endswith("|norm")]
        return {key: golden.error(self.value(key), self.gold, key) for key in keys}


def _rows_of(key: str) -> str | None:
    """What the rows of a result are: edges of a graph, or atoms or structures (by an input's name)."""
    if key == "basis/rbf_a2e":
        return "a2ee2a"
    if key == "output/energy":
        return "natoms"
    if key.startswith("train/"):
        return None
    of_atoms = key.endswith(("/h", "x_E", "/edge_atom_interaction", "/atom_interaction", "/atom_update", "/node"))
    return "atomic_numbers" if of_atoms or key == "output/forces" else "main"


@functools.cache
def _compiled(graphdef, scales, gradients):
    """(params, rest, batch) -> (values by golden key, gradients). Files of one kind share it."""

    def loss_fn(params, rest, batch):
        model, seen = nnx.merge(graphdef, params, rest), {}

        def observe(name, value=None, reference=None, **parts):
            if match := re.fullmatch(PARTS, name):
                seen[f"block{match[1]}/{match[2]}"] = value
            elif name == "emb":
                seen["emb/m"] = value
            seen.update({f"{name}/{k}": v for k, v in parts.items() if v is not None})

        loss, out = _direct(model, batch, scales, observe) if scales else _gradient(model, batch, observe)
        basis = model.backbone.bases(batch, batch.positions, derive(batch))
        out |= {f"basis/rbf_{name}": getattr(basis, f"gate_{ours}") for name, ours in GATES.items()}
        return loss, seen | out | {"basis/radial_main_raw": basis.radial, "train/loss": loss}

    if not gradients:
        return jax.jit(lambda *args: (loss_fn(*args)[1], {}))

    def with_gradients(*args):
        (_, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(*args)
        return values, grads

    return jax.jit(with_gradients)


def _run(model, batch, gold, gradients):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    scales = None
    if model.backbone.config.direct_forces:
        scales = tuple(tuple(gold[f"train/{key}"].max(0).tolist()) for key in ("y_scale", "force_scale"))
    values, grads = _compiled(graphdef, scales, gradients)(params, rest, batch)
    spherical = model.backbone.config.num_spherical
    named = {checkpoint_name(path): v[...] for path, v in nnx.to_flat_state(grads)} if gradients else {}
    return values, {name: to_theirs(name, g, spherical) for name, g in named.items()}


def _direct(model, batch, scales, observe):
    features = model.features(batch, observe=observe)
    energy, forces, *_ = model.output(features, batch, model.reductions)
    weights = LossScales(*(jnp.asarray(row, energy.dtype) for row in scales))
    loss, parts = pretraining_loss(energy, forces, batch, weights)
    named = {"feature/node": features.node, "feature/edge": features.edge, "output/energy": energy}
    return loss, named | {"output/forces": forces} | {f"train/{key}": value for key, value in parts.items()}


def _gradient(model, batch, observe):
    features = model.backbone(batch, model.embedding(batch.atomic_numbers), observe=observe)
    energy, forces, *_ = model(batch)
    difference = jnp.where(batch.force_mask[:, None], forces - batch.forces + FORCE_EPS, 1.0)
    norms = jnp.sqrt(jnp.sum(difference**2, axis=1)) * batch.force_mask
    loss = 10 * jnp.sum(norms) / jnp.sum(batch.force_mask)
    return loss, {"feature/node": features.node, "output/energy": energy, "output/forces": forces}


case_of = functools.cache(Case)
CASES = [(file, dtype) for file in FILES for dtype in TOLERANCE]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: f"{p[0]}-{p[1].__name__}")
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
    kinds = ("train/loss", "train/energy_loss", "train/force_loss")
    assert_within(case.errors(kinds if "train/y" in case.gold else kinds[:1]), TOLERANCE[case.dtype])


def test_gradients(case):
    """Of the loss with respect to every parameter; through the forces, second order, in the gradient files."""
    names = {key.removeprefix("train/grad/") for key in case.gold if key.startswith("train/grad/")}
    names = {name for name in names if not name.endswith("|norm")}
    assert names <= set(case.grads)
    errors = {name: golden.error(case.grads[name], case.gold, f"train/grad/{name}") for name in names}
    assert_within(errors, GRADIENT_TOLERANCE[case.dtype])
    without = {name for name in set(case.grads) - names if np.any(case.grads[name])}
    assert not without, "the reference has no gradient here"


def test_gradient_divisors():
    """The reference's list of shared parameters, and how often each is used."""
    gold, model = case_of("tiny", np.float32).gold, case_of("tiny", np.float32).model
    params = nnx.state(model, nnx.Param)
    divisors = gradient_divisors(params, model.backbone.config)
    named = {checkpoint_name(path): int(jax.tree.leaves(v)[0]) for path, v in nnx.to_flat_state(divisors)}
    shared = str(gold["train/shared_names"]).split("\n")
    expected = dict(zip(shared, gold["train/shared_factors"].tolist(), strict=True))
    assert {name: n for name, n in named.items() if n != 1} == expected


@pytest.fixture(scope="module", params=TOLERANCE, ids=lambda d: d.__name__)
def small(request):
    """The dimensions of variant S: 40 million parameters, 4 blocks."""
    return case_of("small_S", request.param, gradients=request.param == np.float64)


@pytest.mark.slow
def test_small_variant(small):
    kinds = ("emb/", "block", "out", "feature/", "train/loss", "train/energy_loss", "train/force_loss")
    assert_within(small.errors(kinds), TOLERANCE[small.dtype])
    if not small.grads:
        return
    # Norm and sum of every parameter's gradient; a sum of both signs is compared with the norm times sqrt(size).
    names, errors = str(small.gold["train/grad_names"]).split("\n"), {}
    assert set(names) == set(small.grads)
    for name, (norm, total) in zip(names, small.gold["train/grad_norm_sum"], strict=True):
        grad = small.grads[name]
        errors[name] = max(abs(np.linalg.norm(grad) - norm), abs(grad.sum() - total) / grad.size**0.5) / norm
    assert_within(errors, 1e-9)

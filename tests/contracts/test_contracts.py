"""What must hold for any weights: symmetries, independence of padding and company, finite derivatives, F = -dE/dx."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden
from fixtures.losses import pretraining_loss
from fixtures.structures import BUDGET, GALLERY, LINEAR, ROOMY, concatenate, graphs_of, pad
from flax import nnx
from twins.gemnet_oc_enumerated import forward, heads

from jaxatoms.training.losses.pretraining import LossScales

MODELS = {"direct": "tiny", "gradient": "tiny_gradient"}
TOLERANCE = 1e-10  # float64, relative to the largest value
CRYSTAL = list(GALLERY).index("crystal")


@functools.cache
def model_of(kind: str, dtype=np.float64):
    """Two small blocks with random weights and JMP's scale factors."""
    with jax.enable_x64(dtype == np.float64):
        return golden.model(MODELS[kind], dtype)


@functools.cache
def _function(kind: str):
    """(model, batch, w) -> (output, gradient of sum(w energy) by position)."""

    def value(positions, model, batch, w):
        out = model(batch._replace(positions=positions))
        return jnp.sum(w * out.energy[..., 0]), out

    def with_gradient(model, batch, w):
        gradient, out = jax.grad(value, has_aux=True)(batch.positions, model, batch, w)
        return out, gradient

    # The gradient model has its own derivative in it; one more would be second order and slow to compile.
    return jax.jit(
        with_gradient if kind == "direct" else lambda model, batch, w: (model(batch), -model(batch).forces)
    )


def raw(kind: str, batch, w=None):
    """Padded (energy, forces, gradient) as arrays."""
    with jax.enable_x64(True):
        w = np.ones(len(batch.task)) if w is None else w
        (energy, forces, *_), gradient = _function(kind)(model_of(kind), batch, w)
        return np.asarray(energy), np.asarray(forces), np.asarray(gradient)


def predict(kind: str, systems, budget=BUDGET):
    """(energy per structure, [forces of each structure])."""
    energy, forces, _ = raw(kind, pad(systems, budget=budget))
    ends = np.cumsum([len(s.positions) for s in systems])
    return energy[: len(systems)], np.split(forces, ends)[:-1]


def assert_equal(ours, theirs, label="", tolerance=TOLERANCE):
    """Energies and forces of each structure agree, relative to the largest of all."""
    (energy, forces), (energy_2, forces_2) = ours, theirs
    assert np.abs(energy - energy_2).max() <= tolerance * np.abs(energy_2).max(), label
    largest = max(np.abs(f).max() for f in forces_2)
    errors = {name: np.abs(f - g).max() / largest for name, f, g in zip(GALLERY, forces, forces_2)}
    assert max(errors.values()) <= tolerance, (label, errors)


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@functools.cache
def reference(kind):
    return predict(kind, list(GALLERY.values()))


def moved(change):
    """The gallery with `change(system)` applied to every structure."""
    return [change(system) for system in GALLERY.values()]


def _rotation(sign):
    q, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q)) * sign


@pytest.mark.parametrize("sign", [1, -1], ids=["rotation", "reflection"])
def test_rotation_and_reflection(kind, sign):
    turn = _rotation(sign)
    cell = lambda s: None if s.cell is None else s.cell @ turn.T  # noqa: E731
    energy, forces = predict(kind, moved(lambda s: s._replace(positions=s.positions @ turn.T, cell=cell(s))))
    back = [np.einsum("ij,aj...->ai...", turn.T, f) for f in forces]
    assert_equal((energy, back), reference(kind))


def test_translation(kind):
    there = np.array([11.0, -7.0, 3.5])
    assert_equal(predict(kind, moved(lambda s: s._replace(positions=s.positions + there))), reference(kind))


def test_order_of_atoms(kind):
    """Molecules only: where a neighbour limit cuts a crystal, the main graph depends on the order by design."""
    rng = np.random.default_rng(2)
    orders = {name: rng.permutation(len(s.positions)) for name, s in GALLERY.items()}
    orders["crystal"] = np.arange(len(GALLERY["crystal"].positions))

    def reorder(name, s):
        order = orders[name]
        return s._replace(positions=s.positions[order], atomic_numbers=s.atomic_numbers[order])

    energy, forces = predict(kind, [reorder(name, s) for name, s in GALLERY.items()])
    restored = [f[np.argsort(order)] for f, order in zip(forces, orders.values())]
    assert_equal((energy, restored), reference(kind))


def test_lattice_translations(kind):
    """Atoms moved to other cells, one by one and each by its own vector."""
    rng = np.random.default_rng(3)

    def unwrap(s):
        return (
            s if s.cell is None else s._replace(positions=s.positions + rng.integers(-2, 3, s.positions.shape) @ s.cell)
        )

    def one(s):
        return (
            s
            if s.cell is None
            else s._replace(positions=s.positions + np.eye(len(s.positions))[2][:, None] * s.cell[1])
        )

    for change in (unwrap, one):
        assert_equal(predict(kind, moved(change)), reference(kind))


def test_padding_changes_nothing_and_gets_nothing(kind):
    systems = list(GALLERY.values())
    assert_equal(predict(kind, systems, ROOMY), reference(kind))
    for budget in (BUDGET, ROOMY):
        energy, forces, gradient = raw(kind, pad(systems, budget=budget))
        n_node = sum(len(s.positions) for s in systems)
        assert not energy[len(systems) :].any()
        assert not forces[n_node:].any() and not gradient[n_node:].any()


def test_structures_do_not_know_their_company(kind):
    alone = [predict(kind, [system]) for system in GALLERY.values()]
    together = np.concatenate([energy for energy, _ in alone]), [forces[0] for _, forces in alone]
    assert_equal(together, reference(kind))
    # Exactly: other structures change, the first stays bit by bit.
    changed = [s if i == 0 else s._replace(positions=1.1 * s.positions) for i, s in enumerate(GALLERY.values())]
    energy, forces = predict(kind, changed)
    assert np.array_equal(energy[0], reference(kind)[0][0]) and np.array_equal(forces[0], reference(kind)[1][0])


def test_no_gradient_between_structures():
    systems = list(GALLERY.values())
    batch = pad(systems)
    for i in (0, CRYSTAL):
        gradient = raw("direct", batch, 1.0 * (np.arange(len(batch.task)) == i))[2]
        inside = batch.node_graph == i
        assert np.abs(gradient[inside]).max() > 0
        assert not gradient[~inside].any()


def test_forces_are_the_slope_of_the_energy():
    """Central differences of fourth order along a random direction (along the axis for linear molecules)."""
    systems, rng, step = list(GALLERY.values()), np.random.default_rng(7), 1e-3
    direction = np.concatenate(
        [rng.normal(size=s.positions.shape) * ([1, 0, 0] if n in LINEAR else 1) for n, s in GALLERY.items()]
    )
    batch, energies = pad(systems), []
    for k in (-2, -1, 1, 2):
        positions = batch.positions.copy()
        positions[: len(direction)] += k * step * direction
        energies.append(raw("gradient", batch._replace(positions=positions))[0][: len(systems)])
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
    ends = np.cumsum([len(s.positions) for s in systems])[:-1]
    work = [np.sum(f * d) for f, d in zip(reference("gradient")[1], np.split(direction, ends))]
    assert np.abs(slope + work).max() < 1e-6 * np.abs(work).max()


def test_net_force_is_zero():
    """Gradient forces add up to nothing, because the energy knows only differences of positions."""
    forces = reference("gradient")[1]
    largest = max(np.abs(f).max() for f in forces)
    assert max(np.abs(f.sum(0)).max() for f in forces) < 1e-10 * largest


# ------------------------------------------------------------------------------------------------ finite


@functools.cache
def _loss_gradient(kind: str):
    def loss_fn(params, graphdef, rest, batch):
        out = nnx.merge(graphdef, params, rest)(batch)
        if kind == "direct":
            one = jnp.ones(2, out.energy.dtype)
            return pretraining_loss(out.energy, out.forces, batch, LossScales(one, one))[0]
        difference = jnp.where(batch.force_mask[:, None], out.forces - batch.forces, 0)
        return jnp.sum(jnp.where(batch.energy_mask, out.energy - batch.energy, 0) ** 2) + jnp.sum(difference**2)

    return jax.jit(jax.value_and_grad(loss_fn), static_argnums=1)


def loss_and_gradient(kind, systems):
    """In float32; second order for the gradient model."""
    graphdef, params, rest = nnx.split(model_of(kind, np.float32), nnx.Param, ...)
    return _loss_gradient(kind)(params, graphdef, rest, pad(systems, np.float32))


@pytest.mark.parametrize("name", GALLERY)
def test_training_derivatives_are_finite(kind, name):
    """A structure alone in its batch: 1, 2 or 3 atoms, lines, no edges, no quadruplets."""
    loss, gradient = loss_and_gradient(kind, [GALLERY[name]])
    assert np.isfinite(loss)
    bad = [path for path, x in jax.tree_util.tree_leaves_with_path(gradient) if not np.isfinite(x).all()]
    assert not bad


# -------------------------------------------------------------------------------------- enumerated twin


def test_against_every_triplet_and_quadruplet_listed(kind):
    """Molecules and a cut, skew crystal, against the NumPy twin on the same graphs."""
    systems = list(GALLERY.values())
    batch = concatenate(systems)
    built = graphs_of(batch)
    graphs = {g: (np.stack(getattr(built, g)[:2]), -getattr(built, g).shifts) for g in golden.GRAPHS}
    graphs["id_swap"] = built.swap
    params = golden.weights(MODELS[kind])
    node_graph = np.repeat(np.arange(len(systems)), batch.n_node)
    out = forward(params, batch.atomic_numbers, batch.positions, batch.cell, node_graph, graphs)
    energy, forces = reference(kind)
    if kind == "gradient":
        expected = heads(params, out, None)[0]
        assert np.abs(energy - expected).max() < 1e-9 * np.abs(expected).max()
        return
    for task, reduction in enumerate(("sum", "mean")):
        expected, direct = heads(params, out, task, reduction)
        assert np.abs(energy[:, task] - expected).max() < 1e-9 * np.abs(expected).max()
        assert np.abs(np.concatenate(forces)[..., task] - direct).max() < 1e-9 * np.abs(direct).max()


def test_structures_cover_what_they_should():
    """The crystal's graphs are cut and differ; molecules keep all pairs; `atom` has no edge."""
    batch = concatenate(list(GALLERY.values()))
    built = graphs_of(batch)
    graph = np.repeat(np.arange(len(batch.n_node)), batch.n_node)
    counts = {g: np.bincount(graph[getattr(built, g).receivers], minlength=len(GALLERY)) for g in golden.GRAPHS}
    assert len({int(counts[g][CRYSTAL]) for g in golden.GRAPHS}) == 4
    assert counts["main"][list(GALLERY).index("atom")] == 0 and counts["main"][list(GALLERY).index("apart")] == 0
    is_self = built.main.senders == built.main.receivers
    assert is_self.any(), "no atom sees its own image"

"""Quadruplets that fade out where three atoms are in line: the same function elsewhere, and a smooth one there."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import golden
from fixtures.structures import GALLERY, concatenate, graphs_of, pad
from twins.gemnet_oc_enumerated import forward, heads

from benchmarks.dynamics import smallest_sine
from jaxatoms.models.gemnet_oc import geometry as geo
from jaxatoms.models.registry import config_from_record, find_config, model_record, presets, with_smooth_quadruplets
from jaxatoms.types import InputError, System

MODEL, BOTH = "tiny_gradient", (False, True)
# Atom 3 (c) passes atom 0 (a) on the far side of atom 1 (b); no three other atoms are nearly in line.
LINE = System(
    np.array([6, 6, 1, 8, 1], np.uint8),
    np.array([[0, 0, 0], [1.3, 0, 0], [1.9, 1.1, 0.2], [-1.2, 0, 0], [0.2, -0.5, 1.1]]),
)
PATH = np.linspace(-0.5, 0.5, 401)  # A, of atom 3 along y
SPACING = PATH[1] - PATH[0]


@functools.cache
def _function(smooth: bool):
    model = golden.model(MODEL, np.float64, smooth_quadruplets=smooth)
    systems = concatenate([LINE])
    batch = pad([LINE], budget=golden.tight_budget(systems, graphs_of(systems)))
    batch = jax.tree.map(jnp.asarray, batch)

    def one(positions):
        out = model(batch._replace(positions=batch.positions.at[: len(positions)].set(positions)))
        return out.energy[0], out.forces[: len(positions)]

    return jax.jit(one)


def _predict(smooth: bool, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies [T] and forces [T, 5, 3] at positions [T, 5, 3]."""
    with jax.enable_x64(True):
        energy, forces = zip(*map(_function(smooth), positions), strict=True)
        return np.array(energy), np.array(forces)


def _moved(y, z=0.0) -> np.ndarray:
    """[len(y), 5, 3] with atom 3 at y, z beside the line."""
    out = np.repeat(LINE.positions[None], len(y), axis=0)
    out[:, 3, 1], out[:, 3, 2] = y, z
    return out


def _curvature(energy: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(energy, 2)) / SPACING**2


def test_the_factor_is_flat_and_twice_continuously_differentiable_at_both_ends():
    with jax.enable_x64(True):
        edge = geo.BENT_SINE**2
        derivatives = [geo.bend, jax.grad(geo.bend), jax.grad(jax.grad(geo.bend))]
        at = {x: [float(f(x * edge)) * edge**k for k, f in enumerate(derivatives)] for x in (0.0, 1 - 1e-9, 1.0, 4.0)}
    for x, value in at.items():
        assert value == pytest.approx([float(x > 0.5), 0, 0], abs=1e-6), x
    assert at[0.0][0] == 0 and at[1.0][0] == at[4.0][0] == 1


def test_bent_structures_are_computed_as_published():
    """Every angle between atoms has a sine above the bound, so that the factors are exactly 1."""
    bent = LINE.positions.copy()
    bent[3] = [-0.6, 1.2, -0.3]
    assert smallest_sine(bent) > geo.BENT_SINE
    (energy, forces), (energy_2, forces_2) = (_predict(smooth, bent[None]) for smooth in BOTH)
    np.testing.assert_allclose(energy_2, energy, rtol=1e-12)
    np.testing.assert_allclose(forces_2, forces, rtol=0, atol=1e-12 * np.abs(forces).max())


@pytest.mark.parametrize("z", [0.0, 1e-3])
def test_energies_through_a_straight_line(z):
    """Second differences (eV/A^2, steps of 2.5e-3 A): 171 and 46 as published, 0.25 where quadruplets fade out."""
    published, smooth = (_curvature(_predict(smooth, _moved(PATH, z))[0]) for smooth in BOTH)
    assert published.max() > 40
    assert smooth.max() < 0.5
    assert np.median(smooth) == pytest.approx(np.median(published), rel=0.2)


def test_forces_through_a_straight_line():
    """Changes of the force (eV/A^2): 264 as published, 0.29 where quadruplets fade out."""
    slopes = []
    for smooth in BOTH:
        forces = _predict(smooth, _moved(PATH, 1e-3))[1]
        slopes.append(np.abs(np.diff(forces, axis=0)).max() / SPACING)
    assert slopes[0] > 100
    assert slopes[1] < 0.5


def test_the_energy_on_the_line_is_the_limit_of_those_beside_it():
    """As published it depends on the side from which atom 3 comes, however near; the azimuth does."""
    turn = np.linspace(0, 2 * np.pi, 24)
    near = 1e-6
    published, smooth = (_predict(s, _moved(near * np.cos(turn), near * np.sin(turn)))[0] for s in BOTH)
    on_the_line = _predict(True, _moved([0.0]))[0]
    assert np.ptp(published) > 1e-4
    assert np.abs(smooth - on_the_line).max() < 1e-6


@pytest.mark.parametrize("away", [0.0, 1e-12, 1e-9, 1e-6, 1e-4, 0.01, 0.1, 0.3])
def test_forces_are_the_slope_of_the_energy_at_and_near_a_straight_line(away):
    """Central differences of fourth order along random directions of all atoms, the distance in A."""
    start, step = _moved([0.8 * away], 0.6 * away)[0], 2e-4
    directions = np.random.default_rng(3).normal(size=(6, *start.shape))
    places = [start + k * step * d for d in directions for k in (-2, -1, 1, 2)]
    energy, forces = _predict(True, np.stack([*places, start]))
    before_2, before, after, after_2 = energy[:-1].reshape(-1, 4).T
    slope = (before_2 - 8 * before + 8 * after - after_2) / (12 * step)
    work = np.sum(forces[-1] * directions, axis=(1, 2))
    np.testing.assert_allclose(-slope, work, rtol=0, atol=1e-7 * np.abs(work).max())


def test_against_every_quadruplet_listed():
    """Molecules, chains exactly in line and a cut crystal, against the NumPy twin with a factor on each one."""
    systems = list(GALLERY.values())
    batch, built = concatenate(systems), graphs_of(concatenate(systems))
    graphs = {g: (np.stack(getattr(built, g)[:2]), -getattr(built, g).shifts) for g in golden.GRAPHS}
    graphs["id_swap"] = built.swap
    node_graph, params = np.repeat(np.arange(len(systems)), batch.n_node), golden.weights(MODEL)
    args = (params, batch.atomic_numbers, batch.positions, batch.cell, node_graph, graphs)
    published, expected = (heads(params, forward(*args, smooth=smooth), None)[0] for smooth in BOTH)
    with jax.enable_x64(True):
        model = golden.model(MODEL, np.float64, smooth_quadruplets=True)
        found = jax.jit(lambda model, batch: model.energy(batch, batch.positions))(model, pad(systems))
    np.testing.assert_allclose(found[: len(systems)], expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert np.abs(published - expected).max() > 1e-4 * np.abs(expected).max()


def test_records_keep_the_switch_and_earlier_ones_are_as_published():
    smooth = with_smooth_quadruplets(find_config("gemnet_oc_nano"), "yes")
    record = json.loads(json.dumps(model_record(smooth)))
    assert config_from_record(record) == smooth and smooth.smooth_quadruplets
    del record["smooth_quadruplets"]
    assert config_from_record(record) == find_config("gemnet_oc_nano")
    assert not any(getattr(preset, "smooth_quadruplets", False) for preset in presets().values())


def test_the_option_follows_the_dimensions_or_overrides_them():
    plain = find_config("gemnet_oc_tiny")
    smooth = dataclasses.replace(plain, smooth_quadruplets=True)
    for config in (plain, smooth):
        assert with_smooth_quadruplets(config, "auto") == config
        assert with_smooth_quadruplets(config, "yes") == smooth
        assert with_smooth_quadruplets(config, "no") == plain
    with pytest.raises(InputError, match="^--smooth-quadruplets is for GemNet-OC; leave it out$"):
        with_smooth_quadruplets(find_config("equiformer_v2_tiny"), "yes")
    assert with_smooth_quadruplets(find_config("equiformer_v2_tiny"), "no") == find_config("equiformer_v2_tiny")

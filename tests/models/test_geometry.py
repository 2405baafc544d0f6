"""Dihedral angles of quadruplets: where ours are the reference's, and where its lower bound of a norm makes others."""

import jax
import numpy as np
import pytest
from fixtures.structures import concatenate, graphs_of
from twins.gemnet_oc_enumerated import dihedral, edge_geometry, quadruplets

from jaxatoms.models.gemnet_oc import geometry as geo
from jaxatoms.ops.target import compiling_for
from jaxatoms.types import System

HALF = 2.82  # A, half the lattice constant of rock salt: every row of atoms is a straight line
CORNERS = np.indices((2, 2, 2)).reshape(3, -1).T
SITES = HALF * CORNERS
NUMBERS = np.where(CORNERS.sum(axis=1) % 2, 17, 11).astype(np.uint8)
ROCK_SALT = System(NUMBERS, SITES, 2 * HALF * np.eye(3), (True,) * 3)


def _displaced(size: float) -> np.ndarray:
    return SITES + size * np.random.default_rng(0).normal(size=SITES.shape)


def _angles(positions: np.ndarray):
    """(the reference's cos theta, ours, |p| |q|) of the quadruplets of the perfect crystal, in float64."""
    perfect = graphs_of(concatenate([ROCK_SALT]))
    main, qint = (
        (np.stack([graph.senders, graph.receivers]), -graph.shifts) for graph in (perfect.main, perfect.qint)
    )
    quads, where = quadruplets(main, qint), (positions, ROCK_SALT.cell[None], np.zeros(len(positions), int))
    v_main, v_qint = edge_geometry(main, *where)[1], edge_geometry(qint, *where)[1]
    v_ca, v_ba, v_db = v_main[quads["ca"]], v_qint[quads["ba"]], v_main[quads["db"]]
    x, y = dihedral(v_ca, v_ba, v_db)
    sines = [np.linalg.norm(np.cross(v, v_ba), axis=-1) for v in (v_ca, v_db)]
    return x / np.sqrt(x * x + y * y), _our_cosine(v_ca, v_ba, v_db), sines[0] * sines[1]


def _our_cosine(v_ca, v_ba, v_db) -> np.ndarray:
    """cos(alpha_c - beta_d), as the Fourier moments of the quadruplet interaction multiply it out."""
    with jax.enable_x64(True):
        frame = geo.frame(np.asarray(v_ba))
        outer, inner = (geo.azimuth(np.asarray(v), v_ba, *frame, 2) for v in (v_ca, v_db))
        cosine = outer.phases[1] * inner.phases[1] + outer.phases[2] * inner.phases[2]
        return np.where(outer.collinear | inner.collinear, 0, cosine)


@pytest.mark.parametrize("size", [0.0, 0.05])
def test_dihedrals_are_the_reference_s_in_perfect_and_in_displaced_crystals(size):
    reference, ours, _ = _angles(_displaced(size))
    assert len(ours) > 1000 and np.ptp(ours) > 1.5
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4, 1e-3])
def test_the_difference_is_bounded_by_the_sines_of_the_two_angles(size):
    """docs/pitfalls.md: (1e-9 / (|p| |q|))^2 / 2."""
    reference, ours, sines = _angles(_displaced(size))
    bound = (1e-9 / np.maximum(sines, 1e-12)) ** 2 / 2
    assert (np.abs(ours - reference) <= 1e-6 + 1.01 * bound).all()


def test_dihedrals_differ_where_a_crystal_is_almost_perfect():
    """docs/pitfalls.md: both ends within about 3e-5 of a straight line, neither exactly on it."""
    reference, ours, sines = _angles(_displaced(1e-6))
    differs = np.abs(ours - reference) > 1e-3
    assert np.abs(ours - reference).max() > 0.5
    assert 10 < differs.sum() < 0.02 * len(ours)
    assert sines[differs].max() < 1e-7 and (sines[differs] > 0).all()


def test_the_reference_itself_depends_on_rounding_there():
    """The same crystal with coordinates rounded to 1e-6 A, as files hold them."""
    noisy = _displaced(1e-7)
    (before, *_), (after, *_) = _angles(noisy), _angles(np.round(noisy, 6))
    assert np.abs(before - after).max() > 0.5


def test_on_a_gpu_zeros_fill_the_harmonics_up_to_eights():
    """cuBLAS would pad them in every product; the degree of a zero is none, so that projections end in zeros, too."""
    direction = np.random.default_rng(0).normal(size=(5, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    for count, padded in [(7, 56), (4, 16), (2, 8)]:
        plain, degrees = np.asarray(geo.harmonics(direction, count)), geo.degree_of_component(count)
        with compiling_for("gpu"):
            filled, filled_degrees = np.asarray(geo.harmonics(direction, count)), geo.degree_of_component(count)
        assert filled.shape == (5, padded) and filled_degrees.shape == (count, padded)
        np.testing.assert_array_equal(filled[:, : count**2], plain)
        np.testing.assert_array_equal(filled_degrees[:, : count**2], degrees)
        assert not filled[:, count**2 :].any() and not filled_degrees[:, count**2 :].any()

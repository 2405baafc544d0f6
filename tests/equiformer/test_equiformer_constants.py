"""Harmonics, J matrices, grids and edge frames against e3nn-jax, stored matrices and their definitions."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import equiformer

from jaxatoms.models.equiformer_v2 import harmonics
from jaxatoms.models.equiformer_v2.frames import rotations
from jaxatoms.models.equiformer_v2.layers import distance_basis

LMAX = 6
POLES = [[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1]]


def directions(n: int = 300) -> np.ndarray:
    v = np.random.default_rng(3).normal(size=(n, 3))
    near = np.array([[0, 1, 0], [0, -1, 0]]) + 1e-3 * np.random.default_rng(4).normal(size=(20, 1, 3))
    v = np.concatenate([v, np.array(POLES, float), near.reshape(-1, 3)])
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_harmonics_are_those_of_e3nn():
    with jax.enable_x64(True):
        irreps = e3nn.Irreps.spherical_harmonics(LMAX)
        v = jnp.asarray(directions())
        theirs = e3nn.spherical_harmonics(irreps, v, normalize=False, normalization="norm").array
    assert harmonics.harmonics(directions(), LMAX) == pytest.approx(np.asarray(theirs), abs=1e-13)


def test_first_degree_is_x_y_z():
    assert harmonics.harmonics(directions(), 1)[:, 1:] == pytest.approx(directions(), abs=1e-15)


@pytest.mark.parametrize("degree", range(1, LMAX + 1))
def test_j_is_symmetric_orthogonal_and_e3nns(degree):
    j = harmonics.j_matrix(degree)
    assert j == pytest.approx(j.T, abs=1e-13)
    assert j @ j == pytest.approx(np.eye(len(j)), abs=1e-13)
    quarter = e3nn.Irrep(degree, 1).D_from_angles(0.0, np.pi / 2, 0.0)  # J Z(pi/2) J
    f = degree - np.arange(2 * degree + 1)
    z = np.diag(np.cos(f * np.pi / 2)) + np.sin(f * np.pi / 2)[:, None] * np.eye(len(j))[::-1] * (f != 0)[:, None]
    assert j @ z @ j == pytest.approx(np.asarray(quarter), abs=1e-5)


def test_m_major_order():
    """docs/reference/equiformer_v2.md, Conventions."""
    expected = [0, 2, 6, 12, 20, 3, 7, 13, 21, 1, 5, 11, 19, 8, 14, 22, 4, 10, 18]
    assert harmonics.m_major(4, 2).tolist() == expected


def test_grid_round_trips():
    to_grid, from_grid = harmonics.sphere_grid(4, 18)
    assert from_grid @ to_grid == pytest.approx(np.eye(25), abs=1e-13)
    to_grid, from_grid = harmonics.edge_sphere_grid(4, 2, 18)
    squares = np.array([1, 1, 1, 1.4, 1.8])[harmonics.degree_of_coefficient(4)[harmonics.m_major(4, 2)]]
    assert from_grid @ to_grid == pytest.approx(np.diag(squares), abs=1e-13)


def test_stored_constants():
    gold = equiformer.whole_case("l4m2", "mols")
    to_grid, from_grid = harmonics.sphere_grid(4, 18)
    assert to_grid.reshape(18, 18, 25) == pytest.approx(gold["to_grid_mat_l_l"], abs=1e-7)  # stored from float32
    assert from_grid.T.reshape(18, 18, 25) == pytest.approx(gold["from_grid_mat_l_l"], abs=1e-7)
    order = np.argsort(harmonics.m_major(4, 2))
    to_grid, from_grid = harmonics.edge_sphere_grid(4, 2, 18)
    assert to_grid[:, order].reshape(18, 18, 19) == pytest.approx(gold["to_grid_mat_l_m"], abs=1e-7)
    assert from_grid[order].T.reshape(18, 18, 19) == pytest.approx(gold["from_grid_mat_l_m"], abs=1e-7)
    with jax.enable_x64(True):
        basis = distance_basis(jnp.asarray(gold["input/edge_dist"][:4]), equiformer.config(gold))
    assert np.asarray(basis) == pytest.approx(gold["distance_basis_first4"], abs=1e-12)


@pytest.mark.parametrize("structures", ("mols", "slab"))
def test_rotations_are_the_stored_ones(structures):
    gold = equiformer.whole_case("l4m2", structures)
    with jax.enable_x64(True):
        ours = np.asarray(rotations(jnp.asarray(gold["input/edge_vec"]), 4, 2))
    assert ours == pytest.approx(gold["wigner"][:, harmonics.m_major(4, 2)], abs=1e-12)


@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-13), (np.float32, 5e-6)])
def test_rotations_bring_the_edge_to_the_pole(dtype, tolerance):
    """D(n) Y(n) = Y(e_y), also at and near both poles; rows are orthonormal."""
    with jax.enable_x64(dtype == np.float64):
        d = np.asarray(rotations(jnp.asarray(directions(), dtype), LMAX, LMAX), np.float64)
    order = harmonics.m_major(LMAX, LMAX)
    turned = np.einsum("eij,ej->ei", d, harmonics.harmonics(directions().astype(dtype), LMAX))
    pole = harmonics.harmonics(np.array([[0.0, 1.0, 0.0]]), LMAX)[:, order]
    assert turned == pytest.approx(np.broadcast_to(pole, turned.shape), abs=tolerance)
    unit = np.einsum("eij,ekj->eik", d, d)
    assert unit == pytest.approx(np.broadcast_to(np.eye(len(order)), unit.shape), abs=2 * tolerance)

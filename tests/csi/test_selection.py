"""Selection beats random choice, reaches a reachable optimum, and its gradient is right."""

import numpy as np
import pytest

from jaxatoms.csi.frechet import frechet_distance
from jaxatoms.csi.moments import covariance, moments_of_rows
from jaxatoms.csi.selection import distance_of, potential, prepare_candidates, select_structures
from jaxatoms.types import InputError


def mixture(n_structure, share, seed, d=10):
    """Structures of 3 to 9 atoms; a `share` of them resembles the task (shifted and narrower)."""
    rng = np.random.default_rng(seed)
    near = rng.random(n_structure) < share
    structure = np.repeat(np.arange(n_structure), rng.integers(3, 10, n_structure))
    scale, shift = np.where(near, 0.5, 1.5)[structure], np.where(near, 1.0, -0.5)[structure]
    x = rng.standard_normal((len(structure), d)) * scale[:, None] + shift[:, None]
    return x.astype(np.float32), structure, near


def problem(n_structure=1500, k=6, share=0.15):
    x, structure, near = mixture(n_structure, share, 0)
    task = mixture(300, 1.0, 1)[0]
    task_moments = moments_of_rows(task)
    return (
        prepare_candidates(x, structure, moments_of_rows(x), task_moments, k),
        x,
        structure,
        near,
        task_moments,
    )


def full_distance(rows, task):
    return frechet_distance(
        rows.mean(0), np.cov(rows.astype(float), rowvar=False), task.mean, covariance(task)
    )


def test_selection_is_far_below_random_also_in_the_full_space():
    candidates, x, structure, near, task = problem()
    got = select_structures(candidates, 100)
    assert len(np.unique(got.structure)) == 100
    rng = np.random.default_rng(0)
    random = [rng.choice(candidates.ids, 100, replace=False) for _ in range(10)]
    assert got.distance < 0.05 * min(distance_of(candidates, r) for r in random)
    full = full_distance(x[np.isin(structure, got.structure)], task)
    assert full < 0.2 * min(full_distance(x[np.isin(structure, r)], task) for r in random)
    assert near[got.structure].mean() > 0.8


def test_reported_distance_is_that_of_the_chosen_rows():
    candidates, *_ = problem(300)
    got = select_structures(candidates, 40, n_step=20)
    np.testing.assert_allclose(got.distance, distance_of(candidates, got.structure), rtol=1e-10)
    assert np.all(np.diff(got.history) < 0) and got.relaxed == got.history[-1]


def test_reduced_space_with_all_directions_is_exact():
    candidates, x, structure, _, task = problem(200, k=10)
    chosen = candidates.ids[:50]
    expected = full_distance(x[np.isin(structure, chosen)], task)
    np.testing.assert_allclose(
        distance_of(candidates, chosen), expected, rtol=1e-5
    )  # second moments are float32


def test_unordered_rows_give_the_same_candidates():
    x, structure, _ = mixture(60, 0.5, 0)
    task, shuffle = moments_of_rows(x[:50]), np.random.default_rng(0).permutation(len(x))
    a = prepare_candidates(x, structure, moments_of_rows(x), task, 5)
    b = prepare_candidates(x[shuffle], structure[shuffle], moments_of_rows(x), task, 5)
    np.testing.assert_allclose(a.second, b.second, rtol=1e-5, atol=1e-5)


def test_selecting_everything_returns_everything():
    candidates, *_ = problem(50)
    assert select_structures(candidates, 50).structure.tolist() == candidates.ids.tolist()


def test_potential_is_the_derivative_of_the_distance():
    rng = np.random.default_rng(0)
    rows, other = rng.standard_normal((2, 60, 4)) * [[[1.0, 2, 3, 4]], [[2.0, 1, 1, 5]]] + 0.3
    (m, s), (m2, s2) = ((r.mean(0), np.cov(r, rowvar=False, bias=True)) for r in (rows, other))
    a, b = potential(m, s, m2, s2)
    x, eps = rng.standard_normal(4) * 3, 1e-6
    moved = (m + eps * (x - m), (1 - eps) * (s + eps * np.outer(x - m, x - m)))
    slope = (frechet_distance(*moved, m2, s2) - frechet_distance(m, s, m2, s2)) / eps
    np.testing.assert_allclose((x - m) @ a @ (x - m) + b @ (x - m) - np.sum(a * s), slope, rtol=1e-4)


def test_bad_requests_are_refused():
    candidates, x, structure, _, task = problem(50)
    with pytest.raises(InputError, match="cannot select 51 of 50"):
        select_structures(candidates, 51)
    with pytest.raises(InputError, match="candidates have 9 features, the task 10"):
        prepare_candidates(x[:, :9], structure, moments_of_rows(x[:, :9]), task)

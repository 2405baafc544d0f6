"""The whole procedure on synthetic sets: self-consistency (docs/reference/csi.md, Checks)."""

import numpy as np
import pytest

from jaxatoms.csi.features import FeatureSet
from jaxatoms.csi.score import chemical_similarity_index, csi_matrix, csi_table, feature_moments
from jaxatoms.types import InputError


def atoms(shift, n_structure=400, d=6, seed=0):
    rng = np.random.default_rng(seed)
    structure = np.repeat(np.arange(n_structure), rng.integers(4, 12, n_structure))
    x = (
        rng.standard_normal((n_structure, d))[structure] * 0.5
        + rng.standard_normal((len(structure), d))
        + shift
    )
    return FeatureSet(x.astype(np.float32), structure)


def test_set_to_itself_is_zero():
    assert chemical_similarity_index(atoms(0), atoms(0)) == 0.0


@pytest.mark.parametrize("aggregation", ["flat", "mean"])
def test_halves_are_much_closer_than_different_sets(aggregation):
    near = chemical_similarity_index(atoms(0, seed=1), atoms(0, seed=2), aggregation)
    far = chemical_similarity_index(atoms(0, seed=1), atoms(1, seed=2), aggregation)
    assert near < 0.05 * far


def test_value_equals_numpy_from_definition():
    a, b = atoms(0, seed=1), atoms(0.5, seed=2)
    x, y = a.features.astype(float), b.features.astype(float)
    import scipy.linalg

    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    np.testing.assert_allclose(chemical_similarity_index(a, b), expected, rtol=1e-9)


def test_table_lists_pairs_by_task_then_score():
    up = {"far": feature_moments(atoms(2)), "near": feature_moments(atoms(0.1))}
    down = {"task": feature_moments(atoms(0, seed=5))}
    rows = csi_table(up, down)
    assert [row["upstream"] for row in rows] == ["near", "far"]
    matrix = csi_matrix(list(up.values()), list(down.values()))
    np.testing.assert_allclose([rows[1]["csi"], rows[0]["csi"]], matrix[:, 0])
    np.testing.assert_allclose(rows[0]["csi"], rows[0]["mean_term"] + rows[0]["covariance_term"])


def test_different_widths_are_refused():
    with pytest.raises(InputError, match="6 features per row but"):
        chemical_similarity_index(atoms(0), atoms(0, d=5))

"""Means and standard deviations of several predictions of one structure."""

import numpy as np
import pytest

from jaxatoms.inference.ensemble import combine
from jaxatoms.inference.prediction import Prediction


def test_moments_of_energies_forces_and_stress():
    forces = np.arange(18.0).reshape(3, 2, 3)
    members = [Prediction(energy=float(i), forces=own, stress=np.full(6, i)) for i, own in enumerate(forces)]
    found = combine(members)
    assert (found.energy, found.energy_std) == pytest.approx((1.0, 1.0))
    np.testing.assert_allclose(found.forces, forces[1])
    np.testing.assert_allclose(found.forces_std, np.full(2, 6 * np.sqrt(3)))  # each component has 6
    np.testing.assert_allclose(found.stress, np.ones(6))
    assert found.properties is None and found.features is None


def test_what_a_member_lacks_has_no_mean():
    forces = np.ones((2, 3))
    found = combine([Prediction(energy=1.0, forces=forces), Prediction(energy=None, forces=forces)])
    assert found.energy is None and found.energy_std is None and not found.forces_std.any()


def test_a_scalar_has_its_standard_deviation_beside_it():
    found = combine([Prediction(properties={"gap": 1.0}), Prediction(properties={"gap": 3.0})])
    assert found.properties == {"gap": 2.0, "gap_std": pytest.approx(np.sqrt(2))}
    assert found.energy is None and found.energy_std is None and found.forces_std is None

"""Means and standard deviations of several predictions of one structure."""

import ase.build
import numpy as np
import pytest
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.ase import EnsembleCalculator, JaxAtomsCalculator
from jaxatoms.inference.ensemble import combine
from jaxatoms.inference.prediction import Prediction
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.types import InputError


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


@pytest.fixture(scope="module")
def without_zero(tmp_path_factory):
    """Two networks whose training fixed no zero of the energy."""
    record, head = {"property": "forces", "energy_zero": "unknown"}, HeadSpec(kind="gradient")
    folders = [tmp_path_factory.mktemp("open") for _ in range(2)]
    return [str(checkpoints.write_finetuned(f, GemNetOCConfig(**NANO), head, record, i)) for i, f in enumerate(folders)]


@pytest.mark.filterwarnings("ignore:the training data of")
def test_energies_of_open_zeros_have_no_standard_deviation(without_zero):
    """Each member's energy has a constant of its own, and their spread said nothing."""
    water = ase.build.molecule("H2O")
    water.calc = EnsembleCalculator(without_zero)
    water.get_forces()
    assert "forces_std" in water.calc.results and "energy_std" not in water.calc.results


def test_an_open_zero_is_refused_where_that_is_asked(without_zero):
    """`label` writes no energies of an arbitrary zero: they are failures of the structure."""
    water = ase.build.molecule("H2O")
    water.calc = JaxAtomsCalculator(without_zero[0], refuse_open_zero=True)
    with pytest.raises(InputError, match="do not fix the zero of the energy of H2O; leave it out"):
        water.get_potential_energy()

"""What the dynamics benchmark reads off a trajectory, and that it switches quadruplets off."""

import ase.build
import jax
import numpy as np
import pytest
from fixtures import checkpoints
from fixtures.nano import NANO

from benchmarks import dynamics
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig


def test_drift_and_the_angle_at_the_largest_steps():
    energy = 1e-3 * np.arange(201) * 0.5e-3  # 1e-3 eV per atom and ps at 0.5 fs
    energy[51:] += 1e-4
    sine = np.full(201, 0.3)
    sine[50:53] = 0.01
    found = dynamics.figures({"energy": energy, "sine": sine}, 0.5)
    assert found["drift_ev_per_atom_and_ps"] > 1e-3
    assert found["largest_step_uev_per_atom"] == pytest.approx(100.5)
    assert found["median_smallest_sine"] == 0.3 and found["median_smallest_sine_at_largest_steps"] < 0.3


def test_the_smallest_sine():
    bent = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0.0]])
    assert dynamics.smallest_sine(bent) == pytest.approx(np.sqrt(0.5))
    assert dynamics.smallest_sine(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]])) < 1e-12


def test_switching_quadruplets_off_leaves_an_energy_with_its_gradient(tmp_path):
    record = {"cutoff": 12.0, "energy_std": 0.02, "force_std": 1.0}
    folder = checkpoints.write(tmp_path, GemNetOCConfig(**NANO, direct_forces=False), {"only": record})
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = calculator = JaxAtomsCalculator(folder, dtype="float64")
    whole = atoms.get_potential_energy()
    before = jax.tree.leaves(calculator._state)
    dynamics.without_quadruplets(calculator)
    changed = [not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(calculator._state), strict=True)]
    assert sum(changed) == NANO["num_blocks"]
    atoms.rattle(1e-12)  # another calculation
    assert atoms.get_potential_energy() != whole
    forces, h = atoms.get_forces(), 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = calculator
        moved.positions[2, 0] += sign * h
        energies.append(moved.get_potential_energy())
    assert -(energies[0] - energies[1]) / (2 * h) == pytest.approx(forces[2, 0], rel=1e-5)

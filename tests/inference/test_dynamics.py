"""Dynamics, vibrations and cells with the calculator, on a smooth model of gradient forces in float64."""

import ase.build
import numpy as np
import pytest
from ase import units
from ase.filters import FrechetCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    """A nano model in float64. Its radial functions end smoothly at 12 A, which is the cutoff too."""
    config = GemNetOCConfig(**NANO, direct_forces=False)
    record = {"cutoff": 12.0, "energy_std": 0.02, "force_std": 1.0}
    folder = checkpoints.write(tmp_path_factory.mktemp("smooth"), config, {"only": record})
    return JaxAtomsCalculator(folder, dtype="float64")


def run_nve(calculator, step_fs: float, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(times in ps, total energy per atom in eV, degrees of compilation) of ethanol that starts at 300 K."""
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.RandomState(1))
    Stationary(atoms)
    atoms.get_potential_energy()
    compiled, energies = calculator.n_compiled, []
    dynamics = VelocityVerlet(atoms, step_fs * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)))
    dynamics.run(steps)
    return np.arange(len(energies)) * step_fs / 1000, np.array(energies), calculator.n_compiled - compiled


def test_energy_drifts_by_less_than_a_ten_thousandth_ev_per_atom_and_ps(calculator):
    time, energy, compiled = run_nve(calculator, 0.1, 600)
    drift = np.polyfit(time, energy, 1)[0]
    assert abs(drift) < 1e-4, drift
    assert compiled == 0


def test_the_error_of_the_total_energy_is_of_second_order_in_the_step(calculator):
    """Verlet's property, which only forces that are the exact gradient of a smooth energy have."""
    coarse, fine = (run_nve(calculator, step, round(20 / step))[1] for step in (0.4, 0.2))
    assert np.ptp(coarse) / np.ptp(fine) == pytest.approx(4, rel=0.15)


def copper() -> ase.Atoms:
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def test_constant_pressure_conserves_its_energy_and_compiles_once(calculator):
    """Martyna, Tobias and Klein's conserved quantity holds only if the stress is the strain derivative."""
    atoms = copper()
    atoms.calc = JaxAtomsCalculator(calculator._model.path, dtype="float64", cutoff=5.0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.RandomState(2))
    Stationary(atoms)
    dynamics = IsotropicMTKNPT(atoms, 0.5 * units.fs, temperature_K=300, pressure_au=0.0,
                               tdamp=50 * units.fs, pdamp=200 * units.fs)  # fmt: skip
    conserved, volume, kinetic = [], [], []
    dynamics.attach(lambda: conserved.append(dynamics.get_conserved_energy()))
    dynamics.attach(lambda: kinetic.append(atoms.get_kinetic_energy()))
    dynamics.attach(lambda: volume.append(atoms.get_volume()))
    dynamics.run(40)
    assert np.ptp(volume) > 1e-3
    assert np.ptp(conserved) < 0.05 * np.ptp(kinetic), (np.ptp(conserved), np.ptp(kinetic))
    assert atoms.calc.n_compiled == 1


def test_a_cell_relaxes_down_its_stress(calculator):
    """The energy falls, and the volume goes the way that the sign of the stress says."""
    atoms = copper()
    atoms.calc = JaxAtomsCalculator(calculator._model.path, dtype="float64", cutoff=5.0)
    energy, volume, tension = atoms.get_potential_energy(), atoms.get_volume(), atoms.get_stress()[:3].sum()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=1e-4, steps=4)
    assert atoms.get_potential_energy() < energy
    assert np.sign(atoms.get_volume() - volume) == -np.sign(tension)


def test_vibrations_have_the_free_motions_of_a_molecule(calculator, tmp_path):
    """Moving or turning the whole molecule costs nothing: of nine modes of water three, at a minimum six, are zero."""
    atoms = ase.build.molecule("H2O")
    atoms.calc = calculator
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    energies = np.sort(np.abs(vibrations.get_energies()))
    assert len(energies) == 9
    assert energies[2] < 1e-2 * energies[-1]
    hessian = vibrations.get_vibrations().get_hessian_2d()
    shift = np.tile(np.eye(3), (3, 1))
    assert np.abs(hessian @ shift).max() < 1e-3 * np.abs(hessian).max()

"""The ASE calculator: forces and stress are derivatives, dynamics conserve energy and compile once."""

import dataclasses

import ase.build
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from fixtures import checkpoints
from fixtures.torch_models import TINY_EQUIFORMER, TINY_GEMNET

from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.graphs.skin import SkinList
from jaxatoms.types import InputError

DIRECT = dataclasses.replace(
    TINY_GEMNET, num_elements=90, num_radial=32, num_output_afteratom=0, num_concat=0, num_before_skip=0,
    num_after_skip=0, num_atom=0, num_atom_emb_layers=0, num_global_out_layers=0,
)  # fmt: skip
GRADIENT = dataclasses.replace(DIRECT, direct_forces=False)
EQUIFORMER = dataclasses.replace(TINY_EQUIFORMER, max_num_elements=90)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: gradient forces, direct forces with two heads, EquiformerV2."""
    root = tmp_path_factory.mktemp("checkpoints")
    reference = {str(z): -10.0 * z for z in (1, 6, 8, 29)}
    gradient = checkpoints.write(root / "gradient", GRADIENT, {
        "only": {"cutoff": 12.0, "energy_std": 0.05, "force_std": 7.0, "reference": reference}})
    direct = checkpoints.write(root / "direct", DIRECT, {"a": {}, "b": {"force_std": 3.0}})
    equiformer = checkpoints.write(root / "equiformer", EQUIFORMER, {"only": {"cutoff": 6.0, "max_neighbors": 12}})
    return {"gradient": gradient, "direct": direct, "equiformer": equiformer}


@pytest.fixture(scope="module")
def exact(folders):
    """A calculator with gradient forces in float64."""
    return JaxAtomsCalculator(folders["gradient"], dtype="float64")


def ethanol() -> ase.Atoms:
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return atoms


def slab() -> ase.Atoms:
    atoms = ase.build.fcc111("Cu", (2, 1, 2), vacuum=6, periodic=True)
    atoms.set_tags(0)  # those of ase.build count layers
    atoms.rattle(0.05, seed=1)
    return atoms


def test_forces_are_differences_of_the_energy(exact):
    atoms = ethanol()
    atoms.calc = exact
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 4])
    assert atoms.get_forces()[[0, 4]] == pytest.approx(numerical, abs=1e-5)
    # The linear reference and the unit are in the energy.
    assert atoms.get_potential_energy() == pytest.approx(-10 * (2 * 6 + 8 + 6), abs=20)


def test_stress_is_a_difference_of_the_energy(folders):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.calc = JaxAtomsCalculator(folders["gradient"], dtype="float64", cutoff=4.0)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert atoms.get_stress() == pytest.approx(numerical, abs=1e-6)


@pytest.mark.slow
def test_float32_is_close(folders, exact):
    atoms, single = ethanol(), ethanol()
    atoms.calc, single.calc = exact, JaxAtomsCalculator(folders["gradient"])
    assert single.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    assert single.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-3)


def test_dynamics_conserve_energy_compile_once_and_search_rarely(exact):
    atoms = ethanol()
    atoms.calc = exact
    rng = np.random.RandomState(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=200, rng=rng)
    Stationary(atoms)
    atoms.get_potential_energy()
    compiled, searched, total, kinetic = exact.n_compiled, exact.n_search, [], []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.attach(lambda: kinetic.append(atoms.get_kinetic_energy()))
    dynamics.run(60)
    assert np.ptp(total) < 0.02 * np.ptp(kinetic)
    assert exact.n_compiled == compiled
    assert exact.n_search - searched <= 4


@pytest.mark.parametrize("make", [ethanol, slab])
def test_relaxation_lowers_the_energy(folders, make):
    atoms = make()
    atoms.calc = JaxAtomsCalculator(folders["gradient"], dtype="float64", cutoff=5.0)
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.02).run(fmax=1e-3, steps=8)
    assert atoms.get_potential_energy() < before


def test_vibrations_run(exact, tmp_path):
    atoms = ase.build.molecule("H2O")
    atoms.calc = exact
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), indices=[0])
    vibrations.run()
    assert len(vibrations.get_energies()) == 3


@pytest.mark.parametrize("kind,head", [("direct", "a"), ("equiformer", None)])
def test_direct_forces_have_no_stress(folders, kind, head):
    atoms = slab()
    atoms.calc = JaxAtomsCalculator(folders[kind], head=head)
    assert np.isfinite(atoms.get_forces()).all()
    assert "stress" not in atoms.calc.implemented_properties
    with pytest.raises((PropertyNotImplementedError, NotImplementedError)):
        atoms.get_stress()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_magnetic_moments()


def test_heads_have_their_own_units(folders):
    atoms, other = ethanol(), ethanol()
    atoms.calc, other.calc = (JaxAtomsCalculator(folders["direct"], head=head) for head in "ab")
    assert not np.allclose(atoms.get_forces(), other.get_forces())
    with pytest.raises(InputError, match="choose one of them"):
        JaxAtomsCalculator(folders["direct"])


@pytest.mark.parametrize("kind", [pytest.param("gradient", marks=pytest.mark.slow), "equiformer"])
def test_another_structure_is_another_shape_and_nothing_leaks(folders, kind):
    calc = JaxAtomsCalculator(folders[kind], dtype="float64")
    energies = []
    for make in (ethanol, slab, ethanol):
        atoms = make()
        atoms.calc = calc
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[2], abs=1e-9)


@pytest.mark.parametrize("change,words", [
    (lambda a: a.set_atomic_numbers([79] * len(a)), "elements 79"),
    (lambda a: a.positions.__setitem__((0, 0), np.nan), "NaN"),
    (lambda a: a.__delitem__(slice(None)), "without atoms"),
])  # fmt: skip
def test_bad_structures_are_refused(exact, change, words):
    atoms = ethanol()
    change(atoms)
    atoms.calc = exact
    with pytest.raises(InputError, match=words):
        atoms.get_potential_energy()


def test_bad_settings_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="dtype"):
        JaxAtomsCalculator(folders["direct"], head="a", dtype="float16")
    with pytest.raises(InputError, match="no checkpoint"):
        JaxAtomsCalculator(tmp_path)


@pytest.mark.parametrize("name", ["atom", "pair"])
@pytest.mark.parametrize("kind", ["gradient", "equiformer"])
def test_one_and_two_atoms(folders, kind, name):
    atoms = ase.Atoms("C") if name == "atom" else ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = JaxAtomsCalculator(folders[kind])
    assert np.isfinite(atoms.get_potential_energy())
    assert np.isfinite(atoms.get_forces()).all()


@pytest.mark.parametrize("make", [ethanol, slab])
def test_skin_lists_equal_fresh_searches(make):
    atoms, rng = make(), np.random.default_rng(0)
    skin = SkinList(4.0, 1.0)
    for _ in range(30):
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        edges, distance = skin.edges(atoms.positions, np.asarray(atoms.cell), atoms.pbc)
        arguments = (np.array([len(atoms)]), np.asarray(atoms.cell)[None], atoms.pbc[None], np.array([4.0]))
        fresh, expected = candidate_edges(atoms.positions, *arguments)
        assert all(np.array_equal(a, b) for a, b in zip(edges, fresh, strict=True))
        assert np.array_equal(distance, expected)
    assert 1 < skin.n_search < 25

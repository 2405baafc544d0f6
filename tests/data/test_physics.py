"""Checks of units and signs: each fault is named, sound data and what cannot be told pass."""

import dataclasses

import numpy as np
import pytest

from jaxatoms.data.physics import physics_findings
from jaxatoms.data.store import open_dataset, write_store
from jaxatoms.types import System

CH4 = np.array([6, 1, 1, 1, 1], np.uint8)
BASE = np.array([[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]])


def molecules(n=30):
    """Methane in a harmonic well, eV and A."""
    for i in range(n):
        step = 0.04 * np.random.default_rng(i).normal(size=(5, 3))
        yield System(CH4, BASE + step, energy=-1102.0 + 15 * np.square(step).sum(), forces=-30 * step)


def crystals(per_atom=False):
    """Silicon in cells of 8 and 16 atoms."""
    cell = 5.43 * np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4
    for i in range(12):
        n = 1 + i % 2
        positions = np.concatenate([cell + np.array([5.43 * k, 0, 0]) for k in range(n)])
        positions = positions + 0.05 * np.random.default_rng(i).normal(size=positions.shape)
        energy = -5.4 * (1 if per_atom else len(positions)) + 0.01 * i
        yield System(np.full(8 * n, 14, np.uint8), positions, 5.43 * np.diag([n, 1, 1]), (True,) * 3, energy)


def warnings_of(tmp_path, systems):
    found = physics_findings(write_store(iter(systems), tmp_path / "s", {}))
    return " | ".join(f"{finding.what}: {finding.found}" for finding in found if finding.level != "ok")


def changed(**factors):
    def scale(system):
        return system._replace(**{name: getattr(system, name) * factor for name, factor in factors.items()})

    return [scale(system) for system in molecules()]


def test_sound_data_pass(tmp_path):
    assert warnings_of(tmp_path, molecules()) == ""
    assert warnings_of(tmp_path, crystals()) == ""
    assert warnings_of(tmp_path, [System(np.array([1], np.uint8), np.zeros((1, 3)), energy=-13.6)]) == ""
    assert warnings_of(tmp_path, [system._replace(forces=None) for system in molecules()]) == ""


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"forces": -1}, "the sign of the gradient"),
        ({"energy": 1 / 27.2114, "forces": 1 / 27.2114}, "energies seem to be in Hartree"),
        ({"energy": 23.0605}, "energies seem to be in kcal/mol"),
        ({"forces": 1 / 27.2114}, "forces in Hartree/A"),
        ({"forces": 0.529177 / 27.2114}, "forces in Hartree/bohr"),
        ({"energy": 1 / 5}, "energies seem to be per atom"),
        ({"positions": 1 / 0.529177}, "positions may be in bohr"),
        ({"positions": 0.1}, "in one place"),
        ({"forces": 7.7}, "units that do not belong together"),
    ],
)
def test_a_wrong_unit_or_sign_is_named(tmp_path, factors, words):
    assert words in warnings_of(tmp_path, changed(**factors))


def test_energies_per_atom_are_found_in_cells_of_two_sizes(tmp_path):
    assert "energies seem to be per atom" in warnings_of(tmp_path, crystals(per_atom=True))


def test_two_atoms_in_one_place_are_found_across_the_border_of_a_cell(tmp_path):
    *rest, last = crystals()
    positions = np.array(last.positions)
    positions[1] = positions[0] + (2 * 5.43, 0, 0)
    assert "record 11" in warnings_of(tmp_path, [*rest, last._replace(positions=positions)])


@pytest.mark.parametrize("name", ["organic", "reaction", "slab", "oxide", "aspirin", "peptide", "gap"])
def test_the_data_in_the_package_pass(tmp_path, name):
    _, store = open_dataset(f"demo:{name}", cache_dir=tmp_path)
    assert [dataclasses.astuple(f) for f in physics_findings(store) if f.level != "ok"] == []

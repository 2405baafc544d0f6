"""Calculations in this process and in workers: order, constraints, stress, failures told apart from results."""

import re

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from fixtures.calculators import Failing

from jaxatoms.labels.calculations import Outcome, attempt, batches, compute, label_all
from jaxatoms.labels.methods import find_method
from jaxatoms.types import InputError


def molecules(*names):
    return list(enumerate(ase.build.molecule(name) for name in names))


def test_forces_of_fixed_atoms_are_those_of_the_calculator():
    atoms = ase.build.molecule("CH4")
    atoms.rattle(0.1, seed=0)
    free = compute(EMT(), atoms)
    atoms.set_constraint(FixAtoms([0]))
    assert np.abs(free["forces"][0]).max() > 0.1
    np.testing.assert_array_equal(compute(EMT(), atoms)["forces"], free["forces"])
    assert isinstance(free["energy"], float) and "stress" not in free


def test_stress_is_there_where_the_cell_is_periodic():
    crystal = ase.build.bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=0)
    found = compute(EMT(), crystal)
    crystal.calc = EMT()
    np.testing.assert_allclose(found["stress"], crystal.get_stress())
    crystal.pbc = False
    assert "stress" not in compute(EMT(), crystal)


@pytest.mark.parametrize(("how", "words"), [
    ("raise", "CalculationFailed: SCF not converged in 250 cycles"),
    ("nan", "NaN or infinity in forces"),
    ("none", "the calculator gives no forces"),
    ("flat", r"shape \(4,\) instead of \(4, 3\)"),
])  # fmt: skip
def test_a_failure_gives_its_reason_and_no_results(how, words):
    results, reason = attempt(Failing(how), ase.build.molecule("NH3"))
    assert results is None
    assert re.search(words, reason), reason


def test_workers_give_the_same_in_the_same_order():
    method = find_method("fixtures.calculators:Failing")
    structures = molecules("CH4", "NH3", "H2O", "CH3OH", "C2H6", "N2", "CO2", "C6H6", "H2", "CO", "C2H4")
    alone, shared = (list(label_all(method, structures, workers)) for workers in (1, 2))
    assert [o.index for o in shared] == list(range(len(structures)))
    for one, other in zip(alone, shared, strict=True):
        assert one.reason == other.reason and (one.results is None) == (7 in one.atoms.numbers)
        if one.results is not None:
            assert one.results["energy"] == other.results["energy"]
            np.testing.assert_array_equal(one.results["forces"], other.results["forces"])


def test_a_worker_that_dies_and_a_calculator_that_cannot_be_made_end_the_stream():
    dying = find_method("fixtures.calculators:Failing", '{"how": "die"}')
    with pytest.raises(InputError, match="a worker process died .* at one of the structures 0 to 1; run"):
        list(label_all(dying, molecules("NH3", "CH4"), 2))
    with pytest.raises(InputError, match="has no forces"):
        list(label_all(find_method("fixtures.calculators:EnergyOnly"), molecules("CH4"), 2))


def test_batches_end_by_number_or_by_time():
    outcomes = [Outcome(i, ase.Atoms("H"), {}) for i in range(5)]
    assert [len(batch) for batch in batches(outcomes, 60.0, 2)] == [2, 2, 1]
    assert [len(batch) for batch in batches(outcomes, 0.0, 100)] == [1] * 5
    assert list(batches([], 0.0, 2)) == []

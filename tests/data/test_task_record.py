"""The record of a head: exact round trip, earlier records, refusals in one line, units."""

import json

import numpy as np
import pytest

from jaxatoms.data.columns import N_ELEMENT
from jaxatoms.data.references import LinearReference
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.types import InputError

OLD = {"name": "ani1x", "energy_std": 2.0, "force_std": 3.0, "cutoff": 8.0, "max_neighbors": 30,
       "reference": {"1": -0.5, "8": -7.0}}  # fmt: skip


def test_an_earlier_record_gets_the_defaults_of_its_time():
    record = TaskRecord.from_json(OLD, "here")
    assert record.labels == ("energy", "forces") and record.energy_mean == 0 and record.target is None
    assert record.elements.tolist() == [1, 8] and record.reference.coeff[8] == -7.0


@pytest.mark.parametrize("more", [
    {}, {"property": "gap", "labels": ["energy"]}, {"energy_zero": "unknown", "conditional": True},
    {"span": [[1.0] * N_ELEMENT]},
])  # fmt: skip
def test_a_record_survives_json(more):
    record = TaskRecord.from_json(OLD | more, "here")
    told = json.loads(json.dumps(record.to_json()))
    assert {name: told[name] for name in OLD | more} == OLD | more
    again = TaskRecord.from_json(told, "here")
    assert again.to_json() == record.to_json()


def test_missing_and_unknown_fields_are_named():
    with pytest.raises(InputError, match="^here: the head 'ani1x' lacks cutoff; "):
        TaskRecord.from_json({k: v for k, v in OLD.items() if k != "cutoff"}, "here")
    with pytest.raises(InputError, match=r"^here: the head 'ani1x' has unknown fields \(charge\); use a newer"):
        TaskRecord.from_json(OLD | {"charge": 1}, "here")


def test_units():
    record = TaskRecord.from_json(OLD | {"energy_mean": 1.0}, "here")

    class Systems:
        atomic_numbers, n_node = np.array([1, 1, 8, 8]), np.array([3, 1])

    assert record.energies([1.0, 0.0], Systems).tolist() == [2.0 + 1.0 - 8.0, 1.0 - 7.0]
    assert record.forces([[1.0, 0, 0]], gradient=False)[0, 0] == 3.0
    assert record.forces([[1.0, 0, 0]], gradient=True)[0, 0] == 2.0
    assert record.knows_energy(Systems).tolist() == [True, True]
    with pytest.raises(InputError, match="run was not trained on the elements 6"):
        record.check_elements(np.array([1, 6]), "run")


def test_what_is_not_fixed_is_not_known():
    class Systems:
        atomic_numbers, n_node = np.array([1]), np.array([1])

    for more in ({"energy_zero": "unknown"}, {"labels": ["forces"]}):
        assert not TaskRecord.from_json(OLD | more, "here").knows_energy(Systems).any()
    span = np.zeros((1, N_ELEMENT))
    span[0, [1, 8]] = 2 / 5**0.5, 1 / 5**0.5  # of H2O alone
    record = TaskRecord.from_json(OLD | {"span": span.tolist()}, "here")
    assert isinstance(record.reference, LinearReference) and not record.knows_energy(Systems).any()

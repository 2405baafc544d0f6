"""Statistics of a data set: exact in chunks, and every fault of the checklist found."""

import numpy as np
import pytest

from jaxatoms.data import statistics
from jaxatoms.data.statistics import Moments, compare, describe, findings
from jaxatoms.data.store import write_store
from jaxatoms.types import System


def test_moments_in_pieces_equal_those_of_the_whole():
    values = -1e4 + np.random.default_rng(0).normal(size=10_000)
    values[::7] = np.nan
    moments = Moments()
    for piece in np.array_split(values, 13):
        moments.add(piece)
    kept = values[~np.isnan(values)]
    assert moments.count == len(kept)
    np.testing.assert_allclose([moments.mean, moments.std], [kept.mean(), kept.std()], rtol=1e-10)
    assert (moments.low, moments.high) == (kept.min(), kept.max())
    empty = Moments()
    empty.add(np.array([np.nan]))
    assert empty.count == 0
    assert np.isnan(empty.mean)


def systems():
    rng = np.random.default_rng(0)
    for i in range(20):
        numbers = np.array([29, 8, 1], np.uint8)
        positions, forces = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
        if i < 10:
            yield System(numbers, positions, energy=-1.0 * i, forces=forces - forces.mean(axis=0))
        else:
            yield System(numbers, positions, -np.eye(3) * 5, (True,) * 3, -1.0 * i, forces, np.array([0, 1, 2]),
                         np.array([True, False, False]))  # fmt: skip


@pytest.mark.parametrize("chunk", [3, 8192])
def test_counts_of_a_store(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(statistics, "_RECORDS_PER_CHUNK", chunk)
    store = write_store(systems(), tmp_path / "s", {})
    found = describe(store, target=np.arange(20.0))
    assert (found.n_record, found.n_periodic, found.n_left_handed, found.n_fixed) == (20, 10, 10, 10)
    assert found.elements[[1, 8, 29]].tolist() == [20, 20, 20]
    assert found.tags.tolist() == [10, 10, 40]
    np.testing.assert_allclose([found.energy.mean, found.target.mean], [-9.5, 9.5])
    assert found.net_force.count == 10
    assert found.net_force.high < 1e-5
    assert describe(store, limit=5).n_looked_at == 5


def test_faults_are_found(tmp_path):
    good = list(systems())
    bad = [*good[:10], good[0], good[1]._replace(forces=None, positions=good[1].positions + 1),
           good[2]._replace(forces=good[2].forces + 1, positions=good[2].positions + 1)]  # fmt: skip
    store = write_store(iter(bad), tmp_path / "s", {})
    levels = {f.what: f.level for f in findings(describe(store), needs_forces=True, is_surface=True)}
    assert levels == {
        "duplicate records": "warning", "records without forces": "error", "records without energy": "ok",
        "constraints": "ok", "net force of a molecule": "warning",
        "share of fixed atoms": "error", "atoms of tags 0, 1, 2": "error",
    }  # fmt: skip
    assert describe(store).duplicates == [(10, 0)]


@pytest.mark.parametrize(
    ("measured", "level"), [(1.0, "ok"), (1.04, "ok"), (1.2, "warning"), (27.2, "error"), (float("nan"), "warning")]
)
def test_a_factor_of_three_is_a_wrong_unit(measured, level):
    assert compare("energy std", measured, 1.0, "eV", 0.05).level == level
    assert compare("energy std", measured, None, "eV", 0.05) is None

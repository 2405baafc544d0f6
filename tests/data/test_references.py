"""Reference energies: the least-squares solution, exact to undo, silent about no unseen element."""

import numpy as np
import pytest
from fixtures import native

from jaxatoms.data.references import LinearReference, Normalization, labels_in, make_normalization, target_std
from jaxatoms.data.registry import DATASETS
from jaxatoms.data.splits import make_split
from jaxatoms.data.store import open_dataset, write_store
from jaxatoms.types import InputError, System, UnusableStructure


def random_store(tmp_path, n=400, seed=0, noise=0.3):
    """H, C, O structures with -14, -1030, -2040 eV per atom plus noise; forces of std 2."""
    rng = np.random.default_rng(seed)
    per_atom = {1: -14.0, 6: -1030.0, 8: -2040.0}

    def systems():
        for _ in range(n):
            numbers = rng.choice([1, 6, 8], rng.integers(4, 12)).astype(np.uint8)
            energy = sum(per_atom[int(z)] for z in numbers) + noise * rng.normal()
            yield System(
                numbers,
                np.zeros((len(numbers), 3)),
                energy=energy,
                forces=2 * rng.normal(size=(len(numbers), 3)),
            )

    return write_store(systems(), tmp_path / "s", {})


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_fit_equals_lstsq_on_all_counts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("jaxatoms.data.references._RECORDS_PER_CHUNK", chunk)
    store = random_store(tmp_path)
    train = np.arange(0, 400, 2)
    expected = np.linalg.lstsq(store.element_counts(train).astype(float), store.energy[train], rcond=None)[0]
    reference = LinearReference.fit(store, train)
    np.testing.assert_allclose(reference.coeff, expected, atol=1e-9)
    assert reference.coeff.shape == (121,)
    assert list(np.flatnonzero(reference.seen)) == [1, 6, 8]


def test_rank_deficient_counts_give_the_shortest_solution(tmp_path):
    systems = (
        System(np.array([6, 1, 1, 1, 1], np.uint8), np.zeros((5, 3)), energy=-1102.0 + i) for i in range(10)
    )
    store = write_store(systems, tmp_path / "s", {})
    train = np.arange(10)
    expected = np.linalg.lstsq(store.element_counts(train).astype(float), store.energy[train], rcond=None)[0]
    np.testing.assert_allclose(LinearReference.fit(store, train).coeff, expected, atol=1e-9)


def test_subtract_and_add_back_are_inverse(tmp_path):
    store = random_store(tmp_path)
    reference, batch = LinearReference.fit(store, np.arange(400)), store.take([3, 1, 4])
    residual = reference.subtract(batch.energy, batch.atomic_numbers, batch.n_node)
    assert np.abs(residual).max() < 2
    back = reference.add_back(residual, batch.atomic_numbers, batch.n_node)
    np.testing.assert_allclose(back, batch.energy, rtol=1e-15)


def test_records_without_energy_are_left_out(tmp_path):
    path = native.write_structures(tmp_path / "s.xyz", calc=None)
    _, store = open_dataset(f"file:{path}", cache_dir=tmp_path)
    assert np.isfinite(LinearReference.fit(store, np.arange(10)).coeff).all()
    with pytest.raises(InputError, match="no record has an energy"):
        LinearReference.fit(store, np.array([9]))


def test_unseen_element_names_itself_and_the_structure(tmp_path):
    reference = LinearReference.fit(random_store(tmp_path), np.arange(400))
    with pytest.raises(UnusableStructure) as error:
        reference.subtract(np.zeros(2), np.array([1, 6, 1, 79]), np.array([2, 2]))
    assert native.is_one_line_about(error, "structure 1", "Au", "train split")


def test_saved_reference_loads(tmp_path):
    reference = LinearReference.fit(random_store(tmp_path), np.arange(400))
    reference.save(tmp_path / "linref.npz")
    loaded = LinearReference.load(tmp_path / "linref.npz")
    np.testing.assert_array_equal(loaded.coeff, reference.coeff)
    np.testing.assert_array_equal(loaded.seen, reference.seen)
    np.savez(tmp_path / "short.npz", coeff=reference.coeff[:10])
    np.testing.assert_array_equal(LinearReference.load(tmp_path / "short.npz").coeff, reference.coeff)
    with pytest.raises(InputError) as error:
        LinearReference.load(tmp_path / "none.npz")
    assert native.is_one_line_about(error, "none.npz", "fit one")


def test_normalization_is_computed_where_nothing_is_published(tmp_path):
    store = random_store(tmp_path)
    train = np.arange(400)
    reference = LinearReference.fit(store, train)
    found = make_normalization(DATASETS["file"], store, train, reference)
    batch = store.take(train)
    residual = reference.subtract(batch.energy, batch.atomic_numbers, batch.n_node)
    assert found.energy_std == pytest.approx(residual.std())
    assert found.force_std == pytest.approx(batch.forces.astype(float).std())


def test_published_constants_are_used_and_wrong_units_warned_about(tmp_path):
    store = random_store(tmp_path, noise=2.0)
    reference = LinearReference.fit(store, np.arange(400))
    found = make_normalization(DATASETS["ani1x"], store, np.arange(400), reference)
    assert found == Normalization(2.8700712783472118, 2.131422996520996)
    hartree = random_store(tmp_path, noise=2.0 / 27.2)
    with pytest.warns(UserWarning, match="ani1x: the std of the energy .* a unit may be wrong"):
        make_normalization(
            DATASETS["ani1x"], hartree, np.arange(400), LinearReference.fit(hartree, np.arange(400))
        )


def test_zero_spread_is_refused():
    for bad in (0.0, float("nan")):
        with pytest.raises(InputError) as error:
            Normalization(1.0, bad)
        assert native.is_one_line_about(error, "force_std")


@pytest.mark.parametrize(
    ("name", "energy_std", "force_std"), [("ani1x_made", 1.06, 1.48), ("oc20_s2ef", 1.31, 0.359)]
)
def test_real_samples_have_the_spread_measured_once(real_data, tmp_path, name, energy_std, force_std):
    _, store = open_dataset(f"{'oc20' if 'oc20' in name else 'ani1x'}@{real_data(name)}", cache_dir=tmp_path)
    everything = np.arange(len(store))
    found = target_std(store, everything, LinearReference.fit(store, everything))
    assert found == pytest.approx((energy_std, force_std), rel=0.01)


def test_real_sample_evaluates_every_split(real_data, tmp_path):
    _, store = open_dataset(f"oc20@{real_data('oc20_s2ef')}", cache_dir=tmp_path)
    split = make_split(store)
    reference = LinearReference.fit(store, split.train)
    for part in split:
        batch = store.take(part)
        assert np.isfinite(reference.subtract(batch.energy, batch.atomic_numbers, batch.n_node)).all()


def test_only_compositions_within_those_of_the_fit_have_a_reference_energy(tmp_path):
    water_and_methanol = [[8, 1, 1], [6, 8, 1, 1, 1, 1]]
    counts = np.array([np.bincount(z, minlength=121) for z in water_and_methanol], float)
    reference = LinearReference.solve(counts, np.array([-2000.0, -3000.0]))
    assert len(reference.span) == 2 and reference.seen.sum() == 3
    asked = [[8, 1, 1] * 2, [6, 8, 1, 1, 1, 1, 8, 1, 1], [8, 8], [7, 1, 1, 1]]
    known = reference.determines(np.concatenate(asked), np.array([len(z) for z in asked]))
    np.testing.assert_array_equal(known, [True, True, False, False])
    again = LinearReference.from_record(reference.as_record())
    np.testing.assert_array_equal(again.coeff, reference.coeff)
    np.testing.assert_array_equal(again.span, reference.span)
    reference.save(tmp_path / "r.npz")
    np.testing.assert_array_equal(LinearReference.load(tmp_path / "r.npz").span, reference.span)
    full = LinearReference.solve(np.eye(121)[[1, 8]] * 2, np.array([-27.0, -4000.0]))
    assert full.span is None and full.determines(np.array([8, 1, 1]), np.array([3])).all()


def test_a_kind_of_label_that_is_nowhere_needs_no_scale(tmp_path):
    systems = [System(np.array([1, 1], np.uint8), np.eye(3)[:2], energy=float(i)) for i in range(6)]
    store, train = write_store(iter(systems), tmp_path / "s", {}), np.arange(6)
    assert labels_in(store, train) == (True, False)
    found = make_normalization(DATASETS["file"], store, train, LinearReference.fit(store, train))
    assert found.force_std == 1.0 and found.energy_std > 0


def test_every_element_of_many_records_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxatoms.data.store._RECORDS_PER_CHUNK", 4)
    systems = (System(np.array([1, 8 if i == 17 else 1], np.uint8), np.eye(3)[:2]) for i in range(20))
    store = write_store(systems, tmp_path / "s", {})
    assert np.flatnonzero(store.elements(np.arange(20))).tolist() == [1, 8]
    assert np.flatnonzero(store.elements(np.arange(10))).tolist() == [1]

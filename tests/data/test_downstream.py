"""Downstream splits and facts: the reference's sizes and indices, MatBench's folds, published constants."""

import dataclasses

import numpy as np
import pytest
from fixtures import native
from fixtures import native_downstream as layouts

from jaxatoms.data.downstream import ForceData, ScalarData, downstream
from jaxatoms.data.folds import matbench_fold
from jaxatoms.data.registry import DATASETS
from jaxatoms.data.splits import Split, downstream_split, load_split, make_split, save_split
from jaxatoms.data.store import open_dataset
from jaxatoms.types import InputError


@dataclasses.dataclass
class Counted:
    """Stands for a store of n records; `labels` are the classes of mp_is_metal."""

    n: int
    labels: np.ndarray | None = None

    def __len__(self):
        return self.n

    def column(self, _):
        return self.labels


@pytest.mark.parametrize(
    ("name", "n", "sizes"),
    [
        ("rmd17:aspirin", 100_000, (950, 50, 99_000)),
        ("rmd17:azobenzene", 99_988, (950, 50, 98_988)),
        ("md22:Ac-Ala3-NHMe", 85_109, (5700, 300, 79_109)),
        ("md22:DHA", 69_753, (7600, 400, 61_753)),
        ("md22:stachyose", 27_272, (7600, 400, 19_272)),
        ("md22:AT-AT", 20_001, (2850, 150, 17_001)),
        ("md22:AT-AT-CG-CG", 10_153, (1900, 100, 8153)),
        ("md22:buckyball-catcher", 6102, (570, 30, 5502)),
        ("md22:double-walled_nanotube", 5032, (760, 40, 4232)),
        ("spice:solvated_amino_acids", 1300, (1040, 130, 130)),
        ("spice:dipeptides", 33_850, (27_080, 3385, 3385)),
        ("qm9:U_0", 130_831, (110_831, 10_000, 10_000)),
        ("qmof", 20_375, (16_300, 2038, 2037)),
        ("matbench:phonons/0", 1265, (910, 102, 253)),
    ],
)
def test_split_sizes_are_the_published_ones(name, n, sizes):
    split = downstream_split(name, Counted(n))
    assert tuple(map(len, split)) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(n))
    assert downstream(name).n_published == n


def test_indices_are_the_frozen_legacy_stream():
    order = np.arange(1300)
    np.random.RandomState(42).shuffle(order)
    split = downstream_split("spice:solvated_amino_acids", Counted(1300))
    np.testing.assert_array_equal(np.concatenate(split), order)


def test_folds_are_those_of_scikit_learn():
    model_selection = pytest.importorskip("sklearn.model_selection")
    labels = np.random.RandomState(0).rand(1003) < 0.4
    for folds, arguments in (
        (model_selection.KFold(5, shuffle=True, random_state=18012019), {}),
        (model_selection.StratifiedKFold(5, shuffle=True, random_state=18012019), {"labels": labels}),
    ):
        for fold, (train, test) in enumerate(folds.split(np.zeros(1003), labels)):
            ours = matbench_fold(1003, fold, **arguments)
            np.testing.assert_array_equal(ours[0], train)
            np.testing.assert_array_equal(ours[1], test)


def test_fold_train_lists_are_shuffled_with_42_and_cut_at_nine_tenths():
    rest, test = matbench_fold(1265, 3)
    order = np.arange(len(rest))
    np.random.RandomState(42).shuffle(order)
    split = downstream_split("matbench:phonons/3", Counted(1265))
    np.testing.assert_array_equal(split.train, rest[order[:910]])
    np.testing.assert_array_equal(split.val, rest[order[910:]])
    np.testing.assert_array_equal(split.test, test)
    labels = np.arange(1000) % 3 == 0
    classes = downstream_split("matbench:mp_is_metal/0", Counted(1000, labels))
    assert abs(labels[classes.test].mean() - labels.mean()) < 0.01


def test_too_few_structures_are_refused():
    for name, n in (("qm9:mu", 20_000), ("rmd17:aspirin", 999), ("matbench:phonons/0", 4)):
        with pytest.raises(InputError) as error:
            downstream_split(name, Counted(n))
        assert native.is_one_line_about(error, str(n))
    with pytest.raises(InputError, match="no downstream data set"):
        downstream_split("ani1x", Counted(100))


def test_every_downstream_name_has_its_facts():
    families = ("rmd17", "md22", "spice", "qm9", "qmof", "matbench")
    facts = {name: downstream(name) for name, spec in DATASETS.items() if spec.family in families}
    assert len(facts) == 10 + 7 + 2 + 19 + 1 + 45
    assert all(isinstance(fact, ForceData | ScalarData) for fact in facts.values())
    assert {fact.reduction for name, fact in facts.items() if name.startswith("matbench:phonons")} == {"max"}
    assert [n for n, f in facts.items() if isinstance(f, ForceData) and not f.gradient_forces] == [
        "md22:Ac-Ala3-NHMe", "md22:double-walled_nanotube",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no downstream"):
        downstream("oc20")


def test_published_graphs_and_constants():
    assert downstream("rmd17:aspirin").graph.max_neighbors == 100
    assert downstream("rmd17:aspirin").graph.cutoff == 7.0
    np.testing.assert_array_equal(downstream("qmof").graph.neighbors([200, 201, 300, 301]), [30, 10, 10, 5])
    fact = downstream("qm9:U_0")
    assert (fact.mean, fact.std, fact.unit, fact.table_scale) == (0.0028667436, 1.0965848, "eV", 1000.0)
    water_and_hf = fact.reference(np.array([8, 1, 1, 9, 1]), np.array([3, 2]))
    np.testing.assert_allclose(water_and_hf, [-2047.0 - 2 * 16.43, -2717.5 - 16.43])
    with pytest.raises(InputError, match="atomic number 14"):
        fact.reference(np.array([14]), np.array([1]))


def test_constants_that_are_not_published_come_from_the_train_split():
    fact = downstream("matbench:jdft2d/0")
    assert fact.normalization(np.array([1.0, 3.0, np.nan])) == (2.0, 1.0)
    with pytest.raises(InputError, match="do not vary"):
        fact.normalization(np.ones(3))


def test_targets_reach_the_store(tmp_path):
    path = layouts.write_qm9(tmp_path / "q.tar.bz2")
    _, store = open_dataset(f"qm9:U_0@{path}", cache_dir=tmp_path / "c")
    spec, same = open_dataset(f"qm9:mu@{path}", cache_dir=tmp_path / "c")
    assert store.path == same.path
    np.testing.assert_array_equal(same.column(spec.target), 0.0)
    np.testing.assert_allclose(store.column("target_U_0"), -1101.4878, atol=1e-3)
    assert store.column("qm9_index").dtype == np.int64
    folder = layouts.write_qmof(tmp_path / "qmof")
    spec, store = open_dataset(f"qmof@{folder}", cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(store.column(spec.target), [0, 0.5, np.nan, 1.5, 2, 2.5, 3])
    _, omat = open_dataset(f"omat24@{layouts.write_omat(tmp_path / 'o')}", cache_dir=tmp_path / "c")
    assert omat.column("stress").shape == (6, 3, 3)


def test_saved_splits_that_do_not_fit_are_refused(tmp_path):
    _, store = open_dataset(f"ani1x@{native.write_ani1x(tmp_path / 'a.h5')}", cache_dir=tmp_path / "c")
    split = make_split(store)
    for bad, words in (
        (Split(split.train, split.val, np.array([24])), "names record 24 of 24"),
        (Split(split.train, split.train[:1], split.test), "names a record twice"),
    ):
        np.savez(tmp_path / "s.npz", **bad._asdict(), fingerprint=np.array(store.fingerprint))
        with pytest.raises(InputError) as error:
            load_split(tmp_path / "s.npz", store)
        assert native.is_one_line_about(error, words, "make the split again")


def test_saved_splits_keep_the_key_lists(tmp_path):
    _, store = open_dataset(f"ani1x@{native.write_ani1x(tmp_path / 'a.h5')}", cache_dir=tmp_path / "c")
    split = make_split(store)
    save_split(tmp_path / "s.npz", split, store)
    codes, names = store.groups
    with np.load(tmp_path / "s.npz") as saved:
        assert saved["val_groups"].tolist() == sorted({names[c] for c in codes[split.val]})


def test_held_out_counts_replace_fractions_in_a_whole_data_set(tmp_path):
    _, store = open_dataset(f"ani1x@{native.write_ani1x(tmp_path / 'a.h5')}", cache_dir=tmp_path / "c")
    assert len(make_split(store, held_out=6).val) == 6
    assert len(make_split(store, held_out=495_600).val) == len(make_split(store).val)

"""Mixed pretraining: counts drawn, one-hot tasks, per-task metrics, refusals."""

import json

import numpy as np
import pytest
from fixtures.nano import NANO

from experiments import pretrain
from jaxatoms.data import mixture, tasks
from jaxatoms.types import InputError

OPTIONS = {"val_samples": 40, "save_to": None, "data_root": None}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def test_every_task_gets_its_share(cache):
    data = mixture.prepare_mixture("demo:organic,demo:slab", 60, "2:1", 0, cache_dir=cache, **OPTIONS)
    assert [len(d.train) for d in data] == [40, 20]
    assert [len(d.val) for d in data] == [40, 40]  # of each
    assert [d.task.cutoff for d in data] == [8.0, 12.0]
    corpus, train, _ = tasks.make_corpus(data)
    assert np.bincount(train.task).tolist() == [40, 20]
    systems, _, targets = corpus.build(train.at(np.array([0, 59, 1])))
    assert sorted(targets.task.tolist()) == [0, 0, 1]
    assert len(systems.n_node) == 3


def test_the_draw_of_a_task_does_not_depend_on_its_companions(cache):
    alone = mixture.prepare_mixture("demo:organic", 30, "balanced", 3, cache_dir=cache, **OPTIONS)[0]
    mixed = mixture.prepare_mixture("demo:slab,demo:organic", 60, "balanced", 3, cache_dir=cache, **OPTIONS)[1]
    np.testing.assert_array_equal(alone.train, mixed.train)


def test_too_many_structures_name_the_data_set(cache):
    with pytest.raises(InputError, match="demo:slab: --mix balanced asks for 50000"):
        mixture.prepare_mixture("demo:slab,demo:organic", 100_000, "balanced", 0, cache_dir=cache, **OPTIONS)


def test_short_names_of_tasks(cache):
    data = mixture.prepare_mixture("demo:organic,demo:slab", 10, "balanced", 0, cache_dir=cache, **OPTIONS)
    assert mixture.task_names(data) == ["demo:organic", "demo:slab"]


@pytest.mark.slow
def test_a_mixed_run_reports_every_task(cache, tmp_path):
    (tmp_path / "nano.json").write_text(json.dumps(NANO))
    options = ["--upstream", "demo:organic,demo:slab", "--mix", "2:1", "--n", "24", "--epochs", "1",
               "--batch-size", "8", "--batch-shapes", "1", "--model", str(tmp_path / "nano.json"),
               "--val-samples", "16", "--cache-dir", cache, "--run-dir", str(tmp_path / "run"), "--quiet"]  # fmt: skip
    assert pretrain.main(options) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n_per_task"] == {"demo:organic": 16, "demo:slab": 8}
    final = summary["validation"]
    each = [final[f"force_mae_mev_per_angstrom/{name}"] for name in ("demo:organic", "demo:slab")]
    assert final["force_mae_mev_per_angstrom"] == pytest.approx(np.mean(each))
    assert (tmp_path / "run" / "data" / "task1" / "split.npz").exists()

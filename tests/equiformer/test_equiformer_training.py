"""EquiformerV2 trains on the shipped molecules through the same corpus, budgets, loader and step as GemNet-OC."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxatoms.data import loader, packing
from jaxatoms.data.tasks import make_corpus, prepare_task
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.architecture import EQUIFORMER_V2
from jaxatoms.models.equiformer_v2.config import TINY
from jaxatoms.models.registry import make_model, split_model
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_train_step

CONFIG = dataclasses.replace(TINY, num_layers=1, lmax=1, mmax=1, grid_resolution=6, tile_edges=256)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    data = prepare_task("demo:organic", 64, 0, val_samples=8, data_root=None, cache_dir=cache)
    corpus, train, _ = make_corpus([data], EQUIFORMER_V2.graphs)
    sizes = loader.measure(corpus, train, 0.1)
    budgets = packing.fixed_budgets(sizes, 8, int(corpus.n_node(train).max()), 24, shapes=1)
    return loader.TrainBatches(corpus, train, budgets, 3, 0, 0.1, 8)


def make_step(model, optimizer, dropout_seed):
    scales = LossScales(jax.numpy.ones(1), jax.numpy.full(1, 10.0))
    return make_train_step(
        model.apply, optimizer, pretraining_terms(scales), ema_decay=0.9, edge_dropout=0.1, dropout_seed=dropout_seed
    )


def test_batches_hold_the_nearest_graph_with_both_tables(batches):
    batch = batches.batch(0)
    assert batch.main.out_table is not None
    assert not np.any(batch.qint.in_table < len(batch.qint.senders))
    real = loader.occupancy(batch)[0]
    assert real == (batch.main.out_table < len(batch.main.senders)).sum() > 0


@pytest.mark.slow
def test_the_loss_falls_and_dropout_follows_its_seed(batches):
    model = split_model(make_model(CONFIG, 1, 0, Precision()))
    divisors = EQUIFORMER_V2.gradient_divisors(model.params, CONFIG)
    optimizer = make_optimizer(OptimConfig(lr=1e-2, warmup_steps=2), 100, divisors)

    def train(step, steps: int) -> list[float]:
        state, losses = init_state(jax.tree.map(jax.numpy.array, model.params), optimizer), []
        for i in range(steps):
            state, metrics = step(state, model.constants, batches.batch(i % 2))
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1
        return losses

    assert EQUIFORMER_V2.has_dropout(CONFIG)
    step = make_step(model, optimizer, 0)
    first, again, other = train(step, 20), train(step, 4), train(make_step(model, optimizer, 1), 4)
    assert first[:4] == again
    assert other != again
    assert np.mean(first[-2:]) < 0.9 * np.mean(first[:2])

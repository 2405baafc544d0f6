"""The models that the training benchmark measures, traced on its workloads."""

import jax
import jax.numpy as jnp
import pytest
from fixtures.nano import NANO

from benchmarks import train_throughput
from benchmarks.train_throughput import direct_model, gradient_model, load_structures, make_workload
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.optim import OptimConfig, make_optimizer
from jaxatoms.training.step import init_state, make_train_step


@pytest.mark.parametrize("make_model", [direct_model, gradient_model])
def test_a_training_step_of_the_benchmark_traces(make_model):
    model, work = make_model(GemNetOCConfig(**NANO), Precision()), make_workload(load_structures("aspirin4", 1))
    optimizer, scales = make_optimizer(OptimConfig(), 100), LossScales(jnp.ones(1), jnp.ones(1))
    step = make_train_step(model.apply, optimizer, pretraining_terms(scales), ema_decay=0.9, edge_dropout=0.0)
    _, metrics = jax.eval_shape(step, init_state(model.params, optimizer), model.constants, work.batch)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("remat", [False, True])
def test_lines_of_the_peer_say_beside_what_they_ran(monkeypatch, remat):
    line = {"step_s": 2.0, "graph_s": 0.0, "cpu_s": 1.0, "peak_gib": {"host": 1.0}, "edges": {}, "machine": {}}
    monkeypatch.setattr(train_throughput, "_run", lambda command, tuned: line | {"malloc_tuned": tuned})
    args = train_throughput.parse_args(["--peer", "PEER"] + ["--remat"] * remat)
    ours, *peers = train_throughput.compare("aspirin4", "direct", args)
    assert ours["ratios"]["time"] == 1.0 and len(peers) == 2
    assert all(peer["remat"] is remat and peer["model"] == args.model for peer in peers)

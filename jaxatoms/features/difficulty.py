"""Losses of a pretrained network on the structures of a data set, one by one: what difficulty subsets are chosen by.

Predictions and labels are compared as in pretraining: normalised by the data set's own constants, whatever the network
was trained on. Source: docs/reference/csi.md, Difficulty.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from jaxatoms.data.corpus import Corpus, UpstreamTask, samples_of
from jaxatoms.data.downstream_task import PUBLISHED
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.passes import plan_pass
from jaxatoms.data.references import LinearReference, make_normalization
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.store import Store
from jaxatoms.features.extraction import Request, choose_records, classes_of, opened
from jaxatoms.inference import inputs
from jaxatoms.inference.model import LoadedModel, choose_task, restore_model
from jaxatoms.io import open_npz, save_npz
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.training.losses.pretraining import LossScales, structure_losses
from jaxatoms.types import InputError


class Losses(NamedTuple):
    """Losses of some structures of a data set."""

    records: np.ndarray  # [n] of the data set
    energy: np.ndarray  # [n] energy term, normalised; NaN where there is no label
    forces: np.ndarray  # [n] force term
    info: dict[str, Any]  # how they were made

    @property
    def total(self) -> np.ndarray:
        """[n] sum of the terms that the data set has labels for; NaN where a structure lacks one of them."""
        terms = [term for term in (self.energy, self.forces) if np.isfinite(term).any()]
        return np.sum(terms, axis=0) if terms else np.full(len(self.records), np.nan)


def measure_losses(config, request: Request) -> Losses:
    """Losses of a sample of the train split of a set to pretrain on.

    Args:
      config: with checkpoint, raw_weights, task, batch_edges, data_root, cache_dir and quiet.

    Raises:
      InputError: a network without energy and force heads, unknown elements, too few structures, no labels.
    """
    model = restore_model(config.checkpoint, raw_weights=config.raw_weights)
    head, _ = choose_task(model, config.task or _named_like(model, request.dataset))
    if model.kind != "tasks":
        raise InputError(f"{config.checkpoint} is fine-tuned; losses are those of a pretrained network")
    spec, store = open_upstream(request.dataset, config.data_root, config.cache_dir, must_validate=False)
    if spec.family in PUBLISHED:
        raise InputError(f"{request.dataset} is a task; losses are of data sets to pretrain on")
    corpus, train = _labelled(request.dataset, spec, store, model, config)
    classes, _ = classes_of(spec, store)
    records, left_out = choose_records(store, train, classes[train], request, model.largest_atomic_number)
    records = np.unique(records)  # a sampler may repeat some; one loss each
    scales = LossScales(jnp.array([spec.energy_scale]), jnp.array([spec.force_scale]))
    stream = plan_pass(corpus, samples_of(0, records), config.batch_edges, [])
    energy, forces = np.full((2, len(records)), np.nan)
    forward, steps = _forward(model, head, scales), enumerate(stream.batches())
    title = f"losses on {request.dataset}"
    for step, batch in track(steps, title, len(stream.groups), disable=config.quiet, transient=True):
        group = stream.groups[step]
        terms = jax.device_get(forward(jax.device_put(batch)))
        energy[group], forces[group] = (term[: len(group)] for term in terms)
    made_from = {"checkpoint": inputs.weights(config.checkpoint), "raw_weights": config.raw_weights,
                 "data": store.fingerprint, "train split": inputs.digest(train)}  # fmt: skip
    info = {"dataset": request.dataset, "head": model.meta.tasks[head].name, "n": request.n, "seed": request.seed,
            "sampling": request.sampling, "n_left_out": left_out, "made_from": made_from}  # fmt: skip
    losses = Losses(records, energy, forces, info)
    if not np.isfinite(losses.total).any():
        raise InputError(f"{request.dataset}: no structure has all of its labels; losses need energies or forces")
    return losses


def _named_like(model: LoadedModel, dataset: str) -> str | None:
    """The head that was trained on the data set, where there is one."""
    return dataset if dataset in [task.name for task in model.meta.tasks] else None


def _labelled(name: str, spec: DatasetSpec, store: Store, model: LoadedModel, config) -> tuple[Corpus, np.ndarray]:
    """(corpus with the data set's own references and normalisation, train records)."""
    graphs = model.architecture.graphs
    _, train = opened(name, spec, store, graphs, {}, config.data_root, config.cache_dir)
    reference = LinearReference.fit(store, train)
    normalization = make_normalization(spec, store, train, reference)
    task = UpstreamTask(name, store, reference, normalization, spec.cutoff, spec.max_neighbors)
    return Corpus((task,), graphs), train


def _forward(model: LoadedModel, head: int, scales: LossScales):
    """batch -> terms of every graph slot."""
    graphdef, state = nnx.split(model.module)

    @jax.jit
    def run(state, batch):
        out = nnx.merge(graphdef, state)(batch)
        own = ModelOutput(out.energy[:, head : head + 1], out.forces[..., head : head + 1])
        return structure_losses(own, batch, scales)

    return lambda batch: run(state, batch)


def save_losses(path: Path, losses: Losses) -> None:
    """An .npz with `records`, `loss` (the sum), `energy_loss`, `force_loss`; whole or not at all."""
    arrays = {"records": losses.records, "loss": losses.total, "energy_loss": losses.energy,
              "force_loss": losses.forces, "info": np.array(json.dumps(losses.info))}  # fmt: skip
    save_npz(path, arrays)


def load_losses(path: Path, store: Store) -> tuple[np.ndarray, np.ndarray, dict]:
    """(records, loss of each, how they were made) of a file of `save_losses`.

    Raises:
      InputError: not such a file, or losses of other data than the store's.
    """
    with open_npz(path, "holds no losses", "write it with experiments.extract --losses") as archive:
        records, loss, info = archive["records"], archive["loss"], json.loads(str(archive["info"]))
        fingerprint = info["made_from"]["data"]
    if fingerprint != store.fingerprint:
        raise InputError(f"{path} holds losses of other data ({fingerprint[:12]}) than {store.path} "
                         f"({store.fingerprint[:12]}); run experiments.extract --losses again")  # fmt: skip
    return records, loss, info

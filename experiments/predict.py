"""Energies and forces of structures from a checkpoint.

    python -m experiments.predict --checkpoint runs/ani1x --structures in.extxyz --out out.extxyz

Reads anything ASE reads; writes extended XYZ in the order read, energies in eV, forces in eV/A.
"""

import dataclasses
import os
from pathlib import Path

import ase.io
import jax
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from experiments import cli, models, tasks
from experiments.runtime import prepare_process
from jaxatoms.data import packing
from jaxatoms.data.concatenate import concatenate
from jaxatoms.data.readers.ase_file import read_atoms
from jaxatoms.graphs.batch import GraphBatch, Targets, collate
from jaxatoms.graphs.gemnet_graphs import build_graphs, neighbor_limits
from jaxatoms.models.layers import Precision
from jaxatoms.training.checkpoint import read_meta, resolve_checkpoint, restore
from jaxatoms.types import InputError, SystemBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to predict, and from which checkpoint."""

    checkpoint: str
    """Run folder, checkpoints/best or a step folder."""
    structures: str
    """File that ASE reads."""
    out: str
    """Extended XYZ file to write."""
    task: str | None = None
    """Name of the task whose head is used; needed when the checkpoint has several."""
    raw_weights: bool = False
    """Use the raw weights instead of their moving average."""
    batch_size: int = 20


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.predict`."""
    config = cli.parse(PredictConfig, argv, description=__doc__, prog="python -m experiments.predict")
    prepare_process()
    atoms = list(read_atoms(Path(config.structures)))
    if not atoms:
        raise InputError(f"{config.structures} holds no structure")
    model, task, record = load_model(config)
    predictions = predict(model, task, record, [system for _, system in atoms], config)
    write_extxyz(Path(config.out), [a for a, _ in atoms], predictions)
    print(f"{len(predictions)} structures -> {config.out} (energies in eV, forces in eV/A)")
    return 0


def load_model(config: PredictConfig) -> tuple[models.PureModel, int, dict]:
    """The restored model, the index of the chosen task and its record.

    Raises:
      InputError: no such checkpoint or task.
    """
    path = resolve_checkpoint(config.checkpoint)
    meta = read_meta(path)
    names = [t["name"] for t in meta["tasks"]]
    if config.task not in names and (config.task or len(names) > 1):
        raise InputError(f"{path} has the tasks {', '.join(names)}; choose one with --task")
    task = names.index(config.task) if config.task else 0
    model = models.abstract_model(
        models.config_from_record(meta["model"]), len(names), Precision(matmul=meta["precision"])
    )
    weights = "params" if config.raw_weights else "ema"
    arrays, _ = restore(path, {weights: model.params, "constants": model.constants})
    return model._replace(params=arrays[weights], constants=arrays["constants"]), task, meta["tasks"][task]


def predict(model: models.PureModel, task: int, record: dict, systems: list, config: PredictConfig):
    """[(energy eV, forces [n_node, 3] eV/A)] of every structure, in order; one compiled shape."""
    groups = np.array_split(np.arange(len(systems)), -(-len(systems) // config.batch_size))
    parts = [_build([systems[i] for i in group], record) for group in groups]
    budget = packing.exact_budget([packing.whole_size(*part) for part in parts])
    apply, out = jax.jit(model.apply, static_argnums=3), []
    reference = tasks.reference_from_record(record)
    for systems_batch, graphs in parts:
        batch = collate(systems_batch, graphs, _no_targets(systems_batch), budget)
        result = apply(model.params, model.constants, batch, 0.0)
        out += _physical(result, task, record, reference, systems_batch, batch)
    return out


def _build(systems: list, record: dict):
    batch = concatenate(systems)
    cutoff = np.full(len(systems), record["cutoff"])
    limits = np.array([neighbor_limits(record["max_neighbors"])] * len(systems))
    return batch, build_graphs(batch.positions, batch.n_node, batch.cell, batch.pbc, batch.tags, cutoff, limits)


def _no_targets(systems: SystemBatch) -> Targets:
    return Targets(systems.energy.astype(np.float32), systems.forces, np.zeros(len(systems.n_node), np.int32))


def _physical(result, task: int, record: dict, reference, systems: SystemBatch, batch: GraphBatch) -> list:
    n = len(systems.n_node)
    residual = np.asarray(result.energy, np.float64)[:n, task] * record["energy_std"]
    energy = reference.add_back(residual, systems.atomic_numbers, systems.n_node)
    forces = np.asarray(result.forces, np.float64)[: len(systems.atomic_numbers), :, task] * record["force_std"]
    return list(zip(energy, np.split(forces, np.cumsum(systems.n_node)[:-1]), strict=True))


def write_extxyz(path: Path, atoms: list, predictions: list):
    """Write structures with predicted energy and forces; the file appears whole or not at all."""
    labelled = []
    for source, (energy, forces) in zip(atoms, predictions, strict=True):
        copy = source.copy()
        copy.calc = SinglePointCalculator(copy, energy=float(energy), forces=forces)
        labelled.append(copy)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        ase.io.write(draft, labelled, format="extxyz")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


if __name__ == "__main__":
    raise SystemExit(main())

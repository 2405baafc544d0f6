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
from flax import nnx

from experiments import cli
from experiments.runtime import prepare_process
from jaxatoms import inference
from jaxatoms.data.concatenate import concatenate
from jaxatoms.data.readers.ase_file import read_atoms
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


def load_model(config: PredictConfig) -> tuple[inference.LoadedModel, int, dict]:
    """The restored model, the index of the chosen task and its record.

    Raises:
      InputError: no such checkpoint or task.
    """
    model = inference.restore_model(config.checkpoint, raw_weights=config.raw_weights)
    return model, *inference.choose_task(model, config.task)


def predict(model: inference.LoadedModel, task: int, record: dict, systems: list, config: PredictConfig):
    """[(energy eV, forces [n_node, 3] eV/A)] of every structure, in order; one compiled shape."""
    for system in systems:
        inference.check_elements(record, system.atomic_numbers, model.path)
    groups = np.array_split(np.arange(len(systems)), -(-len(systems) // config.batch_size))
    parts = [_build([systems[i] for i in group], record, model.config) for group in groups]
    budget = inference.budget_of(model.config, parts)
    graphdef, state = nnx.split(model.module)
    apply, out = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch)), []
    for systems_batch, graphs in parts:
        result = apply(state, inference.unlabelled(systems_batch, graphs, budget))
        out += _physical(result, task, record, systems_batch, gradient=model.has_gradient_forces)
    return out


def _build(systems: list, record: dict, config):
    batch = concatenate(systems)
    return batch, inference.build_graphs_of(config, batch, record["cutoff"], record["max_neighbors"])


def _physical(result, task: int, record: dict, systems: SystemBatch, *, gradient: bool) -> list:
    n_graph, n_node = len(systems.n_node), len(systems.atomic_numbers)
    if result.energy is None:
        raise InputError("this checkpoint predicts forces alone; use jaxatoms.ase, or one that predicts energies")
    # Models with gradient forces have one head and no axis for it.
    energy, forces = (np.asarray(x) if gradient else np.asarray(x)[..., task] for x in result)
    physical = inference.physical_energy(energy[:n_graph], record, systems)
    forces = inference.physical_forces(forces[:n_node], record, gradient=gradient)
    return list(zip(physical, np.split(forces, np.cumsum(systems.n_node)[:-1]), strict=True))


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

"""Structures in, predictions out: chunks of a stream are packed into batches, predicted, and put back in order."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import ase
import jax
import numpy as np
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from flax import nnx

from jaxatoms.data import loader, packing
from jaxatoms.data.concatenate import concatenate
from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import Graph
from jaxatoms.data.passes import Pass
from jaxatoms.data.readers.ase_file import system_of
from jaxatoms.data.readers.checks import fail
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.graphs.batch import MAX_PER_GRAPH, Labels
from jaxatoms.graphs.properties import DIPOLE, places
from jaxatoms.inference import model as inference
from jaxatoms.inference.compiled import CompiledShapes
from jaxatoms.inference.uncertainty import fitted_uncertainty
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.types import InputError, System, SystemBatch

BATCHES_PER_CHUNK = 16  # so that packing finds partners, and a kill loses little
MAX_STRUCTURES = 1024


@dataclasses.dataclass(frozen=True)
class Record:
    """One structure of the input."""

    index: int  # its place in the file
    atoms: ase.Atoms
    system: System


class Prediction(NamedTuple):
    """What a model says of one structure; what it does not predict is None."""

    energy: float | None = None  # eV
    forces: np.ndarray | None = None  # [n_node, 3] eV/A
    # {column: value in the column's unit}; of models for several properties also arrays [n_node] and dipoles [3].
    properties: dict[str, Any] | None = None
    features: np.ndarray | None = None  # [n_node, d] float32, what the heads read
    stress: np.ndarray | None = None  # [6] eV/A^3, in ASE's order; of periodic structures and models that learnt it
    energy_std: float | None = None  # eV; where an uncertainty was fitted for the checkpoint, and of ensembles
    forces_std: np.ndarray | None = None  # [n_node] eV/A, of ensembles alone


def chunks(records: Iterable[Record], n_atom: int) -> Iterator[list[Record]]:
    """The stream cut where `n_atom` atoms or MAX_STRUCTURES structures are together."""
    chunk: list[Record] = []
    atoms = 0
    for record in records:
        chunk.append(record)
        atoms += len(record.atoms)
        if atoms >= n_atom or len(chunk) >= MAX_STRUCTURES:
            yield chunk
            chunk, atoms = [], 0
    if chunk:
        yield chunk


class Predicts(Protocol):
    """A `Predictor`, or an `Ensemble` of them."""

    without_energy: int

    def check(self, path: Path, record: Record) -> None: ...

    def predict(self, path: Path, chunk: list[Record]) -> list[Prediction]: ...


def predict_each(predictor: Predicts, path: Path, chunk: list[Record]) -> list[Prediction | InputError]:
    """What `predictor.predict` gives, with the reason in place of each structure that it refuses."""
    found: list[Any] = [_refusal(predictor, path, record) for record in chunk]
    fit = [i for i, refusal in enumerate(found) if refusal is None]
    for i, prediction in zip(fit, _by_halves(predictor, path, [chunk[i] for i in fit]), strict=True):
        found[i] = prediction
    return found


def _refusal(predictor: Predicts, path: Path, record: Record) -> InputError | None:
    try:
        predictor.check(path, record)
    except InputError as error:
        return error
    return None


def _by_halves(predictor: Predicts, path: Path, chunk: list[Record]) -> list[Prediction | InputError]:
    """Predictions of structures of which few are refused: the chunk is halved until such a one is alone."""
    before = predictor.without_energy
    try:
        return list(predictor.predict(path, chunk)) if chunk else []
    except InputError as error:
        if len(chunk) == 1:
            return [error]
    predictor.without_energy = before  # what was counted comes again
    half = len(chunk) // 2
    return _by_halves(predictor, path, chunk[:half]) + _by_halves(predictor, path, chunk[half:])


class Predictor:
    """A checkpoint's model with the shapes compiled so far, for chunk after chunk.

    Args:
      model: the restored model.
      head: the task whose head is used; None where there is but one.
      batch_edges: edge slots of a batch.
      features: also return what the heads read.
      uncertainty: also return standard deviations where they were fitted for the head.

    Raises:
      InputError: no such head, or an uncertainty that was fitted for other weights.
    """

    def __init__(
        self, model: inference.LoadedModel, head: str | None, batch_edges: int, features: bool = False,
        uncertainty: bool = True,
    ):
        self.model, self.batch_edges = model, batch_edges
        self.task, self.record = inference.choose_head(model, head)
        self.fitted = fitted_uncertainty(model, self.task) if uncertainty else None
        self.without_energy = 0  # structures whose energy the model's training leaves open
        self._graphdef, self._state = nnx.split(model.module)
        graphdef, with_std = self._graphdef, self.fitted is not None

        def run(state, batch):
            module = nnx.merge(graphdef, state)
            nodes = module.node_features(batch) if features else None
            return module(batch), nodes, module.energy_features(batch) if with_std else None

        self._run = CompiledShapes(run)

    def share_programs(self, other: Self):
        """Use the compiled shapes of another predictor, where it is of the same network and returns the same."""
        if self._graphdef == other._graphdef:
            self._run = other._run

    @property
    def n_compiled(self) -> int:
        """Shapes compiled so far."""
        return self._run.n_compiled

    @property
    def chunk_atoms(self) -> int:
        """Atoms that fill a chunk."""
        return max(1, BATCHES_PER_CHUNK * self.batch_edges // self.record.max_neighbors)

    def check(self, path: Path, record: Record) -> None:
        """Refuse a structure that the model cannot take.

        Raises:
          InputError: naming file, structure and remedy.
        """
        where, numbers = f"structure {record.index}", record.system.atomic_numbers
        if len(numbers) > MAX_PER_GRAPH:
            fail(path, where, f"has {len(numbers)} atoms, a batch holds {MAX_PER_GRAPH}", "cut it or leave it out")
        known = {int(z) for z in self.record.elements}
        known &= set(range(1, self.model.largest_atomic_number + 1))
        unknown = [chemical_symbols[z] for z in np.unique(numbers) if int(z) not in known]
        if unknown:
            what = f"{self.model.path} was not trained on {', '.join(unknown)}"
            fail(path, where, what, "leave it out, or choose another checkpoint or head")

    def predict_atoms(self, structures: Sequence[ase.Atoms], name: str = "structures") -> list[Prediction]:
        """Predictions for structures in memory, in their order; labels that they carry are not looked at.

        Args:
          structures: any number of them; they are packed into batches.
          name: of all of them, for messages.

        Raises:
          InputError: a structure that the model cannot take, or a prediction that is not finite.
        """
        path = Path(name)
        systems = (system_of(path, f"structure {i}", atoms, labels=False) for i, atoms in enumerate(structures))
        records = (Record(i, *pair) for i, pair in enumerate(zip(structures, systems, strict=True)))
        return [found for chunk in chunks(records, self.chunk_atoms) for found in self.predict(path, chunk)]

    def predict(self, path: Path, chunk: list[Record]) -> list[Prediction]:
        """Predictions in the order of the chunk.

        Raises:
          InputError: a prediction that is not finite.
        """
        for record in chunk:
            self.check(path, record)
        stream = self._plan(path, chunk)
        found: dict[int, Prediction] = {}
        for group, batch in zip(stream.groups, stream.batches(), strict=True):
            batch = batch._replace(task=np.full_like(batch.task, self.task))
            result, features, last = jax.device_get(self._run(stream.budget, self._state, batch))
            systems = concatenate([chunk[i].system for i in group])
            std = [None] * len(group) if self.fitted is None else self.fitted.std(last[: len(group)]).tolist()
            predictions = map(self._with_std, self._physical(result, features, systems), std)
            found.update(zip(group.tolist(), predictions, strict=True))
        for i, prediction in found.items():
            if prediction.stress is not None and chunk[i].atoms.cell.rank < 3:  # no volume: a vector was made up
                found[i] = prediction._replace(stress=None)
            if not _is_finite(prediction):
                remedy = "check that no two atoms share a place, or leave it out"
                fail(path, f"structure {chunk[i].index}", "its prediction is not finite", remedy)
        return [found[i] for i in range(len(chunk))]

    def _with_std(self, prediction: Prediction, std: float | None) -> Prediction:
        """The prediction with the standard deviation of its energy, or of its property under `<column>_std`."""
        if std is None:
            return prediction
        if prediction.properties is not None:
            return prediction._replace(properties=prediction.properties | {f"{self.record.target}_std": std})
        return prediction if prediction.energy is None else prediction._replace(energy_std=std)

    def _plan(self, path: Path, chunk: list[Record]) -> Pass:
        corpus = Corpus((_Unlabelled(path, chunk, self.record.graph),), self.model.architecture.graphs)
        samples = samples_of(0, np.arange(len(chunk)))
        sizes = loader.measure(corpus, samples, 0.0, limit=None)
        weights = np.maximum(sizes["n_main"], 1)  # lone atoms have no edges, but take room
        capacity = int(max(weights.max(), min(self.batch_edges, weights.sum())))
        groups = packing.pack(weights, capacity)
        largest = {name: values.max() for name, values in packing.group_sizes(sizes, groups).items()}
        need = packing.make_budget(largest | {"n_main": capacity})
        return Pass(corpus, samples, groups, self._run.budget_for(need, self.batch_edges), 0.0, 0)

    def _physical(self, result, features, systems: SystemBatch) -> Iterator[Prediction]:
        """Predictions of the structures of one batch."""
        n_graph, ends = len(systems.n_node), np.cumsum(systems.n_node)[:-1]
        gradient, record = self.model.has_gradient_forces, self.record

        def per_atom(values):
            return np.split(np.asarray(values)[: len(systems.atomic_numbers)], ends)

        none = [None] * n_graph
        rows = none if features is None else per_atom(features)
        if record.properties:
            several = _several(result, record, systems)
            return (Prediction(properties=p, features=f) for p, f in zip(several, rows, strict=True))
        if self.model.kind == "scalar" and record.target != "energy":
            properties = _properties(np.asarray(result.energy[:n_graph]), record, systems)
            return (Prediction(properties=p, features=f) for p, f in zip(properties, rows, strict=True))
        energy, forces = none, none
        # The models of fine-tuning have one head and no axis for it.
        if result.forces is not None and (gradient or "forces" in record.labels):
            own = result.forces if result.forces.ndim == 2 else result.forces[..., self.task]
            forces = per_atom(record.forces(own, gradient=gradient))
        if result.energy is not None:
            own = result.energy if result.energy.ndim == 1 else result.energy[:, self.task]
            known = record.knows_energy(systems)
            values = record.energies(own[:n_graph], systems).tolist()
            energy = [value if sure else None for value, sure in zip(values, known, strict=True)]
            self.without_energy += int((~known).sum())
        stress = none if result.stress is None else _stresses(result.stress[:n_graph], record, systems)
        return (Prediction(e, f, None, r, s) for e, f, r, s in zip(energy, forces, rows, stress, strict=True))


@dataclasses.dataclass(frozen=True)
class _Unlabelled:
    """A chunk as a `corpus.Task`, which is its own store."""

    path: Path
    chunk: list[Record]
    graph: Graph

    @property
    def store(self) -> Self:
        return self

    @property
    def n_node(self) -> np.ndarray:
        return np.array([len(record.atoms) for record in self.chunk])

    def take(self, records: np.ndarray) -> SystemBatch:
        return concatenate([self.chunk[i].system for i in records])

    def where(self, record: int) -> str:
        return f"{self.path}: structure {self.chunk[record].index}"

    def targets(self, systems: SystemBatch, records: np.ndarray) -> Labels:
        return Labels(np.full(len(records), np.nan), np.full((len(systems.positions), 3), np.nan))


def _properties(values: np.ndarray, record: TaskRecord, systems: SystemBatch) -> list[dict]:
    """{column: value}, or {column: class, column_probability: its probability} for logits [n_graph, n_class]."""
    name = record.target
    assert name is not None
    if values.ndim == 1:
        return [{name: value} for value in record.energies(values, systems).tolist()]
    weights = np.exp(values - values.max(axis=1, keepdims=True).astype(np.float64))
    probability = weights / weights.sum(axis=1, keepdims=True)
    return [{name: int(p.argmax()), f"{name}_probability": float(p.max())} for p in probability]


def _several(result: ModelOutput, record: TaskRecord, systems: SystemBatch) -> list[dict]:
    """{column: value, vector or [n_node] array} of each structure; no dipole of a periodic one."""
    n_graph, n_node = len(systems.n_node), len(systems.atomic_numbers)
    found: list[dict] = [{} for _ in range(n_graph)]
    for own, place in zip(record.properties, places([p.reduction for p in record.properties]), strict=True):
        array = np.asarray(result.atom_properties if place.per_atom else result.properties)
        columns = array[: n_node if place.per_atom else n_graph, place.columns]
        values = own.values(columns if own.reduction == DIPOLE else columns[:, 0], systems)
        each = np.split(values, np.cumsum(systems.n_node)[:-1]) if place.per_atom else values
        vague = systems.pbc.any(axis=1) & (own.reduction == DIPOLE)
        for one, value in ((one, value) for one, value, no in zip(found, each, vague, strict=True) if not no):
            one[own.column] = value if isinstance(value, np.ndarray) else float(value)
    return found


def _stresses(values: np.ndarray, record: TaskRecord, systems: SystemBatch) -> list[np.ndarray | None]:
    """Stress of each periodic structure; None of one that has no volume."""
    matrices = np.asarray(values, np.float64) * record.energy_std
    periodic = systems.pbc.any(axis=1) & (np.abs(np.linalg.det(systems.cell.astype(np.float64))) > 0)
    return [full_3x3_to_voigt_6_stress(m) if known else None for m, known in zip(matrices, periodic, strict=True)]


def _is_finite(prediction: Prediction) -> bool:
    given = (prediction.energy, prediction.forces, prediction.features, prediction.stress, prediction.energy_std)
    numbers = [*given, *(prediction.properties or {}).values()]
    return all(np.isfinite(value).all() for value in numbers if value is not None)


"""Several checkpoints that predict the same: their mean, and their standard deviation as an uncertainty."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxatoms.inference.model import LoadedModel
from jaxatoms.inference.prediction import Prediction, Predictor, Record
from jaxatoms.types import InputError


def check_alike(models: Sequence[LoadedModel], tasks: Sequence[int]) -> None:
    """Refuse members of an ensemble whose predictions have no mean.

    Args:
      tasks: number of the head of each.

    Raises:
      InputError: members of different kinds or targets, members that predict classes, or one of them twice.
    """
    kinds = [_kind(model, task) for model, task in zip(models, tasks, strict=True)]
    for model, kind in zip(models, kinds, strict=True):
        if kind != kinds[0]:
            ours, theirs = (", ".join(map(str, own)) for own in (kinds[0], kind))
            raise InputError(
                f"{model.path} ({theirs}) and {models[0].path} ({ours}) do not predict the same; give checkpoints of "
                "one kind and target"
            )
    paths = [model.path for model in models]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise InputError(f"{twice} is given twice; an ensemble needs checkpoints that were trained independently")
    if (head := models[0].meta.head) is not None and head.n_class:
        raise InputError(f"{models[0].path} predicts classes, which have no mean; give one checkpoint")


def _kind(model: LoadedModel, task: int) -> tuple[str, ...]:
    """What is predicted: how, and of what."""
    record = model.meta.tasks[task]
    what = record.target if model.kind in ("scalar", "properties") else " and ".join(record.labels)
    stress = ["stress"] if model.meta.head is not None and model.meta.head.stress else []
    return model.kind, str(what), *stress


class Ensemble:
    """Predictors of several checkpoints as one, whose predictions have a standard deviation.

    Each member reads structures with its own cutoff and neighbours; members of one network share compiled programs.

    Args:
      models: two or more restored models of one kind and target.
      head: the task whose head is used; None where each has but one.
      batch_edges: edge slots of a batch.

    Attributes:
      members: the predictors.
      model, record: of the first member.
      without_energy: structures that have no energy, since a member's training does not fix its zero.

    Raises:
      InputError: no such head, or members that do not predict the same.
    """

    def __init__(self, models: Sequence[LoadedModel], head: str | None, batch_edges: int):
        self.members = [Predictor(model, head, batch_edges, uncertainty=False) for model in models]
        check_alike(models, [member.task for member in self.members])
        for member in self.members[1:]:
            member.share_programs(self.members[0])
        self.model, self.record = self.members[0].model, self.members[0].record
        self.without_energy = 0

    @property
    def n_compiled(self) -> int:
        """Shapes compiled so far."""
        return sum({id(member._run): member.n_compiled for member in self.members}.values())

    @property
    def chunk_atoms(self) -> int:
        """Atoms that fill a chunk."""
        return min(member.chunk_atoms for member in self.members)

    def check(self, path: Path, record: Record) -> None:
        """Refuse a structure that a member cannot take.

        Raises:
          InputError: naming file, structure and remedy.
        """
        for member in self.members:
            member.check(path, record)

    def predict(self, path: Path, chunk: list[Record]) -> list[Prediction]:
        """Means with standard deviations, in the order of the chunk.

        Raises:
          InputError: a structure that a member cannot take, or a prediction that is not finite.
        """
        each = zip(*(member.predict(path, chunk) for member in self.members), strict=True)
        combined = [combine(predictions) for predictions in each]
        if any(member.without_energy for member in self.members):
            self.without_energy += sum(prediction.energy is None for prediction in combined)
        return combined


def combine(predictions: Sequence[Prediction]) -> Prediction:
    """Means of the members' predictions of one structure, with sample standard deviations (n - 1).

    The standard deviation of a force is that of the vector: the root of the summed variances of its components. What a
    member does not predict is None.
    """
    energy, energy_std = _moments([p.energy for p in predictions])
    forces, forces_std = _moments([p.forces for p in predictions])
    return Prediction(
        energy=None if energy is None else float(energy),
        forces=forces,
        properties=_properties(predictions),
        stress=_moments([p.stress for p in predictions])[0],
        energy_std=None if energy_std is None else float(energy_std),
        forces_std=None if forces_std is None else np.linalg.norm(forces_std, axis=1),
    )


def _moments(values: Sequence) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(mean, sample standard deviation) over the members; None where one has no value."""
    if any(value is None for value in values):
        return None, None
    return np.mean(values, axis=0), np.std(values, axis=0, ddof=1)


def _properties(predictions: Sequence[Prediction]) -> dict | None:
    """{column: mean, column_std: standard deviation} of scalars, numbers per atom and components of dipoles."""
    if predictions[0].properties is None:
        return None
    out: dict = {}
    for name in predictions[0].properties:
        mean, std = _moments([p.properties[name] for p in predictions if p.properties is not None])
        assert mean is not None and std is not None
        out |= {name: mean, f"{name}_std": std} if np.ndim(mean) else {name: float(mean), f"{name}_std": float(std)}
    return out

"""The record of a checkpoint: everything but its arrays, as meta.json holds it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxatoms.data.task_record import TaskRecord
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.training.checkpoint_files import read_meta
from jaxatoms.types import InputError

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """What is known of a checkpoint; None where its maker had nothing to say.

    Attributes:
      model: dimensions (see `models.registry.model_record`).
      tasks: one per head.
      precision: policy of the matmuls in training.
      head: of a fine-tuned model; None: an energy and a force head per task.
      reductions: how atoms' energies combine, per task; None: as the architecture has it.
      config: settings of the run; seed: its seed.
      budget: the whole budget N x E of a pretraining run (see `runs.pretraining.budget_record`).
      upstream, origin: of a fine-tuning run, where it started (see `runs.start.origin_record`).
      plateau: of a fine-tuning run, state of the rule that lowers its rate.
      source: of converted weights: file, layout, licence.
      step: training steps done; metrics, first_metrics: of the last and the first validation, which was at
        `validated_at`; best: lowest validation loss so far.
      provenance: code and machine of a conversion.
      version: of this record; 0 where it was written before it had one.
    """

    model: Mapping[str, Any]
    tasks: tuple[TaskRecord, ...]
    precision: str = "float32"
    head: HeadSpec | None = None
    reductions: tuple[str, ...] | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    budget: Mapping[str, Any] | None = None
    upstream: str | None = None
    origin: Mapping[str, Any] | None = None
    plateau: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    step: int = 0
    best: float = float("inf")
    metrics: Mapping[str, float] | None = None
    first_metrics: Mapping[str, float] | None = None
    validated_at: int | None = None
    provenance: Mapping[str, Any] | None = None
    version: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> Self:
        """The record as `to_json` wrote it, or an earlier version.

        Args:
          source: names the checkpoint in messages.

        Raises:
          InputError: a field that is missing or unknown, or a version from the future.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if missing := [name for name in ("model", "tasks") if name not in record]:
            lacks = ", ".join(missing)
            raise InputError(f"checkpoint {source} has no usable record (it lacks {lacks}); convert it first")
        unknown = [name for name in record if name not in known]
        if unknown or record.get("version", 0) > VERSION:
            what = f"unknown fields ({', '.join(unknown)})" if unknown else f"version {record['version']}"
            raise InputError(f"checkpoint {source} has a record of {what}; use a newer jaxatoms")
        own: dict[str, Any] = dict(record)
        own["tasks"] = tuple(TaskRecord.from_json(task, source) for task in record["tasks"])
        try:
            own["head"] = HeadSpec(**record["head"]) if record.get("head") else None
        except TypeError as error:
            raise InputError(f"checkpoint {source} has no usable head record ({error}); convert it first") from None
        own["best"] = _or_infinity(record.get("best"))
        if "best" in record.get("plateau", {}):
            own["plateau"] = {**record["plateau"], "best": _or_infinity(record["plateau"]["best"])}
        own["reductions"] = tuple(record["reductions"]) if record.get("reductions") else None
        return cls(**own)

    def to_json(self) -> dict[str, Any]:
        """JSON values of the fields that are set."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {name: value for name, value in plain.items() if value not in (None, {})}
        kept |= {"tasks": [task.to_json() for task in self.tasks], "version": VERSION}
        if self.head is not None:
            kept["head"] = self.head.to_json()
        return kept


def _or_infinity(best: float | None) -> float:
    """The lowest loss so far; JSON has no word for that before the first."""
    return float("inf") if best is None else best


def read_checkpoint_meta(path: str | Path) -> CheckpointMeta:
    """The record of the checkpoint that a path means.

    Raises:
      InputError: no checkpoint there, or no usable record.
    """
    return CheckpointMeta.from_json(read_meta(path), str(path))

"""A checkpoint -> its model, and what is needed to run it on structures: graphs, sizes, units.

Nothing here knows how a checkpoint came about: pretraining, fine-tuning and conversion write the same record.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxatoms.data.task_record import TaskRecord
from jaxatoms.graphs.batch import BatchBudget, GraphBatch, Targets, collate
from jaxatoms.graphs.shells import whole_limits
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.inference.checkpoint_meta import CheckpointMeta, read_checkpoint_meta
from jaxatoms.models.architecture import Architecture, Config
from jaxatoms.models.common.precision import MATMULS, Precision
from jaxatoms.models.registry import architecture_of, build_recorded, check_layout, config_from_record
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.checkpoint_files import resolve_checkpoint
from jaxatoms.types import Graphs, InputError, SystemBatch


class LoadedModel(NamedTuple):
    """A restored model with its record."""

    module: Any  # an `architecture.Model`
    config: Config
    meta: CheckpointMeta
    path: str
    raw_weights: bool = False  # and not their moving average

    @property
    def has_gradient_forces(self) -> bool:
        """Whether forces are the negative gradient of the energy."""
        return self.module.gradient_forces

    @property
    def architecture(self) -> Architecture:
        """The architecture of its dimensions."""
        return architecture_of(self.config)

    @property
    def largest_atomic_number(self) -> int:
        """The largest element that its tables hold."""
        return self.architecture.largest_atomic_number(self.config)

    @property
    def kind(self) -> str:
        """What it predicts: "gradient", "direct", "scalar", "properties" or "tasks" (of pretraining, many heads)."""
        if self.has_gradient_forces:
            return "gradient"
        return "tasks" if self.meta.head is None else self.meta.head.kind


def restore_model(path: str, *, raw_weights: bool = False, precision: str | None = None) -> LoadedModel:
    """The model of a checkpoint.

    Args:
      path: anything `training.checkpoint.resolve_checkpoint` accepts.
      raw_weights: the raw weights instead of their moving average.
      precision: policy of the matmuls; None: that of the training run.

    Raises:
      InputError: an unknown precision, no checkpoint, or one that is damaged, of an unknown architecture, or of an
        earlier layout.
    """
    if precision not in (None, *MATMULS):
        raise InputError(f"precision must be {', '.join(MATMULS)} or None, got {precision!r}")
    folder = resolve_checkpoint(path)
    meta = read_checkpoint_meta(folder)
    try:
        policy = Precision(matmul=precision or meta.precision)
        config = config_from_record(meta.model)
        abstract = nnx.eval_shape(lambda: build_recorded(config, meta.head, meta.reductions, len(meta.tasks), policy))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {folder} has no usable model record ({error}); convert it first") from error
    check_layout(meta.model, meta.head, str(folder))
    graphdef, params, constants = nnx.split(abstract, nnx.Param, ...)  # type: ignore[misc]
    weights = "params" if raw_weights else "ema"
    arrays, _ = restore(folder, {weights: params, "constants": constants})
    module = nnx.merge(graphdef, arrays[weights], arrays["constants"])
    return LoadedModel(module, config, meta, str(folder), raw_weights)


def choose_task(model: LoadedModel, name: str | None) -> tuple[int, TaskRecord]:
    """Index and record of a head.

    Raises:
      InputError: no such head, or none named where there are several.
    """
    if model.kind in ("scalar", "properties"):
        raise InputError(f"{model.path} predicts a property of structures, not energies and forces")
    return choose_head(model, name)


def choose_head(model: LoadedModel, name: str | None) -> tuple[int, TaskRecord]:
    """Index and record of a head, of whatever it predicts.

    Args:
      name: of its data set, or the last part of a path in it without its ending: `own` for `file:data/own.extxyz`.

    Raises:
      InputError: no such head, or none named where there are several.
    """
    names = [task.name for task in model.meta.tasks]
    if not names:
        raise InputError(f"{model.path} has no heads (weights of a backbone only); fine-tune it first")
    short = [Path(task.partition("#")[0].rpartition("@")[2].removeprefix("file:")).stem for task in names]
    if name not in names and short.count(name) == 1:
        name = names[short.index(name)]
    if name not in names and (name or len(names) > 1):
        known = ", ".join(names)
        raise InputError(f"{model.path} has the heads {known}; choose one of them with --task or head=, got {name!r}")
    index = names.index(name) if name in names else 0
    return index, model.meta.tasks[index]


def whole_shells(graphs: GraphSpec, parted: np.ndarray, k: int) -> str:
    """In words, the limits next to `k` that part no shell; `parted` is of `graphs.shells`."""
    main = " or ".join(map(str, whole_limits(parted, k, lambda k: (k,))))
    if len(graphs.limits(k)) == 1:
        return f"max_neighbors = {main} keeps shells whole"
    every = " or ".join(map(str, whole_limits(parted, k, graphs.limits)))
    return f"max_neighbors = {main} keeps shells whole in the main graph, {every} in all four graphs"


def unlabelled(
    systems: SystemBatch, graphs: Graphs, budget: BatchBudget, dtype=np.float32, task: int = 0
) -> GraphBatch:
    """A padded batch without targets, positions and cells in `dtype`; `task`: number of the head that predicts it."""
    n_graph, n_node = len(systems.n_node), len(systems.atomic_numbers)
    missing = Targets(np.full(n_graph, np.nan), np.full((n_node, 3), np.nan), np.full(n_graph, task, np.int32))
    return collate(systems, graphs, missing, budget, dtype)


def cast(module: nnx.Module, dtype) -> tuple[Any, Any]:
    """(graphdef, state) of a module with float arrays in `dtype`."""
    graphdef, state = nnx.split(module)
    return graphdef, jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), state)

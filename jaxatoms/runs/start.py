"""The model of a fine-tuning run: built for its target, filled from a checkpoint, described and rebuilt."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.downstream import Facts, ForceData, PropertiesData
from jaxatoms.data.references import LinearReference
from jaxatoms.data.store import Store
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference.checkpoint_meta import CheckpointMeta, read_checkpoint_meta
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.registry import (
    PureModel,
    architecture_of,
    check_layout,
    config_from_record,
    find_config,
)
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.checkpoint_files import MARKER, POINTERS, resolve_checkpoint
from jaxatoms.types import InputError

_HEAD = re.compile(r"(out_energy|out_forces)/(\d+)/(.+)")


def head_of(facts: Facts, dropout: float = 0.0, direct: bool | None = None) -> HeadSpec:
    """The head that a data set's facts ask for; `direct` overrides how forces are predicted.

    Raises:
      InputError: stress with direct forces.
    """
    if isinstance(facts, ForceData):
        by_gradient = facts.gradient_forces if direct is None else not direct
        if facts.learns_stress and not by_gradient:
            raise InputError("stress is a derivative of the energy; leave it out of --targets, or take gradient forces")
        return HeadSpec(kind="gradient", stress=facts.learns_stress) if by_gradient else HeadSpec(
            kind="direct", energy=facts.learns_energy
        )
    if isinstance(facts, PropertiesData):
        return HeadSpec(kind="properties", outputs=facts.reductions)
    return HeadSpec(kind="scalar", reduction=facts.reduction, n_class=facts.n_class, dropout=dropout)


def transfer(model: PureModel, checkpoint: Path, mode: str, notify=print) -> PureModel:
    """`model` with the embedding, backbone and scale factors of a pretrained checkpoint; its head stays new.

    Args:
      checkpoint: a complete checkpoint folder.
      mode: "ema": averaged weights and the pretrained atom embedding. "reference": what the released code does, raw
        weights and a fresh embedding (docs/reference/finetuning.md, Loading weights).

    Raises:
      InputError: the checkpoint lacks a weight, or has it in another shape.
    """
    source = named_arrays(checkpoint, "ema" if mode == "ema" else "params")
    constants = named_arrays(checkpoint, "constants")
    fresh = ("embedding/",) if mode == "reference" else ()
    params, taken = _filled(model.params, source, checkpoint, skip=("out_energy/", "out_forces/", *fresh))
    constants, _ = _filled(model.constants, constants, checkpoint, skip=())
    dropped = sorted({"/".join(n.split("/")[:2]) for n in source if n not in taken})
    notify(f"{len(taken)} arrays from {checkpoint.parent.parent.name or checkpoint}; left behind: {', '.join(dropped)}")
    return model._replace(params=params, constants=constants)


def with_kept_heads(
    model: PureModel, checkpoint: Path, kept: Mapping[int, int], units: Mapping[int, float]
) -> PureModel:
    """`model` with heads of pretraining: its averaged weights, of the data sets that are replayed.

    Args:
      kept: {number of a head of the model: that of pretraining}.
      units: of their energies here, eV; the last layer of each, which has no bias, is multiplied where pretraining had
        another one.

    Raises:
      InputError: a head of another shape.
    """
    if not kept:
        return model
    source, records = named_arrays(checkpoint, "ema"), read_checkpoint_meta(checkpoint).tasks

    def fill(path, leaf):
        head = _HEAD.fullmatch(_name(path))
        if head is None or int(head[2]) not in kept:
            return leaf
        own = int(head[2])
        array = source.get(f"output/{head[1]}/{kept[own]}/{head[3]}")
        if array is None or array.shape != leaf.shape:
            raise InputError(f"{checkpoint}: its heads do not fit this network; leave --replay out")
        is_last = head[1] == "out_energy" and array.shape[-1] == 1
        factor = records[kept[own]].energy_std / units[own] if is_last else 1.0
        return jnp.asarray(array * factor, leaf.dtype)

    return model._replace(params=jax.tree_util.tree_map_with_path(fill, model.params))


def with_fitting_head(
    model: PureModel, checkpoint: Path, head: HeadSpec, record: TaskRecord, notify=print
) -> PureModel:
    """`model` with the averaged head of a checkpoint that was fine-tuned for the same; otherwise as it is.

    A potential with gradient forces goes on whatever its unit is: the last layer of its energy, which has no bias, is
    multiplied. Other heads go on where their labels are normalised in the same way.

    Args:
      head: of the model.
      record: what its checkpoints will say of it.

    Raises:
      InputError: an array of the head that is missing or has another shape.
    """
    factor = _fitting_factor(read_checkpoint_meta(checkpoint), head, record)
    if factor is None:
        return model
    source = named_arrays(checkpoint, "ema")

    def fill(path, leaf):
        name = _name(path)
        if not name.startswith(("out_energy/", "out_forces/")):
            return leaf
        array = source.get(name)
        if array is None or array.shape != leaf.shape:
            raise InputError(f"{checkpoint}: its head does not fit this network; --init-mode reference takes a new one")
        is_last = name.startswith("out_energy/") and array.shape[-1] == 1
        return jnp.asarray(array * (factor if is_last else 1.0), leaf.dtype)

    notify(f"the head of {checkpoint.parent.parent.name or checkpoint} goes on")
    return model._replace(params=jax.tree_util.tree_map_with_path(fill, model.params))


def _fitting_factor(meta: CheckpointMeta, head: HeadSpec, record: TaskRecord) -> float | None:
    """Old over new unit of a head that goes on; None: it predicts something else."""
    if meta.head is None or dataclasses.replace(meta.head, stress=head.stress) != head or head.heads > 1:
        return None
    before = meta.tasks[0]
    if before.target != record.target:
        return None
    if head.kind == "gradient":
        return before.energy_std / record.energy_std
    constants = ("energy_std", "energy_mean", "force_std", "properties")
    same = all(getattr(before, name) == getattr(record, name) for name in constants)
    return 1.0 if same and np.array_equal(before.reference.coeff, record.reference.coeff) else None


def _filled(tree: Any, source: dict[str, np.ndarray], checkpoint: Path, skip: tuple[str, ...]):
    """(tree with every leaf outside `skip` from `source`, names taken)."""
    taken = set()

    def fill(path, leaf):
        name = _name(path)
        if name.startswith(skip):
            return leaf
        if name not in source:
            raise InputError(f"{checkpoint} lacks {name}; it was trained with another architecture")
        if source[name].shape != leaf.shape:
            raise InputError(
                f"{checkpoint}: {name} is {list(source[name].shape)}, this model needs {list(leaf.shape)}; "
                "use the same dimensions"
            )
        taken.add(name)
        return jnp.asarray(source[name], leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree), taken


def _name(path) -> str:
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return "/".join(k for k in keys if k != "value")


def named_arrays(checkpoint: Path, top: str) -> dict[str, np.ndarray]:
    """The arrays of one part of a checkpoint ("ema", "constants"), under the names that fine-tuned models use."""
    arrays, _ = restore(checkpoint, None, only=(top,))
    own = {n.removeprefix(f"{top}/").removesuffix("/value"): a for n, a in arrays.items() if n.startswith(f"{top}/")}
    return {name.replace("embedding/atom_embedding/", "embedding/"): array for name, array in own.items()}


def check_elements(store: Store, config: Config, name: str, records: np.ndarray | None = None):
    """Refuse data with elements that the model has no embedding for.

    Args:
      records: those that are used; None for all.

    Raises:
      InputError: naming the largest one.
    """
    largest, known = store.largest_element, architecture_of(config).largest_atomic_number(config)
    if largest > known and records is not None:
        largest = int(np.flatnonzero(store.elements(records)).max())
    if largest > known:
        raise InputError(
            f"{name} holds {chemical_symbols[largest]} (atomic number {largest}), the model's embedding ends at "
            f"{known}; use another model or checkpoint, or leave such structures out"
        )


class Init(NamedTuple):
    """Where a fine-tuning run starts."""

    path: Path | None  # checkpoint folder; None: from scratch
    model: Config
    origin: dict  # see `origin_record`


def find_init(init: str, model: str | None = None) -> Init:
    """What `--init` means: a run's best-validation checkpoint, a checkpoint, or "scratch".

    Args:
      model: name or file of the dimensions of a run from scratch, or that the checkpoint must have.

    Raises:
      InputError: no such checkpoint or model, or a checkpoint of another size or of an earlier layout.
    """
    if init == "scratch":
        return Init(None, find_config(model or "gemnet_oc_s"), {"upstream": "scratch"})
    path = resolve_checkpoint(init)
    meta = read_checkpoint_meta(path)
    config = config_from_record(meta.model)
    check_layout(meta.model, None, init)  # the backbone alone is taken
    if model is not None and _size(config) != _size(find_config(model)):
        raise InputError(f"{init} holds a network of other dimensions than {model}; leave --model out or change --init")
    return Init(path, config, origin_record(init, path, meta))


def origin_record(init: str, path: Path, meta: CheckpointMeta) -> dict:
    """What a checkpoint says of itself, kept in the run that starts from it: its folder may hold another run later.

    Returns:
      upstream, init (as given), checkpoint (its folder's name), named (which of `best` and `last` it is now), step,
      samples_seen and budget (None where the checkpoint is older than its record), settings of the run that made it
      ({} for converted weights), source (of converted weights), weights (hash of the checkpoint's table of hashes).
    """
    settings, budget = meta.config, meta.budget
    seen = budget and min(budget["samples"], round(meta.step * budget["samples_per_step"]))
    named = [name for name in POINTERS if _points_at(path.parent / name, path)]
    return {
        "upstream": str(settings.get("upstream") or meta.upstream or "?"),
        "init": init,
        "checkpoint": path.name,
        "named": named,
        "step": meta.step,
        "samples_seen": seen,
        "budget": budget,
        "settings": settings,
        "source": meta.source,
        "weights": hashlib.sha256((path / MARKER).read_bytes()).hexdigest()[:16] if (path / MARKER).exists() else None,
    }


def references_of(path: Path | None) -> dict[str, LinearReference]:
    """Reference energies of the heads of a checkpoint that learnt energies, by their names; none from scratch."""
    tasks = () if path is None else read_checkpoint_meta(path).tasks
    learnt = [task for task in tasks if "energy" in task.labels and task.energy_zero is None]
    return {task.name: task.reference for task in learnt if task.target in (None, "forces", "energy")}


def _points_at(pointer: Path, path: Path) -> bool:
    return pointer.is_file() and pointer.read_text().strip() == path.name


def describe_origin(origin: dict) -> str:
    """One line: which checkpoint a run starts from, and how much of its budget that has seen."""
    words = {"best": "the best on validation", "last": "the last"}
    named = " and ".join(words[name] for name in origin["named"])
    budget = origin["budget"]
    of = f" of {budget['steps']:,}" if budget else ""
    seen = f", {origin['samples_seen']:,} of {budget['samples']:,} samples" if budget else ""
    return f"starting from {origin['init']}: step {origin['step']:,}{of}{f' ({named})' if named else ''}{seen}"


def _size(config: Config) -> dict:
    """What makes two networks the same size, whatever their heads, elements and memory settings."""
    sizes = {k: v for k, v in dataclasses.asdict(config).items() if k.startswith(("num_", "emb_", "sphere_", "lmax"))}
    return {"kind": type(config), **sizes, "num_elements": None}

"""The architectures that there are, and models built from names, dimensions and saved records.

A record is a configuration as JSON values with what marks its architecture: `architecture`, or for GemNet-OC, whose
first checkpoints had neither, `layout`.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxatoms.models.architecture import Architecture, Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.architecture import EQUIFORMER_V2
from jaxatoms.models.gemnet_oc.architecture import GEMNET_OC
from jaxatoms.types import InputError

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (GEMNET_OC, EQUIFORMER_V2)}


class PureModel(NamedTuple):
    """A model split once: parameters are trained, constants (scale factors) are not."""

    params: Any
    constants: Any
    apply: Callable  # (params, constants, batch, edge_dropout=0.0, key=None) -> ModelOutput
    node_features: Callable  # (params, constants, batch) -> [n_node, feature_width], what the energy heads read


def register(architecture: Architecture):
    """Make an architecture known by its name and its presets' names.

    Raises:
      ValueError: one of the names is taken.
    """
    taken = [name for name in architecture.presets if name in presets()]
    if architecture.name in ARCHITECTURES or taken:
        raise ValueError(f"{(taken or [architecture.name])[0]} is the name of an architecture or preset already")
    ARCHITECTURES[architecture.name] = architecture


def presets() -> dict[str, Config]:
    """Named dimensions of all architectures."""
    return {name: config for known in ARCHITECTURES.values() for name, config in known.presets.items()}


def architecture_of(config: Config) -> Architecture:
    """The architecture whose dimensions these are."""
    return next(known for known in ARCHITECTURES.values() if type(config) is known.config)


def find_config(name: str) -> Config:
    """The preset of that name, or the record in a JSON file.

    Raises:
      InputError: neither.
    """
    known = presets()
    if name in known:
        return known[name]
    if not name.endswith(".json"):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown model {name!r}; {hint}use {', '.join(known)} or a .json file of dimensions")
    try:
        return config_from_record(json.loads(Path(name).read_text()))
    except OSError as error:
        raise InputError(f"cannot read model file {name}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"model file {name}: {error}; it must hold fields of GemNetOCConfig") from error


def with_smooth_quadruplets(config: Config, choice: str) -> Config:
    """The dimensions with the switch of that name on ("yes"), off ("no") or as it is ("auto").

    Raises:
      InputError: a network without quadruplets.
    """
    if not hasattr(config, "smooth_quadruplets"):
        if choice == "yes":
            raise InputError("--smooth-quadruplets is for GemNet-OC; leave it out")
        return config
    if choice == "auto":
        return config
    return dataclasses.replace(config, smooth_quadruplets=choice == "yes")


def architecture_in(record: Mapping[str, Any]) -> Architecture:
    """The architecture of a saved configuration.

    Raises:
      InputError: an unknown one.
    """
    name = record.get("architecture", GEMNET_OC.name)
    if name not in ARCHITECTURES:
        raise InputError(f"unknown architecture {name!r}; this version knows {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def config_from_record(record: Mapping[str, Any]) -> Config:
    """The configuration saved in a checkpoint.

    Raises:
      TypeError: an unknown field.
      InputError: an unknown architecture.
    """
    fields = {name: value for name, value in record.items() if name not in ("layout", "architecture")}
    return architecture_in(record).config(**fields)


def model_record(config: Config) -> dict:
    """A configuration as JSON values."""
    own = architecture_of(config)
    return dict(own.mark or {"architecture": own.name}) | dataclasses.asdict(config)


def check_layout(model: Mapping[str, Any], head: HeadSpec | None, source: str):
    """Refuse weights that an earlier version saved of a network which is another one now.

    Args:
      model: record of the dimensions.
      head: of a fine-tuned model.

    Raises:
      InputError: saying what has changed, and what to do.
    """
    architecture_in(model).check_record(model, head, source)


def build_model(
    config: Config, reductions: tuple[str, ...], rngs: nnx.Rngs, precision: Precision = Precision()
) -> nnx.Module:
    """A model with one energy and one force head per entry of `reductions` ("sum" or "mean")."""
    return architecture_of(config).build(config, reductions, rngs, precision)


def build_finetuned(config: Config, head: HeadSpec, rngs: nnx.Rngs, precision=Precision()) -> nnx.Module:
    """A model with one head.

    Raises:
      InputError: a head that the architecture does not have.
    """
    return architecture_of(config).build_finetuned(config, head, rngs, precision)


def build_recorded(
    config: Config, head: HeadSpec | None, reductions: tuple[str, ...] | None, n_task: int, precision: Precision
) -> nnx.Module:
    """The model, freshly initialised, that a checkpoint's record describes: fine-tuned, or of `n_task` tasks."""
    if head is not None:
        return build_finetuned(config, head, nnx.Rngs(0), precision)
    return build_model(config, reductions or architecture_of(config).reductions(n_task), nnx.Rngs(0), precision)


def make_model(config: Config, n_task: int, seed: int, precision: Precision) -> nnx.Module:
    """A freshly initialised model for pretraining, with the energy reductions of the paper."""
    return build_model(config, architecture_of(config).reductions(n_task), nnx.Rngs(seed), precision)


def split_model(model: nnx.Module) -> PureModel:
    """Parameters, constants and a pure function of them; the module is merged only while tracing."""
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, constants, batch, edge_dropout=0.0, key=None):
        return nnx.merge(graphdef, params, constants)(batch, edge_dropout=edge_dropout, key=key)

    def node_features(params, constants, batch):
        return nnx.merge(graphdef, params, constants).node_features(batch)

    return PureModel(params, constants, apply, node_features)


def abstract_model(config: Config, reductions: int | tuple[str, ...], precision: Precision) -> PureModel:
    """The same with shapes instead of arrays, to restore a checkpoint into.

    Args:
      reductions: one per task, or the number of tasks for the default ones.
    """
    chosen = architecture_of(config).reductions(reductions) if isinstance(reductions, int) else tuple(reductions)
    return split_model(nnx.eval_shape(lambda: build_model(config, chosen, nnx.Rngs(0), precision)))


def count_params(params: Any) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

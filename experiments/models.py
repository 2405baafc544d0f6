"""Model names and configs -> parameters, constants and a pure apply function."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxatoms.models.gemnet_oc.config import PRESETS, GemNetOCConfig
from jaxatoms.models.layers import Precision
from jaxatoms.models.model import MultiTaskModel
from jaxatoms.types import InputError


class PureModel(NamedTuple):
    """A model split once: parameters are trained, constants (scale factors) are not."""

    params: Any
    constants: Any
    apply: Callable  # (params, constants, batch, edge_dropout) -> ModelOutput
    node_features: Callable  # (params, constants, batch) -> [n_node, emb_size_atom], what the energy heads read


def find_config(name: str) -> GemNetOCConfig:
    """The preset of that name, or the dimensions in a JSON file.

    Raises:
      InputError: neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        raise InputError(f"unknown model {name!r}; use {', '.join(PRESETS)} or a .json file of dimensions")
    try:
        return config_from_record(json.loads(Path(name).read_text()))
    except OSError as error:
        raise InputError(f"cannot read model file {name}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"model file {name}: {error}; it must hold fields of GemNetOCConfig") from error


def config_from_record(record: dict) -> GemNetOCConfig:
    """The configuration saved in a checkpoint.

    Raises:
      TypeError: an unknown field.
    """
    return GemNetOCConfig(**record)


def make_model(config: GemNetOCConfig, n_task: int, seed: int, precision: Precision) -> MultiTaskModel:
    """A freshly initialised model; energies are sums over atoms, as in the paper's pretraining."""
    # jit: eager initialisation dispatches thousands of small programs.
    build = nnx.jit(lambda: MultiTaskModel(config, ("sum",) * n_task, nnx.Rngs(seed), precision))
    return build()


def split_model(model: nnx.Module) -> PureModel:
    """Parameters, constants and a pure function of them; the module is merged only while tracing."""
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)

    def apply(params, constants, batch, edge_dropout=0.0):
        return nnx.merge(graphdef, params, constants)(batch, edge_dropout=edge_dropout)

    def node_features(params, constants, batch):
        return nnx.merge(graphdef, params, constants).features(batch).node

    return PureModel(params, constants, apply, node_features)


def abstract_model(config: GemNetOCConfig, n_task: int, precision: Precision) -> PureModel:
    """The same with shapes instead of arrays, to restore a checkpoint into."""
    model = nnx.eval_shape(lambda: MultiTaskModel(config, ("sum",) * n_task, nnx.Rngs(0), precision))
    return split_model(model)


def count_params(params: Any) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def model_record(config: GemNetOCConfig) -> dict:
    """A configuration as JSON values."""
    return dataclasses.asdict(config)

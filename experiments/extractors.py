"""Checkpoints as feature extractors: a padded batch enters, one feature vector per atom leaves.

Another backbone plugs in by returning an `Extractor`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.inputs import TORCH_FILES
from jaxatoms.inference import restore_model
from jaxatoms.interop.arrays import model_from_arrays
from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.interop.torch_layouts import convert
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.registry import (
    ModelConfig,
    architecture,
    build_model,
    feature_width,
    largest_atomic_number,
    split_model,
    uses_nearest_graph,
)
from jaxatoms.types import InputError


class Extractor(NamedTuple):
    """A frozen network that turns structures into node features."""

    identity: str  # equal for equal weights: features of different extractors must not meet
    width: int
    num_elements: int  # the largest atomic number it knows
    features: Callable  # GraphBatch -> [n_node, width] float32, on device; jitted
    shapes: list  # budgets compiled so far, to be used again
    nearest: bool = False  # reads the single graph of EquiformerV2 instead of GemNet-OC's four


def load_extractor(checkpoint: str, raw_weights: bool = False, edge_direction: str | None = None) -> Extractor:
    """The extractor of a checkpoint: the node feature that energy heads read (specification csi 2).

    Args:
      checkpoint: run folder (its best-validation checkpoint), RUN@last, converted folder, a step folder, or a PyTorch
        file (.pt, .ckpt, .pth).
      raw_weights: the raw weights instead of their moving average.
      edge_direction: of EquiformerV2: "source_to_target" feeds edge vectors as the paper's code does,
        "target_to_source" as the released weights were trained; None: what the checkpoint says.

    Raises:
      InputError: no such checkpoint, or a direction for a model that has none.
    """
    model, config = _open(checkpoint, raw_weights)
    if edge_direction is not None:
        model, config = _redirected(model, config, edge_direction)
    pure = split_model(model)
    params, constants = jax.device_put((pure.params, pure.constants))
    compiled = jax.jit(pure.node_features)
    direction = f":{config.edge_direction}" if isinstance(config, EquiformerV2Config) else ""
    return Extractor(
        identity=f"{architecture(config)}{direction}:{_digest((params, constants))}",
        width=feature_width(config),
        num_elements=largest_atomic_number(config),
        features=lambda batch: compiled(params, constants, batch),
        shapes=[],
        nearest=uses_nearest_graph(config),
    )


def _open(checkpoint: str, raw_weights: bool) -> tuple[nnx.Module, ModelConfig]:
    if Path(checkpoint).suffix in TORCH_FILES:
        converted = convert(TorchFile(checkpoint), "raw" if raw_weights else None)
        model = model_from_arrays(converted.config, converted.n_task, converted.arrays, source=checkpoint)
        return model, converted.config
    restored = restore_model(checkpoint, raw_weights=raw_weights)
    return restored.module, restored.config


def _redirected(model: nnx.Module, config: ModelConfig, direction: str) -> tuple[nnx.Module, ModelConfig]:
    """The same weights with edge vectors in the other direction."""
    if not isinstance(config, EquiformerV2Config):
        raise InputError("--edge-direction is a choice of EquiformerV2; leave it out for GemNet-OC")
    try:
        changed = dataclasses.replace(config, edge_direction=direction)
    except ValueError as error:
        raise InputError(str(error)) from None
    reductions = model.reductions
    graphdef = nnx.split(nnx.eval_shape(lambda: build_model(changed, reductions, nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, nnx.split(model)[1]), changed


def _digest(tree) -> str:
    """Hash of all arrays of a tree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        total.update(np.ascontiguousarray(leaf))
    return total.hexdigest()[:16]

"""Checkpoints as feature extractors: a padded batch enters, one feature vector per atom leaves.

Another backbone plugs in by returning an `Extractor`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.inference.inputs import TORCH_FILES
from jaxatoms.inference.model import restore_model
from jaxatoms.interop.arrays import model_from_arrays
from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.interop.torch_layouts import convert
from jaxatoms.models.architecture import Config
from jaxatoms.models.registry import architecture_of, build_model, split_model
from jaxatoms.types import InputError


class Extractor(NamedTuple):
    """A frozen network that turns structures into node features."""

    identity: str  # equal for equal weights: features of different extractors must not meet
    width: int
    num_elements: int  # the largest atomic number it knows
    features: Callable  # GraphBatch -> [n_node, width] float32, on device; jitted
    shapes: list  # budgets compiled so far, to be used again
    graphs: GraphSpec = GEMNET_GRAPHS  # that it reads
    graph_rules: Mapping[str, tuple[float, int]] = {}


def load_extractor(checkpoint: str, raw_weights: bool = False, edge_direction: str | None = None) -> Extractor:
    """The extractor of a checkpoint: the node feature that energy heads read (docs/reference/csi.md, Extractors).

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
    own = architecture_of(config)
    identity = [own.name, own.identity(config), _digest((params, constants))]
    return Extractor(
        identity=":".join(filter(None, identity)),
        width=own.feature_width(config),
        num_elements=own.largest_atomic_number(config),
        features=lambda batch: compiled(params, constants, batch),
        shapes=[],
        graphs=own.graphs,
        graph_rules=own.finetuning.extraction_graphs,
    )


def _open(checkpoint: str, raw_weights: bool) -> tuple[nnx.Module, Config]:
    if Path(checkpoint).suffix in TORCH_FILES:
        converted = convert(TorchFile(checkpoint), "raw" if raw_weights else None)
        model = model_from_arrays(converted.config, converted.n_task, converted.arrays, source=checkpoint)
        return model, converted.config
    restored = restore_model(checkpoint, raw_weights=raw_weights)
    return restored.module, restored.config


def _redirected(model: Any, config: Config, direction: str) -> tuple[nnx.Module, Config]:
    """The same weights with edge vectors in the other direction."""
    if not hasattr(config, "edge_direction"):
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

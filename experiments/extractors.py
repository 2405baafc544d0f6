"""Checkpoints as feature extractors: a padded batch enters, one feature vector per atom leaves.

Another backbone plugs in by returning an `Extractor`.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxatoms.models import registry as models
from jaxatoms.models.layers import Precision
from jaxatoms.training.checkpoint import read_meta, resolve_checkpoint, restore


class Extractor(NamedTuple):
    """A frozen network that turns structures into node features."""

    identity: str  # equal for equal weights: features of different extractors must not meet
    width: int
    num_elements: int  # the largest atomic number it knows
    features: Callable  # GraphBatch -> [n_node, width] float32, on device; jitted
    shapes: list  # budgets compiled so far, to be used again


def load_extractor(checkpoint: str, raw_weights: bool = False) -> Extractor:
    """The extractor of a GemNet-OC checkpoint: x_E, the input of its energy heads (specification csi 2).

    Args:
      checkpoint: run folder, checkpoints/best or a step folder.
      raw_weights: the raw weights instead of their moving average.

    Raises:
      InputError: no such checkpoint.
    """
    path = resolve_checkpoint(checkpoint)
    meta = read_meta(path)
    config = models.config_from_record(meta["model"])
    policy = Precision(matmul=meta["precision"])
    model = models.split_model(nnx.eval_shape(lambda: models.build_recorded(meta, policy)))
    weights = "params" if raw_weights else "ema"
    arrays, _ = restore(path, {weights: model.params, "constants": model.constants})
    params, constants = jax.device_put((arrays[weights], arrays["constants"]))
    compiled = jax.jit(model.node_features)
    return Extractor(
        identity=f"gemnet_oc:{_digest((params, constants))}",
        width=config.emb_size_atom,
        num_elements=config.num_elements,
        features=lambda batch: compiled(params, constants, batch),
        shapes=[],
    )


def _digest(tree) -> str:
    """Hash of all arrays of a tree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        total.update(np.ascontiguousarray(leaf))
    return total.hexdigest()[:16]

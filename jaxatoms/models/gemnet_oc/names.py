"""Parameter names and layouts of the public PyTorch checkpoints, one to one with ours.

PyTorch stores a linear map as [out, in]; ours is [in, out]. The basis embeddings (R, S, I) are re-read by the
reference as (R, I, S) without moving memory, so ours are the same memory as [R, I * S].
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxatoms.types import InputError

_EMBEDDINGS = ("mlp_cbf_", "mlp_sbf_")


def checkpoint_name(path: tuple) -> str:
    """The checkpoint's name of the variable at `path` of a model's state."""
    *parents, leaf = (str(p) for p in path)
    module = ".".join(parents)
    if leaf == "scale_factor":
        return f"{module}.scale_factor"
    leaf = {"kernel": "weight", "bias": "bias"}[leaf]
    if parents[0] in ("output", "out_energy"):  # heads are Sequential(Linear, activation, Linear, ...)
        head, layer = module.split(".layers.")
        return f"{head}.{2 * int(layer)}.{leaf}"
    direct = module.startswith("embedding") or (parents[-2] == "bases" and _is_bare(parents[-1]))
    return f"{module}.{leaf}" if direct else f"{module}.linear.{leaf}"


def _is_bare(name: str) -> bool:
    """Basis projections that hold their weight without a `linear` level."""
    return name.startswith(_EMBEDDINGS) or name == "mlp_rbf_aint"


def to_ours(name: str, array: np.ndarray) -> np.ndarray:
    """A checkpoint array in our layout."""
    if array.ndim == 3:
        return array.reshape(array.shape[0], -1)
    return array.T if array.ndim == 2 and not name.startswith("embedding") else array


def to_theirs(name: str, array: np.ndarray, num_spherical: int) -> np.ndarray:
    """Our array in the checkpoint's layout."""
    module = name.split(".")[-2]
    if ".bases." in name and module.startswith(_EMBEDDINGS):
        size = num_spherical ** (2 if "sbf" in module else 1)
        return array.reshape(array.shape[0], size, -1)
    return array.T if array.ndim == 2 and not name.startswith("embedding") else array


def names_of(model: Any) -> set[str]:
    """The checkpoint names of every parameter and scale factor."""
    return {checkpoint_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Variable))}


def export_arrays(model: Any) -> dict[str, np.ndarray]:
    """Every parameter and scale factor of `model` under its checkpoint name, in the checkpoint's layout."""
    num_spherical = model.backbone.config.num_spherical
    flat = nnx.to_flat_state(nnx.state(model, nnx.Variable))
    named = {checkpoint_name(path): np.asarray(v[...]) for path, v in flat}
    return {name: to_theirs(name, array, num_spherical) for name, array in named.items()}


def load_arrays(model: nnx.Module, arrays: Mapping[str, np.ndarray], *, source: str = "checkpoint"):
    """Overwrite every parameter and scale factor of `model` in place, keeping the arrays' dtype.

    Raises:
      InputError: a name is missing or a shape differs; the message names both sides.
    """
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Variable)):
        name = checkpoint_name(path)
        if name not in arrays:
            raise InputError(f"{source}: no array {name!r}; is this a checkpoint of the same architecture?")
        array = to_ours(name, np.asarray(arrays[name]))
        if array.shape != variable.shape:
            raise InputError(f"{source}: {name} has shape {array.shape}, the model needs {variable.shape}")
        variable.set_value(jax.numpy.asarray(array))

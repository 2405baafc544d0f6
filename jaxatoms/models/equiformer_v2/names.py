"""Parameter names of the public EquiformerV2 checkpoints, one to one with ours.

Ours stacks the blocks on a leading axis; theirs numbers them. Linear maps are [out, in] there and [in, out] here.
Buffers of theirs (grids, rotations, Gaussian centres) are constants here and have no place in these names.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxatoms.types import InputError

_LEAVES = {"kernel": "weight"}
_AS_IS = ("_embedding.weight", "affine_weight", "alpha_dot")  # tables and factors; everything else is a linear map


def checkpoint_names(path: tuple, num_layers: int) -> list[str]:
    """The names of the variable at `path` of a model's state: one per block for stacked variables, else one.

    The heads of a single task are `energy_block` and `force_block`, those of several `output.out_energy.T...`.
    """
    parts = [str(p) for p in path]
    name = ".".join([*parts[:-1], _LEAVES.get(parts[-1], parts[-1])])
    name = name.removeprefix("backbone.").replace("scalar_mlp", "scalar_mlp.0")
    name = re.sub(r"rad_func\.(?:linear|norm)_", "rad_func.net.", name)
    name = re.sub(r"grid_mlp\.(\d)", lambda match: f"grid_mlp.{2 * int(match[1])}", name)  # activations in between
    if not name.startswith("blocks."):
        return [name]
    rest = name.removeprefix("blocks.")
    return [f"blocks.{i}.{rest}" for i in range(num_layers)]


def single_task_name(name: str) -> str:
    """`output.out_energy.0.energy_block.x` -> `energy_block.x`, as checkpoints of one task have it."""
    for head in ("out_energy", "out_forces"):
        name = name.removeprefix(f"output.{head}.0.")
    return name


def transposed(name: str, array: np.ndarray) -> np.ndarray:
    """An array in the other side's layout; its own inverse."""
    return array if array.ndim < 2 or name.endswith(_AS_IS) else np.swapaxes(array, -1, -2)


def export_arrays(model: Any) -> dict[str, np.ndarray]:
    """Every parameter of an `EquiformerV2Model` (or backbone) under its checkpoint name, in the checkpoint's layout."""
    out: dict[str, np.ndarray] = {}
    for names, variable in _named(model):
        array = np.asarray(variable[...])
        parts = array if names[0].startswith("blocks.") else [array]
        out |= {name: transposed(name, part) for name, part in zip(names, parts, strict=True)}
    return out


def names_of(model: Any) -> set[str]:
    """The checkpoint names of every parameter."""
    return {name for names, _ in _named(model) for name in names}


def parameter_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter in the checkpoint's layout, by checkpoint name; `model` may be abstract."""
    out = {}
    for names, variable in _named(model):
        shape = variable.shape[1:] if names[0].startswith("blocks.") else variable.shape
        if len(shape) >= 2 and not names[0].endswith(_AS_IS):
            shape = (*shape[:-2], shape[-1], shape[-2])
        out |= dict.fromkeys(names, tuple(shape))
    return out


def load_arrays(model: nnx.Module, arrays: Mapping[str, np.ndarray], *, source: str = "checkpoint"):
    """Overwrite every parameter of `model` in place, keeping the arrays' dtype.

    Raises:
      InputError: a name is missing or a shape differs; the message names both sides.
    """
    for names, variable in _named(model):
        parts = [_take(arrays, name, source) for name in names]
        stacked = np.stack(parts) if names[0].startswith("blocks.") else parts[0]
        if stacked.shape != variable.shape:
            raise InputError(f"{source}: {names[0]} has shape {stacked.shape}, the model needs {variable.shape}")
        variable.set_value(jax.numpy.asarray(stacked))


def _take(arrays: Mapping[str, np.ndarray], name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"{source}: no array {name!r}; is this a checkpoint of the same architecture?")
    return transposed(name, np.asarray(arrays[name]))


def _named(model: Any):
    backbone = getattr(model, "backbone", model)
    single = len(getattr(model, "reductions", ("",))) == 1
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        names = checkpoint_names(path, backbone.config.num_layers)
        yield [single_task_name(name) if single else name for name in names], variable

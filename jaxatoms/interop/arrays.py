"""Models of every architecture <-> arrays under the names and in the layout of their public checkpoints."""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from jaxatoms.interop import equiformer_names, names
from jaxatoms.models.precision import Precision
from jaxatoms.models.registry import ModelConfig, build_model, default_reductions, uses_nearest_graph
from jaxatoms.types import InputError


def export_arrays(model: nnx.Module, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every parameter and scale factor by its checkpoint name, [out, in]."""
    return (equiformer_names if uses_nearest_graph(config) else names).export_arrays(model)


def load_arrays(model: nnx.Module, config: ModelConfig, arrays: Mapping[str, np.ndarray], *, source: str):
    """Overwrite every parameter and scale factor of `model`, which may be abstract.

    Raises:
      InputError: a name is missing, unknown, or has another shape.
    """
    module = equiformer_names if uses_nearest_graph(config) else names
    known = module.names_of(model)
    unknown = [name for name in arrays if name not in known]
    if unknown:
        raise InputError(
            f"{source}: {unknown[0]!r} (and {len(unknown) - 1} more) has no place in this model; "
            "is this a checkpoint of the same architecture?"
        )
    module.load_arrays(model, arrays, source=source)


def model_from_arrays(
    config: ModelConfig, n_task: int, arrays: Mapping[str, np.ndarray], *, source: str, reductions=None
) -> nnx.Module:
    """A model of `n_task` pairs of heads made of these arrays alone.

    Raises:
      InputError: as `load_arrays`.
    """
    chosen = tuple(reductions or default_reductions(config, n_task))
    model = nnx.eval_shape(lambda: build_model(config, chosen, nnx.Rngs(0), Precision()))
    load_arrays(model, config, arrays, source=source)
    return model

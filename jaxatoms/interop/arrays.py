"""Models of every architecture <-> arrays under the names and in the layout of their public checkpoints."""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from jaxatoms.models.architecture import Arrays, Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.registry import architecture_of, build_recorded
from jaxatoms.types import InputError


def export_arrays(model: nnx.Module, config: Config) -> dict[str, np.ndarray]:
    """Every parameter and scale factor by its checkpoint name, [out, in]."""
    return _arrays_of(config).export_arrays(model)


def load_arrays(model: nnx.Module, config: Config, arrays: Mapping[str, np.ndarray], *, source: str):
    """Overwrite every parameter and scale factor of `model`, which may be abstract.

    Raises:
      InputError: a name is missing, unknown, or has another shape.
    """
    module = _arrays_of(config)
    known = module.names_of(model)
    unknown = [name for name in arrays if name not in known]
    if unknown:
        raise InputError(
            f"{source}: {unknown[0]!r} (and {len(unknown) - 1} more) has no place in this model; "
            "is this a checkpoint of the same architecture?"
        )
    module.load_arrays(model, arrays, source=source)


def model_from_arrays(
    config: Config, n_task: int, arrays: Mapping[str, np.ndarray], *, source: str, reductions=None,
    head: HeadSpec | None = None,
) -> nnx.Module:
    """A model of `n_task` pairs of heads, or with the `head` of a fine-tuned one, made of these arrays alone.

    Raises:
      InputError: as `load_arrays`.
    """
    model = nnx.eval_shape(lambda: build_recorded(config, head, reductions, n_task, Precision()))
    load_arrays(model, config, arrays, source=source)
    return model


def _arrays_of(config: Config) -> Arrays:
    own = architecture_of(config)
    if own.arrays is None:
        raise InputError(f"{own.name} has no names for exported arrays; keep its checkpoints as they are")
    return own.arrays

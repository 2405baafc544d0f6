"""Model names and configs -> parameters, constants and a pure apply function (see `jaxatoms.models.registry`)."""

from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.registry import (
    ModelConfig,
    PureModel,
    abstract_model,
    config_from_record,
    count_params,
    find_config,
    make_model,
    model_record,
    split_model,
)

__all__ = [
    "GemNetOCConfig",
    "ModelConfig",
    "PureModel",
    "abstract_model",
    "config_from_record",
    "count_params",
    "find_config",
    "make_model",
    "model_record",
    "split_model",
]

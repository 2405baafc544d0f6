"""Scale factors that JMP ships for GemNet-OC S ("small") and L ("large").

`scales.csv` holds the exact float32 values of JMP's `small.pt` and `large.pt` (facts read from the public files).
"""

import csv
import dataclasses
from importlib import resources
from typing import Any

import jax.numpy as jnp

from jaxatoms.models.gemnet_oc.config import LARGE, SMALL, GemNetOCConfig
from jaxatoms.models.gemnet_oc.scale_fit import scale_factors
from jaxatoms.types import InputError

_VARIANTS = {"small": SMALL, "large": LARGE}


def shipped_scales(variant: str) -> dict[str, float]:
    """Values by name, for variant "small" or "large"."""
    text = resources.files(__package__).joinpath("scales.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: float(row["value"]) for row in rows if row["variant"] == variant}


def load_shipped_scales(model: Any, config: GemNetOCConfig):
    """Set the scale factors of `model` (with `backbone`) in place.

    Raises:
      InputError: dimensions that JMP never shipped factors for, or heads with other blocks.
    """
    plain = dataclasses.replace(config, remat=False)
    variant = next((name for name, preset in _VARIANTS.items() if plain == preset), None)
    if variant is None:
        raise InputError("--scales shipped exists for gemnet_oc_s and gemnet_oc_l only; use --scales fit")
    values = shipped_scales(variant)
    for name, factor in scale_factors(model.backbone):
        if name not in values:
            raise InputError(f"no shipped scale factor for {name} in variant {variant!r}; use --scales fit")
        factor.scale_factor.set_value(jnp.asarray(values[name], jnp.float32))

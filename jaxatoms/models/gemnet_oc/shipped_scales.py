"""Scale factors that JMP ships for GemNet-OC S ("small") and L ("large").

`scales.csv` holds the exact float32 values of JMP's `small.pt` and `large.pt` (facts read from the public files).
"""

import csv
from importlib import resources

import jax.numpy as jnp

from jaxatoms.models.gemnet_oc.network import GemNetOC
from jaxatoms.models.gemnet_oc.scale_fit import scale_factors
from jaxatoms.types import InputError


def shipped_scales(variant: str) -> dict[str, float]:
    """Values by name, for variant "small" or "large"."""
    text = resources.files(__package__).joinpath("scales.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: float(row["value"]) for row in rows if row["variant"] == variant}


def load_shipped_scales(backbone: GemNetOC, variant: str):
    """Set the scale factors of `backbone` in place.

    Raises:
      InputError: the backbone has other blocks than the variant.
    """
    values = shipped_scales(variant)
    for name, factor in scale_factors(backbone):
        if name not in values:
            raise InputError(f"no shipped scale factor for {name} in variant {variant!r}; use --scales fit")
        factor.scale_factor.set_value(jnp.asarray(values[name], jnp.float32))

"""GemNet-OC as an `Architecture`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.models.architecture import Architecture, ElementTables, Finetuning, ScaleFactors
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc import names
from jaxatoms.models.gemnet_oc.config import PRESETS, GemNetOCConfig
from jaxatoms.models.gemnet_oc.model import (
    DirectForceModel,
    GradientModel,
    MultiTaskModel,
    PropertiesModel,
    ScalarModel,
)
from jaxatoms.models.gemnet_oc.per_parameter import block_of, gradient_divisors, rate_multipliers
from jaxatoms.models.gemnet_oc.scale_fit import fit_scale_factors
from jaxatoms.models.gemnet_oc.shipped_scales import load_shipped_scales
from jaxatoms.types import InputError

LAYOUT = 2  # of the arrays; records without this number have the first (see `check_layout`)


def build(config: GemNetOCConfig, reductions: tuple[str, ...], rngs: nnx.Rngs, precision: Precision) -> nnx.Module:
    """A model with one energy and one force head per reduction; without direct forces a `GradientModel`.

    A `GradientModel` has one head, whatever the reductions.
    """
    if config.direct_forces:
        return MultiTaskModel(config, reductions, rngs, precision)
    return GradientModel(config, rngs, precision)


def build_finetuned(config: GemNetOCConfig, head: HeadSpec, rngs: nnx.Rngs, precision: Precision) -> nnx.Module:
    """A model with one head."""
    config = dataclasses.replace(config, direct_forces=head.kind == "direct")
    if head.kind == "gradient":
        return GradientModel(config, rngs, precision, head)
    kinds = {"direct": DirectForceModel, "scalar": ScalarModel, "properties": PropertiesModel}
    return kinds[head.kind](config, head, rngs, precision)


def finetuned_dimensions(config: GemNetOCConfig, head: HeadSpec) -> GemNetOCConfig:
    """The edge branch exists for direct forces alone."""
    return dataclasses.replace(config, remat=False, direct_forces=head.kind == "direct")


def check_layout(model: Mapping[str, Any], head: HeadSpec | None, source: str):
    """Refuse weights that an earlier version saved of a network which is another one now.

    Args:
      model: record of the dimensions.
      head: of a fine-tuned model.

    Raises:
      InputError: atoms and edges of one width, or a head for classes or the spatial extent, saved before these became
        the reference's.
    """
    if model.get("layout", 1) >= LAYOUT:
        return
    if GemNetOCConfig(**model).edge_sum_dense:
        if head is None or not (head.n_class or head.reduction == "extent"):
            return
        change = "the head for classes and that for R_2_Abs are the reference's now; fine-tune again"
    else:
        change = (
            "networks with emb_size_atom = emb_size_edge (gemnet_oc_tiny) had a dense layer after each sum over edges, "
            "which the reference leaves out; pretrain again"
        )
    raise InputError(f"{source} was saved by an earlier version of jaxatoms and cannot be loaded: {change}")


GEMNET_OC = Architecture(
    name="gemnet_oc",
    config=GemNetOCConfig,
    presets=PRESETS,
    graphs=GEMNET_GRAPHS,
    build=build,
    build_finetuned=build_finetuned,
    feature_width=lambda config: config.emb_size_atom,
    largest_atomic_number=lambda config: config.num_elements,
    element_tables=ElementTables(
        pattern=re.compile(r"^embedding/"),
        first=1,
        enlarged=lambda config, largest: dataclasses.replace(config, num_elements=max(config.num_elements, largest)),
    ),
    arrays=names,
    scale_factors=ScaleFactors(fit=fit_scale_factors, load_shipped=load_shipped_scales),
    gradient_divisors=gradient_divisors,
    rate_multipliers=rate_multipliers,
    block_of=block_of,
    has_kernels=True,
    finetuning=Finetuning(dimensions=finetuned_dimensions),
    identity=lambda config: "smooth_quadruplets" if config.smooth_quadruplets else "",
    mark={"layout": LAYOUT},
    check_record=check_layout,
)

"""EquiformerV2 as an `Architecture`."""

import dataclasses
import re

from flax import nnx

from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models.architecture import Architecture, ElementTables, Finetuning
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2 import names
from jaxatoms.models.equiformer_v2.config import PRESETS, EquiformerV2Config
from jaxatoms.models.equiformer_v2.model import (
    EquiformerV2Forces,
    EquiformerV2Model,
    EquiformerV2Properties,
    EquiformerV2Scalar,
)
from jaxatoms.types import InputError


def build_finetuned(config: EquiformerV2Config, head: HeadSpec, rngs: nnx.Rngs, precision: Precision) -> nnx.Module:
    """A model with one head.

    Raises:
      InputError: a head that EquiformerV2 does not have.
    """
    check_head(head)
    kinds = {"direct": EquiformerV2Forces, "scalar": EquiformerV2Scalar, "properties": EquiformerV2Properties}
    return kinds[head.kind](config, head, rngs, precision)


def check_head(head: HeadSpec):
    """Refuse what EquiformerV2 cannot be fine-tuned for.

    Raises:
      InputError: gradient forces or classes.
    """
    if head.kind == "gradient":
        raise InputError(
            "EquiformerV2 has no gradient forces: its edge rotations are constants for the gradient, and without an "
            "envelope its energy jumps where neighbours change; use --forces direct, or a GemNet-OC"
        )
    if head.n_class:
        raise InputError("EquiformerV2 is fine-tuned for numbers and forces, not for classes; use a GemNet-OC")


def finetuned_dimensions(config: EquiformerV2Config, head: HeadSpec) -> EquiformerV2Config:
    """Heads are twice as wide as in pretraining: 256 for scalars and 128 for forces in the 31M model."""
    del head
    return dataclasses.replace(
        config,
        remat=False,
        energy_hidden=2 * config.ffn_hidden_channels,
        force_hidden=2 * config.attn_hidden_channels,
    )


def with_elements(config: EquiformerV2Config, largest: int) -> EquiformerV2Config:
    """Tables that hold the atomic number `largest`."""
    return dataclasses.replace(config, max_num_elements=max(config.max_num_elements, largest + 1))


def as_released(config: EquiformerV2Config, family: str, cutoff: float) -> EquiformerV2Config:
    """Gaussians to 12 A with the width for the cutoff's 7 A (docs/reference/equiformer_v2.md, Edge scalars)."""
    if family != "rmd17":
        return config
    return dataclasses.replace(config, basis_width=config.basis_width * cutoff / config.max_radius)


EQUIFORMER_V2 = Architecture(
    name="equiformer_v2",
    config=EquiformerV2Config,
    presets=PRESETS,
    graphs=NEAREST_GRAPH,
    build=EquiformerV2Model,
    build_finetuned=build_finetuned,
    feature_width=lambda config: config.feature_width,
    invariant_width=lambda config: config.sphere_channels,
    largest_atomic_number=lambda config: config.max_num_elements - 1,  # the tables' first row stands for Z = 0
    element_tables=ElementTables(
        pattern=re.compile(r"(sphere|source|target)_embedding/"), first=0, enlarged=with_elements
    ),
    arrays=names,
    energy_reduction="mean",  # as in the paper's pretraining
    ema_decay=0.0,  # the average is the weights (docs/reference/pretraining.md, Averaged weights)
    has_dropout=lambda config: max(config.alpha_drop, config.drop_path_rate) > 0,
    finetuning=Finetuning(
        # It was fine-tuned on rMD17 and QM9 alone; other sets keep their epochs, batch and rate.
        recipe=dict(warmup_epochs=5, cosine_epochs=None, final_lr=0.01, layer_rates=False, direct_forces=True),
        by_family={"rmd17": dict(epochs=1000, lr=1e-5), "qm9": dict(epochs=300, lr=5e-4, weight_decay=0.0)},
        graphs={"qm9": (12.0, 500)},
        extraction_graphs={"qm9": (12.0, 20)},  # docs/reference/csi.md, Graphs
        dimensions=finetuned_dimensions,
        as_released=as_released,
        check_head=check_head,
    ),
    identity=lambda config: config.edge_direction,
)

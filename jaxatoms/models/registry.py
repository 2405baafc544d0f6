"""Model names, saved records and sizes -> configurations, models and the graphs they need.

The one place that knows which architectures there are. A record is a configuration as JSON values; the records of
GemNet-OC carry no "architecture", as in its first checkpoints.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxatoms.models.equiformer_v2 import config as equiformer
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.model import (
    EquiformerV2Forces,
    EquiformerV2Model,
    EquiformerV2Scalar,
    WithBackbone,
)
from jaxatoms.models.gemnet_oc import config as gemnet
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.shared import gradient_divisors
from jaxatoms.models.model import DirectForceModel, GradientModel, MultiTaskModel, ScalarModel
from jaxatoms.models.precision import Precision
from jaxatoms.types import InputError

ModelConfig = GemNetOCConfig | EquiformerV2Config
PRESETS: dict[str, ModelConfig] = {**gemnet.PRESETS, **equiformer.PRESETS}
ARCHITECTURES: dict[str, type] = {"gemnet_oc": GemNetOCConfig, "equiformer_v2": EquiformerV2Config}
LAYOUT = 2  # of GemNet-OC's arrays; records without this number have the first (see `check_layout`)


class PureModel(NamedTuple):
    """A model split once: parameters are trained, constants (scale factors) are not."""

    params: Any
    constants: Any
    apply: Callable  # (params, constants, batch, edge_dropout, **options) -> ModelOutput
    node_features: Callable  # (params, constants, batch) -> [n_node, feature_width], what the energy heads read


def find_config(name: str) -> ModelConfig:
    """The preset of that name, or the record in a JSON file.

    Raises:
      InputError: neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown model {name!r}; {hint}use {', '.join(PRESETS)} or a .json file of dimensions")
    try:
        return config_from_record(json.loads(Path(name).read_text()))
    except OSError as error:
        raise InputError(f"cannot read model file {name}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"model file {name}: {error}; it must hold fields of GemNetOCConfig") from error


def config_from_record(record: dict) -> ModelConfig:
    """The configuration saved in a checkpoint.

    Raises:
      TypeError: an unknown field.
      InputError: an unknown architecture.
    """
    fields = dict(record)
    fields.pop("layout", None)
    name = fields.pop("architecture", "gemnet_oc")
    if name not in ARCHITECTURES:
        raise InputError(f"unknown architecture {name!r}; this version knows {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](**fields)


def model_record(config: ModelConfig) -> dict:
    """A configuration as JSON values."""
    own = {"layout": LAYOUT} if isinstance(config, GemNetOCConfig) else {"architecture": architecture(config)}
    return own | dataclasses.asdict(config)


def check_layout(record: dict, source: str):
    """Refuse weights that an earlier version saved of a network which is another one now.

    Args:
      record: of a checkpoint or run: `model` and, where it was fine-tuned, `head`.

    Raises:
      InputError: GemNet-OC with atoms and edges of one width, or with a head for classes or the spatial extent, saved
        before these became the reference's.
    """
    model, head = record["model"], record.get("head", {})
    if "architecture" in model or model.get("layout", 1) >= LAYOUT:
        return
    if GemNetOCConfig(**model).edge_sum_dense:
        if not head.get("n_class") and head.get("reduction") != "extent":
            return
        change = "the head for classes and that for R_2_Abs are the reference's now; fine-tune again"
    else:
        change = (
            "networks with emb_size_atom = emb_size_edge (gemnet_oc_tiny) had a dense layer after each sum over edges, "
            "which the reference leaves out; pretrain again"
        )
    raise InputError(f"{source} was saved by an earlier version of jaxatoms and cannot be loaded: {change}")


def architecture(config: ModelConfig) -> str:
    """`gemnet_oc` or `equiformer_v2`."""
    return next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))


def uses_nearest_graph(config: ModelConfig) -> bool:
    """Whether batches come from `graphs.nearest_graphs` (one graph) instead of `graphs.gemnet_graphs` (four)."""
    return isinstance(config, EquiformerV2Config)


def feature_width(config: ModelConfig) -> int:
    """Width of the node feature of the Chemical Similarity Index: 256 for GemNet-OC, 3200 for EquiformerV2 31M."""
    return config.feature_width if isinstance(config, EquiformerV2Config) else config.emb_size_atom


def largest_atomic_number(config: ModelConfig) -> int:
    """The largest element that the tables hold; EquiformerV2's first row stands for Z = 0."""
    return config.max_num_elements - 1 if isinstance(config, EquiformerV2Config) else config.num_elements


def has_dropout(config: ModelConfig) -> bool:
    """Whether the model takes a random key in training."""
    return isinstance(config, EquiformerV2Config) and max(config.alpha_drop, config.drop_path_rate) > 0


def has_scale_factors(config: ModelConfig) -> bool:
    """Whether scale factors have to be fitted before training."""
    return isinstance(config, GemNetOCConfig)


def shared_gradient_divisors(config: ModelConfig, params: Any) -> Any:
    """How often each parameter is used, by which its gradient is divided; None: no parameter is shared."""
    return gradient_divisors(params, config) if isinstance(config, GemNetOCConfig) else None


def build_model(
    config: ModelConfig, reductions: tuple[str, ...], rngs: nnx.Rngs, precision: Precision = Precision()
) -> nnx.Module:
    """A model with one energy and one force head per entry of `reductions` ("sum" or "mean").

    A GemNet-OC without direct forces becomes a `GradientModel`, which has one head whatever the reductions.
    """
    if isinstance(config, EquiformerV2Config):
        return EquiformerV2Model(config, reductions, rngs, precision)
    if config.direct_forces:
        return MultiTaskModel(config, reductions, rngs, precision)
    return GradientModel(config, rngs, precision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a fine-tuned model predicts; enough, with the dimensions, to build it."""

    kind: str  # gradient, direct or scalar
    reduction: str = "sum"
    n_class: int = 0
    dropout: float = 0.0


def build_finetuned(config: ModelConfig, head: HeadSpec, rngs: nnx.Rngs, precision=Precision()) -> nnx.Module:
    """A model with one head. Every kind has `backbone` and `out_energy` or `out_forces`; GemNet-OC has `embedding`.

    Raises:
      InputError: a head that EquiformerV2 does not have.
    """
    if isinstance(config, EquiformerV2Config):
        check_equiformer_head(head)
        if head.kind == "direct":
            return EquiformerV2Forces(config, rngs, precision)
        return EquiformerV2Scalar(config, head.reduction, rngs, precision)
    config = dataclasses.replace(config, direct_forces=head.kind == "direct")
    if head.kind == "gradient":
        return GradientModel(config, rngs, precision)
    if head.kind == "direct":
        return DirectForceModel(config, rngs, precision)
    return ScalarModel(config, head.reduction, rngs, precision, n_class=head.n_class, dropout=head.dropout)


def check_equiformer_head(head: HeadSpec):
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


def build_recorded(meta: dict, precision: Precision) -> nnx.Module:
    """The model, freshly initialised, that a checkpoint's record describes: fine-tuned or multi-task.

    Raises:
      KeyError, TypeError, ValueError: not such a record.
    """
    config = config_from_record(meta["model"])
    if "head" in meta:
        return build_finetuned(config, HeadSpec(**meta["head"]), nnx.Rngs(0), precision)
    reductions = tuple(meta.get("reductions") or default_reductions(config, len(meta["tasks"])))
    return build_model(config, reductions, nnx.Rngs(0), precision)


def make_model(config: ModelConfig, n_task: int, seed: int, precision: Precision) -> nnx.Module:
    """A freshly initialised model for pretraining, with the energy reductions of the paper."""
    return build_model(config, default_reductions(config, n_task), nnx.Rngs(seed), precision)


def default_reductions(config: ModelConfig, n_task: int) -> tuple[str, ...]:
    """Energies are sums over atoms for GemNet-OC and means for EquiformerV2, as in the paper's pretraining."""
    return ("mean" if isinstance(config, EquiformerV2Config) else "sum",) * n_task


def split_model(model: nnx.Module) -> PureModel:
    """Parameters, constants and a pure function of them; the module is merged only while tracing."""
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, constants, batch, edge_dropout=0.0, **options):
        module = nnx.merge(graphdef, params, constants)
        if isinstance(module, GradientModel | DirectForceModel):
            return module(batch)
        if isinstance(module, ScalarModel | EquiformerV2Scalar | EquiformerV2Forces):
            return module(batch, **options)
        return module(batch, edge_dropout=edge_dropout, **options)

    def node_features(params, constants, batch):
        module = nnx.merge(graphdef, params, constants)
        return module.node_features(batch) if isinstance(module, WithBackbone) else module.features(batch).node

    return PureModel(params, constants, apply, node_features)


def abstract_model(config: ModelConfig, reductions: int | tuple[str, ...], precision: Precision) -> PureModel:
    """The same with shapes instead of arrays, to restore a checkpoint into.

    Args:
      reductions: one per task, or the number of tasks for the default ones.
    """
    chosen = default_reductions(config, reductions) if isinstance(reductions, int) else tuple(reductions)
    return split_model(nnx.eval_shape(lambda: build_model(config, chosen, nnx.Rngs(0), precision)))


def count_params(params: Any) -> int:
    """Number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

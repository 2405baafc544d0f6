"""What the rest of the program needs to know of a backbone, as one object.

A backbone is added by writing one `Architecture` and registering it (docs/how-to/backbone.md): pretraining,
fine-tuning, the Chemical Similarity Index, prediction, conversion and the ASE calculator ask nothing else.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.models.common.output import HeadSpec, ModelOutput
from jaxatoms.models.common.precision import Precision

Config = Any  # a frozen dataclass of dimensions whose fields are JSON values; it has a field `remat`


class Model(Protocol):
    """What every model offers.

    Its heads are attributes whose names begin with `out` (`output`, `out_energy`, `out_forces`): what fine-tuning
    leaves behind. Everything else (`backbone`, `embedding`) is taken over by name.
    """

    gradient_forces: bool  # whether forces are the negative gradient of the energy; then `energy` exists

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        """Normalised predictions.

        Args:
          edge_dropout: the rate with which the graphs lost edges; 0 in evaluation.
          key: switches dropout on; None in evaluation.
        """
        ...

    def node_features(self, batch: GraphBatch) -> jax.Array:
        """[n_node, feature_width] what the energy heads read; zero for padding."""
        ...

    def energy_features(self, batch: GraphBatch) -> jax.Array:
        """[n_graph, d] what the energy is linear in, see `inference.uncertainty`; of models of fine-tuning alone."""
        ...

    def energy(self, batch: GraphBatch, positions: jax.Array) -> jax.Array:
        """[n_graph] at `positions` [n_node, 3] A, differentiable; of models with gradient forces alone."""
        ...


class Arrays(Protocol):
    """A model's parameters under the names, and in the layout, of its public checkpoints; a module or an object."""

    def names_of(self, model: Any) -> set[str]:
        """The checkpoint names of every array."""
        ...

    def export_arrays(self, model: Any) -> dict[str, Any]:
        """Every array by its checkpoint name."""
        ...

    def load_arrays(self, model: Any, arrays: Mapping[str, Any], *, source: str):
        """Overwrite every parameter of `model`, which may be abstract; InputError where one is missing or differs."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleFactors:
    """How a backbone gets its fitted constants.

    Attributes:
      fit: (model, batches on the device, notify) sets them in place.
      load_shipped: (model, config) sets published ones in place; InputError where there are none.
    """

    fit: Callable[[Any, list, Callable[[str], None]], None]
    load_shipped: Callable[[Any, Config], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElementTables:
    """Where a backbone keeps what it knows of each element, as rows of tables [..., n_row, d].

    Attributes:
      pattern: names of the tables.
      first: atomic number of the first row.
      enlarged: (config, largest atomic number) -> dimensions whose tables hold it.
    """

    pattern: re.Pattern[str]
    first: int
    enlarged: Callable[[Config, int], Config]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What a backbone changes of the fine-tuning recipes, which are those of GemNet-OC.

    Attributes:
      recipe: fields of `Recipe`, of every data set.
      by_family: more of them by family of data sets ("rmd17", "qm9").
      graphs, extraction_graphs: (cutoff in A, K) by family, where not the data set's own: for fine-tuning, and for
        the features of the Chemical Similarity Index.
      dimensions: (config, head) -> dimensions of the fine-tuned network.
      as_released: (config, family, cutoff in A) -> the same with what the released fine-tuning code did differently
        (`--init-mode reference`).
      check_head: refuses, by an InputError, a head that the backbone does not have.
    """

    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_family: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    graphs: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    extraction_graphs: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    dimensions: Callable[[Config, HeadSpec], Config] = lambda config, head: dataclasses.replace(config, remat=False)
    as_released: Callable[[Config, str, float], Config] = lambda config, family, cutoff: config
    check_head: Callable[[HeadSpec], None] = lambda head: None

    def changes(self, family: str) -> dict[str, Any]:
        """Fields of the recipe of a family of data sets that are others for this backbone."""
        return {**self.recipe, **self.by_family.get(family, {})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone with its heads.

    Attributes:
      name: in records and identities; a record without one is GemNet-OC's.
      config: the class of its dimensions; presets: named dimensions.
      graphs: which graphs it reads, and their host builder.
      build: (config, reductions, rngs, precision) -> a model with one energy and one force head per reduction.
      build_finetuned: (config, head, rngs, precision) -> a model with one head.
      feature_width: config -> width of `Model.node_features`; invariant_width: of its first columns, which do not turn
        with the structure; None: all of them.
      largest_atomic_number: config -> the largest element that the tables hold.
      element_tables: where these are; None: pretraining that goes on takes no new elements.
      arrays: names and layout of public checkpoints; None: it is not exported.
      energy_reduction: how atoms' energies combine in pretraining, "sum" or "mean".
      ema_decay: of the averaged weights per step of pretraining; 0: no average.
      has_dropout: config -> whether the model takes a random key in training.
      scale_factors: None where there are none.
      gradient_divisors: (params, config) -> tree of numbers of uses by which gradients of shared parameters are
        divided, or None.
      rate_multipliers: (params, config) -> tree of learning-rate multipliers for recipes with `layer_rates`.
      block_of: (name of a parameter, config) -> the block that it belongs to, -1 for what comes before the first and
        the number of blocks for what comes after the last; None: blocks are stored together.
      has_kernels: whether some of its layers are operations that have kernels (`ops.dispatch`).
      finetuning: changes of the recipes.
      identity: config -> what beside the weights decides what the features are, for their identity.
      mark: what its records hold to be told from others; None: {"architecture": name}.
      check_record: (record of the dimensions, head or None, source) refuses, by an InputError, weights of an earlier
        layout.
    """

    name: str
    config: type
    presets: Mapping[str, Config]
    graphs: GraphSpec
    build: Callable[[Config, tuple[str, ...], nnx.Rngs, Precision], Any]
    build_finetuned: Callable[[Config, HeadSpec, nnx.Rngs, Precision], Any]
    feature_width: Callable[[Config], int]
    largest_atomic_number: Callable[[Config], int]
    element_tables: ElementTables | None = None
    arrays: Arrays | None = None
    energy_reduction: str = "sum"
    ema_decay: float = 0.99
    has_dropout: Callable[[Config], bool] = lambda config: False
    scale_factors: ScaleFactors | None = None
    gradient_divisors: Callable[[Any, Config], Any] = lambda params, config: None
    rate_multipliers: Callable[[Any, Config], Any] = lambda params, config: jax.tree.map(lambda _: 1.0, params)
    block_of: Callable[[str, Config], int] | None = None
    invariant_width: Callable[[Config], int] | None = None
    has_kernels: bool = False
    finetuning: Finetuning = Finetuning()
    identity: Callable[[Config], str] = lambda config: ""
    mark: Mapping[str, Any] | None = None
    check_record: Callable[[Mapping[str, Any], HeadSpec | None, str], None] = lambda record, head, source: None

    def reductions(self, n_task: int) -> tuple[str, ...]:
        """How atoms' energies combine for `n_task` tasks."""
        return (self.energy_reduction,) * n_task

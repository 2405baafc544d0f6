"""How each downstream family is fine-tuned, one recipe per row of the paper (specification finetuning 1, 5 and 7).

Also what else follows from the model: graphs of fine-tuning and of extraction, the average kept in pretraining.
"""

import dataclasses

from jaxatoms.data.downstream import ForceData, Graph, ScalarData
from jaxatoms.data.downstream_corpus import family_of
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.registry import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a fine-tuning run that follow from the data set."""

    epochs: int
    batch_size: int
    lr: float = 8e-5
    patience: int = 3  # validation epochs without progress before the plateau rule acts
    force_coefficient: float = 10.0
    dropout: float = 0.0  # of the features that the head reads
    weight_decay: float = 0.1
    warmup_epochs: int = 0  # from a fifth of the rate
    cosine_epochs: int | None = 32  # None: all epochs; afterwards the plateau rule takes over
    final_lr: float = 0.1  # where the cosine ends, as a fraction of lr
    layer_rates: bool = True  # learning rate multipliers by layer
    direct_forces: bool | None = None  # None: what the data set says


_BY_FAMILY = {
    "rmd17": Recipe(epochs=600, batch_size=4, patience=25),
    "md22": Recipe(epochs=100, batch_size=1, force_coefficient=100.0),
    "spice": Recipe(epochs=250, batch_size=1, force_coefficient=100.0),
    "qm9": Recipe(epochs=200, batch_size=48),
    "qmof": Recipe(epochs=40, batch_size=4),
    "matbench": Recipe(epochs=120, batch_size=8),
}
_MATBENCH_BATCH = {"mp_is_metal": 3, "jdft2d": 3, "mp_gap": 2, "mp_e_form": 6}
_OTHER_FORCES = Recipe(epochs=200, batch_size=4, patience=25)
_OTHER_SCALAR = Recipe(epochs=120, batch_size=8)
SMALL_STEPS = 400  # of `--budget small`


# EquiformerV2 was fine-tuned on rMD17 and QM9 alone; other sets keep their epochs, batch and rate.
_EQUIFORMER = dict(warmup_epochs=5, cosine_epochs=None, final_lr=0.01, layer_rates=False, direct_forces=True)
_EQUIFORMER_BY_FAMILY = {
    "rmd17": dict(epochs=1000, lr=1e-5),
    "qm9": dict(epochs=300, lr=5e-4, weight_decay=0.0),
}
_EQUIFORMER_GRAPHS = {"qm9": Graph(12.0, 500)}
_EQUIFORMER_EXTRACTION_GRAPHS = {"qm9": Graph(12.0, 20)}  # specification csi 2


def find_recipe(name: str, facts: ForceData | ScalarData, model: ModelConfig | None = None) -> Recipe:
    """The recipe of a downstream set (for a model); one that the paper does not have gets that of its kind."""
    recipe = _gemnet_recipe(name, facts)
    if not isinstance(model, EquiformerV2Config):
        return recipe
    return dataclasses.replace(recipe, **_EQUIFORMER, **_EQUIFORMER_BY_FAMILY.get(family_of(name), {}))


def find_graph(name: str, model: ModelConfig) -> Graph | None:
    """The graph that a model is given for a downstream set, where it is not the data set's own."""
    return _EQUIFORMER_GRAPHS.get(family_of(name)) if isinstance(model, EquiformerV2Config) else None


def extraction_graph(name: str, nearest: bool) -> Graph | None:
    """The graph that an extractor is given for a downstream set, where it is not the data set's own.

    Args:
      nearest: whether the extractor reads the single graph of EquiformerV2.
    """
    return _EQUIFORMER_EXTRACTION_GRAPHS.get(family_of(name)) if nearest else None


def pretraining_ema(model: ModelConfig) -> float:
    """Decay per step of the averaged weights; 0 for EquiformerV2, whose average is its weights (specification
    pretraining 6).
    """
    return 0.0 if isinstance(model, EquiformerV2Config) else 0.99


def _gemnet_recipe(name: str, facts: ForceData | ScalarData) -> Recipe:
    family = family_of(name)
    recipe = _BY_FAMILY.get(family)
    if recipe is None:
        return _OTHER_FORCES if isinstance(facts, ForceData) else _OTHER_SCALAR
    if family == "matbench":
        task = facts.name.partition(":")[2].partition("/")[0]
        recipe = dataclasses.replace(recipe, batch_size=_MATBENCH_BATCH.get(task, recipe.batch_size))
    if family == "md22" and facts.name.endswith(":Ac-Ala3-NHMe"):
        recipe = dataclasses.replace(recipe, batch_size=2)
    if isinstance(facts, ScalarData) and facts.n_class:
        recipe = dataclasses.replace(recipe, dropout=0.5)
    return recipe

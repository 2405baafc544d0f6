"""How each downstream family is fine-tuned (docs/reference/finetuning.md, Table cells, Optimisation, EquiformerV2)."""

import dataclasses

from jaxatoms.data.downstream import Facts, ForceData, ScalarData
from jaxatoms.data.downstream_task import family_of


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


def find_recipe(name: str, facts: Facts) -> Recipe:
    """The recipe of a downstream set with GemNet-OC; one that the paper does not have gets that of its kind."""
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

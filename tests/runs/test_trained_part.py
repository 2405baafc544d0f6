"""--train and --freeze: which parameters they mean for each architecture, and what they refuse."""

import jax
import pytest
from fixtures.nano import NANO
from fixtures.torch_models import TINY_EQUIFORMER as TINY
from flax import nnx

from jaxatoms.models import registry
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.runs.trained_part import describe, partition_of
from jaxatoms.types import InputError

GEMNET = GemNetOCConfig(**NANO | {"num_blocks": 3}, direct_forces=False)


def _params(config, kind):
    make = lambda: registry.build_finetuned(config, HeadSpec(kind=kind), nnx.Rngs(0), Precision())  # noqa: E731
    return registry.split_model(nnx.eval_shape(make)).params


@pytest.fixture(scope="module")
def gemnet():
    return _params(GEMNET, "gradient")


@pytest.fixture(scope="module")
def equiformer():
    return _params(TINY, "direct")


def test_all_is_no_part(gemnet):
    assert partition_of("all", None, gemnet, GEMNET) is None
    total = sum(leaf.size for leaf in jax.tree.leaves(gemnet))
    assert describe(None, gemnet, "all") == f"training all {total:,} parameters"


def test_heads_are_what_fine_tuning_makes_anew(gemnet):
    found = partition_of("heads", None, gemnet, GEMNET)
    assert found.trained and all(name.startswith("out_energy/") for name in found.trained)
    own = sum(leaf.size for leaf in jax.tree.leaves(gemnet["out_energy"]))
    assert describe(found, gemnet, "heads").startswith(f"training {own:,} numbers beside")


def test_the_last_blocks_come_with_their_output_blocks_and_what_follows(gemnet):
    tops = {"/".join(name.split("/")[:3]) for name in partition_of("last:1", None, gemnet, GEMNET).trained}
    assert {"backbone/int_blocks/2", "backbone/out_blocks/3", "backbone/out_mlp_E/out_mlp"} <= tops
    assert not {"backbone/int_blocks/1", "backbone/out_blocks/2"} & tops
    every = partition_of("last:3", None, gemnet, GEMNET).trained
    assert {name.split("/")[0] for name in every} == {"backbone", "out_energy"}
    assert not any("bases" in name for name in every) and any("out_blocks/0" in name for name in every)


def test_low_rank_corrections_are_for_dense_layers_of_the_backbone(gemnet, equiformer):
    found = partition_of("lora:2", None, gemnet, GEMNET)
    assert all(name.startswith("out_") for name in found.trained)
    assert "backbone/int_blocks/0/dense_ca/kernel" in found.corrected and "embedding/kernel" not in found.corrected
    found = partition_of("lora:2", None, equiformer, TINY)
    assert found.corrected and not any("embedding/" in name for name in found.corrected)


def test_normalisation_layers(equiformer):
    found = partition_of("norms", None, equiformer, TINY).trained
    backbone = {name for name in found if not name.startswith("out_")}
    assert backbone and all("norm" in name for name in backbone)
    assert any(name.startswith("out_forces/") for name in found)


def test_patterns_are_taken_out(gemnet):
    found = partition_of("all", "embedding*, backbone/bases/*", gemnet, GEMNET)
    assert not any(name.startswith(("embedding", "backbone/bases")) for name in found.trained)
    assert any(name.startswith("backbone/int_blocks") for name in found.trained)


@pytest.mark.parametrize("train, freeze, words", [
    ("last:4", None, "the network has 3 blocks"), ("norms", None, "no normalisation layers"),
    ("lora:4", None, "is 4 wide; choose a rank below 4"), ("all", "nothing*", "matches no parameter"),
    ("heads", "out_*", "leaves nothing to train"),
])  # fmt: skip
def test_parts_that_there_are_not_are_refused(gemnet, train, freeze, words):
    with pytest.raises(InputError, match=words):
        partition_of(train, freeze, gemnet, GEMNET)


def test_blocks_that_are_stored_together_cannot_be_chosen(equiformer):
    with pytest.raises(InputError, match="stored together"):
        partition_of("last:1", None, equiformer, TINY)

"""What an optimiser needs to know of every parameter: how often it is used, and how fast it learns in fine-tuning."""

from typing import Any

import jax
import numpy as np

from jaxatoms.models.gemnet_oc.config import GemNetOCConfig

# Learning-rate multipliers of the interaction blocks of S and L; docs/reference/finetuning.md, Layer multipliers.
SMALL_BLOCKS = (0.35, 0.40, 0.55, 0.625)
LARGE_BLOCKS = (0.55, 0.40, 0.30, 0.40, 0.55, 0.625)
EMBEDDING_MULTIPLIER = 0.3


def gradient_divisors(params: Any, config: GemNetOCConfig) -> Any:
    """A tree like `params` with the number of uses of every parameter: the reference divides gradients by it.

    Basis projections are used by every interaction block, `mlp_rbf_out` by every output block, the rest once.
    Source: GemNet-OC's shared parameter scaling as in JMP; `edge_emb` is not among them.
    """

    def divisor(path, _) -> int:
        keys = _keys(path)
        module = keys[keys.index("bases") + 1] if "bases" in keys else ""
        if module == "mlp_rbf_out":
            return config.num_blocks + 1
        return config.num_blocks if module.startswith("mlp_") else 1

    return jax.tree_util.tree_map_with_path(divisor, params)


def rate_multipliers(params: Any, config: GemNetOCConfig) -> Any:
    """A tree like `params` with each parameter's learning-rate multiplier.

    Block 0 owns the first two output blocks; bases, final MLPs and heads keep 1.
    """
    blocks = block_multipliers(config.num_blocks)

    def multiplier(path, _) -> float:
        name = "/".join(_keys(path))
        if name.startswith("embedding/"):
            return EMBEDDING_MULTIPLIER
        block = block_of(name, config)
        return blocks[block] if 0 <= block < len(blocks) else 1.0

    return jax.tree_util.tree_map_with_path(multiplier, params)


def block_of(name: str, config: GemNetOCConfig) -> int:
    """The interaction block that a parameter belongs to: the first owns the first two output blocks.

    Args:
      name: "backbone/int_blocks/0/dense_ca/kernel".

    Returns:
      -1 for the embedding and the bases, `num_blocks` for the final MLPs and the heads.
    """
    keys = name.split("/")
    for kind, offset in (("int_blocks", 0), ("out_blocks", 1)):
        if kind in keys:
            return max(int(keys[keys.index(kind) + 1]) - offset, 0)
    return -1 if keys[0] == "embedding" or "bases" in keys else config.num_blocks


def block_multipliers(num_blocks: int) -> tuple[float, ...]:
    """Learning-rate multipliers of the interaction blocks: the published ones for 4 and 6, else rising evenly."""
    if num_blocks == len(LARGE_BLOCKS):
        return LARGE_BLOCKS
    if num_blocks == len(SMALL_BLOCKS):
        return SMALL_BLOCKS
    return tuple(np.linspace(SMALL_BLOCKS[0], SMALL_BLOCKS[-1], num_blocks).tolist())


def _keys(path) -> list[str]:
    return [str(getattr(k, "key", getattr(k, "name", k))) for k in path]

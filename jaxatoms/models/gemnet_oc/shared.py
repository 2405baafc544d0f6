"""Gradients of basis projections that several blocks share, and how often each is used."""

import jax

from jaxatoms.models.gemnet_oc.config import GemNetOCConfig


def gradient_divisors(params, config: GemNetOCConfig):
    """A tree like `params` with the number of uses of every parameter: the reference divides gradients by it.

    Basis projections are used by every interaction block, `mlp_rbf_out` by every output block, the rest once.
    Source: GemNet-OC's shared parameter scaling as in JMP; `edge_emb` is not among them.
    """

    def divisor(path, _) -> int:
        keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        module = keys[keys.index("bases") + 1] if "bases" in keys else ""
        if module == "mlp_rbf_out":
            return config.num_blocks + 1
        return config.num_blocks if module.startswith("mlp_") else 1

    return jax.tree_util.tree_map_with_path(divisor, params)

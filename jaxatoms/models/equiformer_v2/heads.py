"""Heads of EquiformerV2: the node embedding -> energies and direct forces, one pair of heads per task.

Source: docs/reference/equiformer_v2.md, Heads, released code of arXiv 2306.12059 and of arXiv 2502.11085.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import reduce_atoms
from jaxatoms.models.equiformer_v2.attention import GraphAttention
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.edges import EdgeFrames
from jaxatoms.models.equiformer_v2.feed_forward import FeedForward
from jaxatoms.models.equiformer_v2.network import SphereFeatures


class EnergyHead(nnx.Module):
    """A feed-forward network with one output or several; the energy of an atom is its l = 0 row."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision, n_out: int = 1):
        self.energy_block = FeedForward(config, n_out, rngs, precision, hidden=config.energy_hidden)

    def __call__(self, node: jax.Array) -> jax.Array:
        """[n_node, K, c] -> [n_node], or [n_node, n_out] of several."""
        values = self.energy_block(node)[:, 0]
        return values[:, 0] if values.shape[-1] == 1 else values

    def last_features(self, node: jax.Array) -> jax.Array:
        """[n_node, K, c] -> [n_node, n + 1], what the last layer reads, and 1 for its bias: the energy is linear in it.
        """
        invariant = self.energy_block.invariants(node)
        return jnp.concatenate([invariant, jnp.ones_like(invariant[:, :1])], axis=1)


class ForceHead(nnx.Module):
    """An attention layer with one output; the force is its l = 1 rows, which are (x, y, z)."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision):
        self.force_block = GraphAttention(config, 1, rngs, precision, hidden=config.force_hidden)

    def __call__(self, node: jax.Array, edges: EdgeFrames, observe=None) -> jax.Array:
        """[n_node, K, c] -> [n_node, 3]."""
        return self.force_block(node, edges, observe=observe)[:, 1:4, 0]


class Heads(nnx.Module):
    """An energy head and a force head for every task."""

    def __init__(self, config: EquiformerV2Config, n_task: int, rngs, precision: Precision):
        self.out_energy = nnx.List([EnergyHead(config, rngs, precision) for _ in range(n_task)])
        self.out_forces = nnx.List([ForceHead(config, rngs, precision) for _ in range(n_task)])

    def __call__(self, features: SphereFeatures, batch: GraphBatch, reductions: tuple[str, ...]) -> ModelOutput:
        pairs = zip(self.out_energy, reductions, strict=True)
        energy = [reduce_atoms(head(features.node), batch, reduction) for head, reduction in pairs]
        forces = [head(features.node, features.edges) for head in self.out_forces]
        forces = [jnp.where(batch.node_mask[:, None], f, 0) for f in forces]
        return ModelOutput(jnp.stack(energy, axis=-1), jnp.stack(forces, axis=-1))

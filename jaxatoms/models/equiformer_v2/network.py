"""EquiformerV2: a padded batch -> the node embedding [n_node, (lmax+1)**2, channels].

The blocks' parameters are stacked on a leading axis and scanned, so that one block is compiled whatever the depth.
The geometry is a constant for the gradient: the model has direct forces only, as in the reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.blocks import Block, EdgeDegreeEmbedding
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.dropout import DropRates
from jaxatoms.models.equiformer_v2.edges import EdgeFrames, edge_frames
from jaxatoms.models.equiformer_v2.layers import Table, make_norm


class SphereFeatures(NamedTuple):
    """What the heads read."""

    node: jax.Array  # [n_node, (lmax+1)**2, channels], zero for padding
    edges: EdgeFrames


class EquiformerV2(nnx.Module):
    """The backbone; `blocks` holds all layers, stacked."""

    def __init__(self, config: EquiformerV2Config, rngs: nnx.Rngs, precision: Precision = Precision()):
        self.config = config
        self.sphere_embedding = Table(config.max_num_elements, config.sphere_channels, rngs)
        self.edge_degree_embedding = EdgeDegreeEmbedding(config, rngs, precision)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def make(rngs):
            return Block(config, rngs, precision)

        self.blocks = make(rngs)
        self.norm = make_norm(config)

    def __call__(self, batch: GraphBatch, *, key: jax.Array | None = None, observe=None) -> SphereFeatures:
        """Node embedding of a batch whose `main` is this model's graph (nearest neighbours, with an out_table).

        Args:
          key: switches dropout and stochastic depth on; None in evaluation.
          observe: called as observe(name, value) with every intermediate, of all blocks stacked.
        """
        edges = edge_frames(batch, self.config)
        seen: dict = {}
        embedded = self.edge_degree_embedding(edges, observe=(lambda **p: seen.update(p)) if observe else None)
        x = jnp.pad(self.sphere_embedding(batch.atomic_numbers)[:, None], ((0, 0), (0, embedded.shape[1] - 1), (0, 0)))
        # Padding atoms start at zero whatever row 0 of the table holds.
        x = jnp.where(batch.node_mask[:, None, None], x + embedded, 0)
        x, per_block = self._blocks(x, edges, batch, key, bool(observe))
        node = jnp.where(batch.node_mask[:, None, None], self.norm(x), 0)
        if observe:
            for name, value in (seen | {f"block_{n}": v for n, v in per_block.items()}).items():
                observe(name, value)
            observe("edge_degree", embedded)
        return SphereFeatures(node, edges)

    def _blocks(self, x, edges: EdgeFrames, batch: GraphBatch, key, collect: bool):
        c, n_graph = self.config, batch.node_table.shape[0]
        graphdef, state = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, c.num_layers)
        rates = DropRates(c.alpha_drop, c.drop_path_rate)

        def body(x, layer):
            (state, key), seen = layer, {}
            block = nnx.merge(graphdef, state)
            observe = (lambda **parts: seen.update(parts)) if collect else None
            x = block(x, edges, batch.node_graph, n_graph, rates, key, observe=observe)
            return x, seen

        return jax.lax.scan(jax.checkpoint(body) if c.remat else body, x, (state, keys))

"""Blocks of EquiformerV2: the embedding of an atom's surroundings, and attention with a feed-forward network."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.indexing import sum_rows
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.attention import TABLE_BOUND, GraphAttention, edges_of
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.dropout import DropRates, drop_attention, drop_path
from jaxatoms.models.equiformer_v2.edges import EdgeFrames, map_tiles
from jaxatoms.models.equiformer_v2.feed_forward import FeedForward
from jaxatoms.models.equiformer_v2.harmonics import degree_of_coefficient, truncation_scale
from jaxatoms.models.equiformer_v2.layers import RadialNet, Table, make_norm


class EdgeDegreeEmbedding(nnx.Module):
    """Sums over neighbours of harmonics of the edge times radial factors per degree."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision):
        table = functools.partial(Table, config.max_num_elements, config.edge_channels, rngs, bound=TABLE_BOUND)
        self.source_embedding, self.target_embedding = table(), table()
        self.rad_func = RadialNet(config, (config.lmax + 1) * config.sphere_channels, rngs, precision)
        self.config = config

    def __call__(self, edges: EdgeFrames, observe=None) -> jax.Array:
        """[n_node, (lmax+1)**2, channels]."""
        messages = map_tiles(functools.partial(self._tile, observe=observe), self.config.tile_edges, edges_of(edges))
        return sum_rows(messages, edges.in_table, edges.receivers) / self.config.avg_degree

    def _tile(self, edges: EdgeFrames, observe=None) -> jax.Array:
        c = self.config
        degree = degree_of_coefficient(c.lmax)
        factors = self.rad_func(edges, self.source_embedding, self.target_embedding)
        factors = factors.reshape(-1, c.lmax + 1, c.sphere_channels)
        if observe:
            observe(edge_degree_rad=factors)
        scale = jnp.asarray(truncation_scale(c.lmax, c.mmax)[degree], factors.dtype)
        # Row m = 0 of D^l(n) is Y^l(n).
        harmonics = jnp.sum(edges.rotation[:, : c.lmax + 1], axis=1) * scale
        return harmonics[:, :, None] * factors[:, degree]


class Block(nnx.Module):
    """Attention and feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision):
        self.norm_1, self.norm_2 = make_norm(config), make_norm(config)
        self.ga = GraphAttention(config, config.sphere_channels, rngs, precision)
        self.ffn = FeedForward(config, config.sphere_channels, rngs, precision)

    def __call__(self, x, edges: EdgeFrames, node_graph, n_graph: int, rates: DropRates, key, observe=None):
        """[n_node, K, c] -> the same; `key` is None outside training."""
        drop = path_1 = path_2 = None
        if key is not None:
            keys = jax.random.split(key, 3)
            drop = functools.partial(drop_attention, keys[0], rates.alpha)
            path_1, path_2 = (functools.partial(drop_path, k, rates.path, node_graph, n_graph) for k in keys[1:])
        normed = self.norm_1(x)
        attended = self.ga(normed, edges, drop=drop, observe=observe)
        x = x + (path_1(attended) if path_1 else attended)
        normed_2 = self.norm_2(x)
        changed = self.ffn(normed_2)
        out = x + (path_2(changed) if path_2 else changed)
        if observe:
            observe(norm1=normed, ga=attended, norm2=normed_2, ffn=changed, out=out)
        return out

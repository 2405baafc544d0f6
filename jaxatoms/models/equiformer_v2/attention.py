"""Equivariant graph attention: messages in edge frames, weighted by a softmax over the edges of each receiver.

Two passes over tiles of edges: the first leaves the hidden message (K_kept x hidden) and the attention logits, the
second turns it into the rotated message. The samples on the sphere (324 per channel and edge) live in one tile only.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.indexing import sum_rows, take_many
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.edges import EdgeFrames, map_tiles, softmax_over_receivers
from jaxatoms.models.equiformer_v2.frames import back_scale
from jaxatoms.models.equiformer_v2.harmonics import degrees_with, edge_sphere_grid
from jaxatoms.models.equiformer_v2.layers import LayerNorm, RadialNet, SO3Linear, Table
from jaxatoms.models.equiformer_v2.so2 import SO2Convolution

LEAK = 0.2
TABLE_BOUND = 1e-3  # element tables of edges start almost at zero


def smooth_leaky_relu(x: jax.Array) -> jax.Array:
    """(1+a)/2 x + (1-a)/2 x (2 sigmoid(x) - 1), a = 0.2."""
    return (1 + LEAK) / 2 * x + (1 - LEAK) / 2 * x * (2 * jax.nn.sigmoid(x) - 1)


def separable_sphere_activation(h: jax.Array, gate: jax.Array, config: EquiformerV2Config) -> jax.Array:
    """SiLU of the function on the sphere that h [n_edge, K_kept, c] describes; row 0 becomes SiLU(gate [n_edge, c])."""
    grids = edge_sphere_grid(config.lmax, config.mmax, config.grid_resolution)
    to_grid, from_grid = (jnp.asarray(g, h.dtype) for g in grids)
    samples = jax.nn.silu(jnp.einsum("gk,ekc->egc", to_grid, h, precision="highest"))
    u = jnp.einsum("kg,egc->ekc", from_grid[1:], samples, precision="highest")
    return jnp.concatenate([jax.nn.silu(gate)[:, None], u], axis=1)


class RadialSO2(SO2Convolution):
    """The first convolution of an attention layer: its input is scaled by a radial network."""

    def __init__(self, config: EquiformerV2Config, n_in: int, n_out: int, n_extra: int, rngs, precision: Precision):
        super().__init__(config.lmax, config.mmax, n_in, n_out, rngs, precision, n_extra=n_extra)
        factors = sum(degrees_with(m, config.lmax) for m in range(config.mmax + 1)) * n_in
        self.rad_func = RadialNet(config, factors, rngs, precision)


class GraphAttention(nnx.Module):
    """[n_node, (lmax+1)**2, sphere_channels] -> [n_node, (lmax+1)**2, n_out]."""

    def __init__(self, config: EquiformerV2Config, n_out: int, rngs, precision: Precision, *, hidden=None):
        c, heads = config, config.num_heads
        hidden = hidden or c.attn_hidden_channels
        table = functools.partial(Table, c.max_num_elements, c.edge_channels, rngs, bound=TABLE_BOUND)
        self.source_embedding, self.target_embedding = table(), table()
        extra = heads * c.attn_alpha_channels + hidden
        self.so2_conv_1 = RadialSO2(c, 2 * c.sphere_channels, hidden, extra, rngs, precision)
        self.alpha_norm = LayerNorm(c.attn_alpha_channels)
        bound = c.attn_alpha_channels**-0.5
        shape = (heads, c.attn_alpha_channels)
        self.alpha_dot = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        width = heads * c.attn_value_channels
        self.so2_conv_2 = SO2Convolution(c.lmax, c.mmax, hidden, width, rngs, precision)
        self.proj = SO3Linear(c.lmax, width, n_out, rngs, precision)
        self.config = c

    def __call__(self, x: jax.Array, edges: EdgeFrames, *, drop=None, observe=None) -> jax.Array:
        """Sums of attention-weighted messages over the edges of each atom, projected.

        Args:
          drop: applied to the attention weights [n_edge, heads] in training.
          observe: called with named intermediates.
        """
        c = self.config
        ends = (take_many(x, edges.senders, edges.out_table), take_many(x, edges.receivers, edges.in_table))
        h, logits = map_tiles(functools.partial(self._first, observe=observe), c.tile_edges, (ends, edges_of(edges)))
        alpha = softmax_over_receivers(logits, edges)
        if observe:
            observe(s2act=h, alpha=alpha)
        alpha = alpha if drop is None else drop(alpha)
        messages = map_tiles(functools.partial(self._second, observe=observe), c.tile_edges, (h, alpha, edges.rotation))
        return self.proj(sum_rows(messages, edges.in_table, edges.receivers))

    def _first(self, args, observe=None):
        """Hidden message [t, K_kept, hidden] and logits [t, heads] of a tile of edges."""
        (sender, receiver), edges = args
        message = jnp.concatenate([_rotate(edges.rotation, sender), _rotate(edges.rotation, receiver)], axis=-1)
        factors = self.so2_conv_1.rad_func(edges, self.source_embedding, self.target_embedding)
        h, extra = self.so2_conv_1(message, factors)
        if observe:
            observe(conv1=h, conv1_extra=extra)
        n_alpha = self.alpha_dot.shape[0] * self.alpha_dot.shape[1]
        q = extra[:, :n_alpha].reshape(-1, *self.alpha_dot.shape)
        logits = jnp.sum(smooth_leaky_relu(self.alpha_norm(q)) * self.alpha_dot[...], axis=-1)
        return separable_sphere_activation(h, extra[:, n_alpha:], self.config), logits

    def _second(self, args, observe=None):
        """Weighted messages [t, (lmax+1)**2, heads * value] of a tile, in the common frame."""
        h, alpha, rotation = args
        value, _ = self.so2_conv_2(h)
        if observe:
            observe(conv2=value)
        heads = value.reshape(*value.shape[:2], alpha.shape[1], -1) * alpha[:, None, :, None]
        scale = jnp.asarray(back_scale(self.config.lmax, self.config.mmax), h.dtype)
        return jnp.einsum("eki,ekc->eic", rotation, heads.reshape(value.shape) * scale, precision="highest")


def edges_of(edges: EdgeFrames) -> EdgeFrames:
    """The fields that tiles of edges need; the tables per atom are left out."""
    return edges._replace(in_table=None, out_table=None)


def _rotate(rotation: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("eki,eic->ekc", rotation, x, precision="highest")

"""A padded batch -> what EquiformerV2 reads of its edges, and a loop over tiles of rows that bounds memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import edge_slots, take_rows
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.frames import rotations
from jaxatoms.ops.target import platform

PADDING_LENGTH = 1.0  # A; any positive number
GPU_TILES = 32  # of the sizes for a CPU: 16,384 edges have 1.4 GB of sphere samples


class EdgeFrames(NamedTuple):
    """Edges with their lengths, end elements and rotations; padding edges point along y and are masked."""

    senders: jax.Array  # [n_edge] int32
    receivers: jax.Array  # [n_edge] int32, non-decreasing
    in_table: jax.Array  # [n_node, k] edges arriving at an atom; n_edge = none
    out_table: jax.Array  # [n_node, k_out] edges leaving an atom
    slot: jax.Array  # [n_edge] place in the flattened in_table; n_node * k for padding
    mask: jax.Array  # [n_edge] bool
    distance: jax.Array  # [n_edge] A
    sender_z: jax.Array  # [n_edge] int32
    receiver_z: jax.Array  # [n_edge] int32
    rotation: jax.Array  # [n_edge, K_kept, (lmax+1)**2]


def edge_frames(batch: GraphBatch, config: EquiformerV2Config) -> EdgeFrames:
    """Geometry of `batch.main`, constant for the gradient (docs/reference/equiformer_v2.md, Wigner matrices)."""
    graph, positions = batch.main, jax.lax.stop_gradient(batch.positions)
    slot, n_slot = edge_slots(graph.in_table, graph.receivers), graph.in_table.size
    mask = slot < n_slot
    cell = batch.cell[batch.node_graph[graph.receivers]].astype(positions.dtype)
    # Not a matmul: reduced-precision matmul units must not touch geometry.
    offset = jnp.sum(graph.shifts[:, :, None].astype(positions.dtype) * cell, axis=1)
    vector = positions[graph.receivers] - positions[graph.senders] + offset
    vector = vector if config.source_to_target else -vector
    vector = jnp.where(mask[:, None], vector, jnp.asarray([0, PADDING_LENGTH, 0], vector.dtype))
    distance = jnp.sqrt(jnp.sum(vector**2, axis=-1))
    z = batch.atomic_numbers
    return EdgeFrames(
        graph.senders,
        graph.receivers,
        graph.in_table,
        graph.out_table,
        slot,
        mask,
        distance,
        z[graph.senders],
        z[graph.receivers],
        rotations(vector / distance[:, None], config.lmax, config.mmax),
    )


def softmax_over_receivers(logits: jax.Array, edges: EdgeFrames) -> jax.Array:
    """[n_edge, heads] weights that sum to 1 over the edges of each receiver; 0 for padding."""
    n_node, k = edges.in_table.shape
    table = edges.in_table.reshape(-1)
    dense = take_rows(logits, table, edges.slot).reshape(n_node, k, -1)
    real = (edges.in_table < len(edges.senders))[:, :, None]
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(real, dense, -jnp.inf), axis=1, keepdims=True, initial=-1e30))
    weights = jnp.where(real, jnp.exp(jnp.where(real, dense - largest, 0)), 0)
    alpha = weights / (jnp.sum(weights, axis=1, keepdims=True) + 1e-16)
    return take_rows(alpha.reshape(n_node * k, -1), edges.slot, table)


def map_tiles(fn: Callable, tile: int, args):
    """fn(args) computed for `tile` leading rows at a time, each recomputed in the backward pass.

    Args:
      fn: pytree of [t, ...] -> pytree of [t, ...], row by row; must be finite on rows of zeros.
      tile: rows that suit a CPU's cache; a GPU, which pays for launches instead, takes `GPU_TILES` times as many. No
        more rows than `tile` itself are not recomputed.
      args: pytree of [n, ...] with one n.
    """
    n = jax.tree.leaves(args)[0].shape[0]
    if n <= tile:
        return fn(args)
    tile *= GPU_TILES if platform() == "gpu" else 1
    if n <= tile:
        return jax.checkpoint(fn)(args)
    count = -(-n // tile)
    size = -(-n // count)  # equal tiles, so that little is padded

    def split(x):
        padded = jnp.pad(x, ((0, count * size - n), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(count, size, *x.shape[1:])

    out = jax.lax.map(jax.checkpoint(fn), jax.tree.map(split, args))
    return jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:])[:n], out)

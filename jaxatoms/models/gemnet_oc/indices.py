"""Which edge slot faces which: index arrays that the interactions share, computed on the device from a batch.

The layout "[n_node, k]" has one slot per edge arriving at an atom, in the order of the graph's `in_table`. An
atom image is a pair (atom, cell translation); since shifts count translations of the receiver, the image that
an edge comes from, seen from its receiver, is (sender, -shift).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch, PaddedEdges
from jaxatoms.models.common.indexing import edge_slots

_BASE = 64  # cells per axis in the integer code of an image; `collate` refuses larger translations


class Indices(NamedTuple):
    """Index arrays of one batch. "none" is always the size of the array that an index points into."""

    main_slot: jax.Array  # [E] slot n*k of each main edge in the [n_node, k_main] layout
    main_out_table: jax.Array  # [n_node, k_main] main edges leaving each atom
    a2ee2a_slot: jax.Array  # [E_a2ee2a] the same for the a2ee2a graph
    qint_slot: jax.Array  # [E_qint]
    twin_a2ee2a: jax.Array  # [n_node * k_main] a2ee2a slot of the same edge, per main slot
    twin_main: jax.Array  # [n_node * k_a2ee2a] main slot of the same edge, per a2ee2a slot
    in_mask: jax.Array  # [E_qint, k_main] d -> b is a neighbour of b and d is not a
    out_mask: jax.Array  # [n_node, k_qint, k_main] c -> a is a neighbour of a and c is not b
    same_in: jax.Array  # [n_node * k_main * k_qint] (q, slot of d) that is the image c, per (a, slot of c, q)
    same_out: jax.Array  # [E_qint * k_main] its inverse


def derive(batch: GraphBatch) -> Indices:
    """Index arrays of a batch; integers only, no gradient."""
    main, a2ee2a, qint = batch.main, batch.a2ee2a, batch.qint
    n_main, k = batch.swap.shape[0], main.in_table.shape[1]
    rank = batch.node_slot % batch.node_table.shape[1]
    main_image, a2ee2a_image = _slot_images(main, rank), _slot_images(a2ee2a, rank)
    quad = _quadruplets(qint, main_image, rank)
    return Indices(
        main_slot=edge_slots(main.in_table, main.receivers),
        main_out_table=_fill(batch.swap, main.in_table, n_main),
        a2ee2a_slot=edge_slots(a2ee2a.in_table, a2ee2a.receivers),
        qint_slot=edge_slots(qint.in_table, qint.receivers),
        twin_a2ee2a=_row_slots(_match(main_image, a2ee2a_image), a2ee2a_image.shape[1]),
        twin_main=_row_slots(_match(a2ee2a_image, main_image), k),
        **quad,
    )


def _quadruplets(qint: PaddedEdges, main_image: jax.Array, rank: jax.Array) -> dict[str, jax.Array]:
    """Masks of the quadruplets d -> b -> a <- c and where c and d are the same image (always excluded)."""
    (n_node, k), k_q, n_qint = main_image.shape, qint.in_table.shape[1], qint.senders.shape[0]
    translation = _translation(qint.shifts)
    b_image = _image(rank[qint.senders], translation)  # [Q] as seen from a
    a_image = _image(rank[qint.receivers], 0)
    from_b = main_image[qint.senders]  # [Q, k]
    d_image = jnp.where(from_b >= 0, from_b + translation[:, None], -1)
    c_image = main_image[:, None, :]
    b_of_slot = _fill(b_image, qint.in_table, -1)[:, :, None]
    d_of_slot = _fill(d_image, qint.in_table, -1)  # [N, k_q, k]
    slot_of_q = edge_slots(qint.in_table, qint.receivers)
    c_as_d = _match(jnp.broadcast_to(c_image, d_of_slot.shape), d_of_slot)
    d_as_c = _match(d_image, main_image[qint.receivers])
    same_in = jnp.where(c_as_d < k, qint.in_table[:, :, None] * k + c_as_d, n_qint * k)
    same_out = (qint.receivers[:, None] * k + d_as_c) * k_q + slot_of_q[:, None] % k_q
    return dict(
        in_mask=(d_image >= 0) & (d_image != a_image[:, None]),
        out_mask=(b_of_slot >= 0) & (c_image >= 0) & (c_image != b_of_slot),
        same_in=same_in.swapaxes(1, 2).reshape(-1),
        same_out=jnp.where(d_as_c < k, same_out, n_node * k * k_q).reshape(-1),
    )


def _fill(x: jax.Array, index: jax.Array, value: int) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=value)


def _translation(shifts: jax.Array) -> jax.Array:
    """[n] one integer per cell translation of the sender, additive under composition."""
    return -((shifts[:, 0] * _BASE + shifts[:, 1]) * _BASE + shifts[:, 2])


def _image(rank: jax.Array, translation: jax.Array | int) -> jax.Array:
    """Non-negative integer code of an atom image; `rank` is the atom's position in its structure."""
    return rank * _BASE**3 + _BASE**3 // 2 + translation


def _slot_images(edges: PaddedEdges, rank: jax.Array) -> jax.Array:
    """[n_node, k] image that each edge slot comes from, seen from the slot's atom; -1 = empty."""
    return _fill(_image(rank[edges.senders], _translation(edges.shifts)), edges.in_table, -1)


def _match(x: jax.Array, y: jax.Array) -> jax.Array:
    """For x [..., m] and y [..., n]: index into y's last axis of the equal, non-negative entry; n if there is none."""
    n = y.shape[-1]
    equal = (x[..., :, None] == y[..., None, :]) & (x[..., :, None] >= 0)
    return jnp.min(jnp.where(equal, jnp.arange(n, dtype=jnp.int32), n), axis=-1)


def _row_slots(column: jax.Array, k: int) -> jax.Array:
    """[n * m] flat slots in a [n, k] layout of per-row column indices [n, m]; k means none."""
    rows = jnp.arange(column.shape[0], dtype=jnp.int32)[:, None]
    return jnp.where(column < k, rows * k + column, column.shape[0] * k).reshape(-1)

"""Linear moves of rows between layouts whose transposes are moves too: no colliding scatter, forward or backward.

XLA turns the gradient of a gather into a scatter-add, which is slow on CPU and needs atomics on GPU. Every move
here knows its inverse index, so its gradient is again a gather (or a gather and a sum). Rules are written with
`custom_vjp` in terms of each other, hence reverse mode nests to any order; forward mode is not supported. The forward
rules call the moves themselves: an outer derivative differentiates what a rule does, and would scatter otherwise.
An index equal to the number of rows means "none" and yields zeros.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxatoms.ops.products import widened


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index], where every row of x is taken at most once and `inverse` says where it went.

    Args:
      x: [n, ...].
      index: [m] int32 rows of x; n = none (zeros).
      inverse: [n] int32 position in the output of each row of x; m = nowhere.

    Returns:
      [m, ...].
    """
    return _rows(x, index)


take_rows.defvjp(
    lambda x, index, inverse: (take_rows(x, index, inverse), (index, inverse)),
    lambda res, g: (take_rows(g, res[1], res[0]), None, None),
)


@jax.custom_vjp
def take_many(x: jax.Array, index: jax.Array, table: jax.Array) -> jax.Array:
    """x[index] where a row may be taken often; `table` [n, k] lists where each row went (m = none)."""
    return _rows(x, index)


@jax.custom_vjp
def sum_rows(x: jax.Array, table: jax.Array, index: jax.Array) -> jax.Array:
    """out[i] = sum over k of x[table[i, k]]; the transpose of `take_many`.

    Args:
      x: [m, ...].
      table: [n, k] int32 rows of x; m = none.
      index: [m] int32 the row of the output that each row of x is added to; n = none.

    Returns:
      [n, ...], float32 where x is narrower.
    """
    return jnp.sum(widened(_rows(x, table)), axis=1)


take_many.defvjp(
    lambda x, index, table: (take_many(x, index, table), (index, table)),
    lambda res, g: (sum_rows(g, res[1], res[0]).astype(g.dtype), None, None),
)
sum_rows.defvjp(
    lambda x, table, index: (sum_rows(x, table, index), (table, index, x[:0])),
    lambda res, g: (take_many(g.astype(res[2].dtype), res[1], res[0]), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def stacked(parts: list[jax.Array], axis: int) -> jax.Array:
    """`jnp.stack`. The gradient of its gradient would pad every part to the whole and add them up."""
    return jnp.stack(parts, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstacked(x: jax.Array, axis: int) -> list[jax.Array]:
    """The parts of x along `axis`; the inverse of `stacked`, and its transpose."""
    return list(jnp.unstack(x, axis=axis))


stacked.defvjp(lambda parts, axis: (stacked(parts, axis), None), lambda axis, _, g: (unstacked(g, axis),))
unstacked.defvjp(lambda x, axis: (unstacked(x, axis), None), lambda axis, _, g: (stacked(g, axis),))


def edge_slots(in_table: jax.Array, receivers: jax.Array) -> jax.Array:
    """[n_edge] slot of each edge in the flattened [n_node, k] table, n_node * k for padding (edges are sorted)."""
    (n_node, k), n_edge = in_table.shape, receivers.shape[0]
    first = in_table[receivers, 0]
    slot = receivers * k + jnp.arange(n_edge, dtype=jnp.int32) - first
    return jnp.where(first < n_edge, slot, n_node * k)


def last_of_segment(segment: jax.Array, n_segment: int) -> jax.Array:
    """[n_segment] index of the last element of each segment, `len(segment)` for an empty one.

    Args:
      segment: [n] int32, non-decreasing; values >= n_segment are padding.
      n_segment: number of segments.
    """
    ids = jnp.arange(n_segment, dtype=segment.dtype)
    last = jnp.searchsorted(segment, ids, side="right").astype(jnp.int32) - 1
    return jnp.where(_rows(segment + 1, last) == ids + 1, last, len(segment))


def _segment_scan(x: jax.Array, segment: jax.Array) -> jax.Array:
    """Running sums that restart with every segment: after pass i a row has the sum of up to 2**i rows of its segment.

    The passes (Hillis and Steele's) are one loop: written out, the levels of a scan were a tenth of the program.
    """
    n = len(x)
    rows = jnp.concatenate([jnp.full(n, -1, segment.dtype), segment])

    def add(i, x):
        first = n - jnp.left_shift(1, i)
        before = jax.lax.dynamic_slice_in_dim(jnp.concatenate([jnp.zeros_like(x), x]), first, n)
        same = jax.lax.dynamic_slice_in_dim(rows, first, n) == segment
        return x + jnp.where(same.reshape(-1, *(1,) * (x.ndim - 1)), before, 0)

    return jax.lax.fori_loop(0, (n - 1).bit_length(), add, x)


@jax.custom_vjp
def sum_segments(x: jax.Array, segment: jax.Array, last: jax.Array) -> jax.Array:
    """Sums over runs of equal `segment`: sorted, deterministic, no scatter.

    Args:
      x: [n, ...].
      segment: [n] int32, non-decreasing; values >= len(last) are padding and dropped.
      last: [n_segment] from `last_of_segment`.

    Returns:
      [n_segment, ...].
    """
    return _rows(_segment_scan(x, segment), last)


@jax.custom_vjp
def take_segments(x: jax.Array, segment: jax.Array, last: jax.Array) -> jax.Array:
    """x[segment] for a sorted `segment`; the transpose of `sum_segments`."""
    return _rows(x, segment)


sum_segments.defvjp(
    lambda x, segment, last: (sum_segments(x, segment, last), (segment, last)),
    lambda res, g: (take_segments(g, *res), None, None),
)
take_segments.defvjp(
    lambda x, segment, last: (take_segments(x, segment, last), (segment, last)),
    lambda res, g: (sum_segments(g, *res), None, None),
)

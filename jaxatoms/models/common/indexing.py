"""Gathers and sums of rows whose gradients are gathers and sums too, so that no step contains a colliding scatter.

XLA turns the gradient of a gather into a scatter-add, which is slow on CPU and needs atomics on GPU. Every function
here is given the inverse index as well, so its gradient is again a gather, or a gather and a sum. The rules are written
with `custom_vjp` in terms of each other, so reverse mode can be nested to any order; forward mode is not supported. The
forward rules call the functions themselves, because an outer derivative differentiates the operations of a rule and
would introduce a scatter otherwise. An index equal to the number of rows means "none" and yields zeros.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxatoms.ops.products import widened


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns x[index], where every row of x is taken at most once and `inverse` holds its position in the result.

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
    """Returns x[index], where a row may be taken often; `table` [n, k] lists its positions in the result (m = none)."""
    return _rows(x, index)


@jax.custom_vjp
def sum_rows(x: jax.Array, table: jax.Array, index: jax.Array) -> jax.Array:
    """Computes out[i] = sum over k of x[table[i, k]], the transpose of `take_many`.

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
    """Computes `jnp.stack`, whose own second derivative would pad every part to the full size and add the parts."""
    return jnp.stack(parts, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstacked(x: jax.Array, axis: int) -> list[jax.Array]:
    """Returns the parts of x along `axis`; this is both the inverse and the transpose of `stacked`."""
    return list(jnp.unstack(x, axis=axis))


stacked.defvjp(lambda parts, axis: (stacked(parts, axis), None), lambda axis, _, g: (unstacked(g, axis),))
unstacked.defvjp(lambda x, axis: (unstacked(x, axis), None), lambda axis, _, g: (stacked(g, axis),))


def edge_slots(in_table: jax.Array, receivers: jax.Array) -> jax.Array:
    """Returns the slot [n_edge] of each sorted edge in the flattened [n_node, k] table, or n_node * k for padding."""
    (n_node, k), n_edge = in_table.shape, receivers.shape[0]
    first = in_table[receivers, 0]
    slot = receivers * k + jnp.arange(n_edge, dtype=jnp.int32) - first
    return jnp.where(first < n_edge, slot, n_node * k)


def last_of_segment(segment: jax.Array, n_segment: int) -> jax.Array:
    """Returns the index [n_segment] of the last element of each segment, or `len(segment)` for an empty one.

    Args:
      segment: [n] int32, non-decreasing; values >= n_segment are padding.
      n_segment: number of segments.
    """
    ids = jnp.arange(n_segment, dtype=segment.dtype)
    last = jnp.searchsorted(segment, ids, side="right").astype(jnp.int32) - 1
    return jnp.where(_rows(segment + 1, last) == ids + 1, last, len(segment))


def _segment_scan(x: jax.Array, segment: jax.Array, longest: int) -> jax.Array:
    """Computes running sums that restart at every segment.

    After pass i of the scan (Hillis and Steele) a row holds the sum of up to 2**i rows of its segment. The passes are
    one loop, because unrolled they made up a tenth of the compiled program.
    """
    n = len(x)
    rows = jnp.concatenate([jnp.full(n, -1, segment.dtype), segment])

    def add(i, x):
        first = n - jnp.left_shift(1, i)
        before = jax.lax.dynamic_slice_in_dim(jnp.concatenate([jnp.zeros_like(x), x]), first, n)
        same = jax.lax.dynamic_slice_in_dim(rows, first, n) == segment
        return x + jnp.where(same.reshape(-1, *(1,) * (x.ndim - 1)), before, 0)

    return jax.lax.fori_loop(0, (min(n, longest) - 1).bit_length(), add, x)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def sum_segments(x: jax.Array, segment: jax.Array, last: jax.Array, longest: int) -> jax.Array:
    """Sums x over runs of equal `segment`, which is sorted; the result is deterministic and needs no scatter.

    Args:
      x: [n, ...].
      segment: [n] int32, non-decreasing; values >= len(last) are padding and dropped.
      last: [n_segment] from `last_of_segment`.
      longest: no segment has more rows, padding apart; a bound of few rows saves passes over x.

    Returns:
      [n_segment, ...].
    """
    return _rows(_segment_scan(x, segment, longest), last)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def take_segments(x: jax.Array, segment: jax.Array, last: jax.Array, longest: int) -> jax.Array:
    """Returns x[segment] for a sorted `segment`; this is the transpose of `sum_segments`."""
    return _rows(x, segment)


sum_segments.defvjp(
    lambda x, segment, last, longest: (sum_segments(x, segment, last, longest), (segment, last)),
    lambda longest, res, g: (take_segments(g, *res, longest), None, None),
)
take_segments.defvjp(
    lambda x, segment, last, longest: (take_segments(x, segment, last, longest), (segment, last)),
    lambda longest, res, g: (sum_segments(g, *res, longest), None, None),
)

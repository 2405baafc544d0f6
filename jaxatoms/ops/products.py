"""Matrix products whose gradients are products of the same kind, to any order of reverse mode.

In bfloat16, JAX's own gradient would multiply float32 by bfloat16 (in float32 on a GPU) and round the gradients of
weights. In float32 the results equal those of JAX.
"""

import re
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxatoms.ops.target import platform

FEW_COLUMNS = 16  # channels of angular sums in narrow networks; variant S has 32 and 64, and would lose by it


def widened(x: jax.Array) -> jax.Array:
    """Returns x in at least float32, for sums and activations of arrays that are stored in a narrower type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(x: jax.Array, w: jax.Array, how: str, dtype, turned: bool = False) -> jax.Array:
    """Multiplies [..., n, i] x [..., i, o] -> [..., n, o] in `dtype`; where `turned`, w is [..., o, i].

    Leading axes are equal. `how` is "bfloat16" (factors are rounded and sums are float32) or a precision of `jax.lax`,
    which leaves the factors as they are. Gradients have the dtypes of the factors.
    """
    batch = tuple(range(x.ndim - 2))
    dims = (((x.ndim - 1,), (w.ndim - (1 if turned else 2),)), (batch, batch))
    return _multiplied(x, w, dims, how, dtype)


def _multiplied(x: jax.Array, w: jax.Array, dims, how: str, dtype) -> jax.Array:
    if how != "bfloat16":
        common = jnp.promote_types(x.dtype, w.dtype)
        return jax.lax.dot_general(x.astype(common), w.astype(common), dims, precision=how).astype(dtype)
    # XLA:CPU multiplies bfloat16 natively only where the result is float32; cuBLAS rounds the sums as it writes them.
    result = dtype if platform() == "gpu" else jnp.float32
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, w, dims, preferred_element_type=result).astype(dtype)


def outer(x: jax.Array, g: jax.Array, how: str, dtype) -> jax.Array:
    """Multiplies [..., n, i], [..., n, o] -> [..., i, o] in `dtype`, summed over n."""
    # If the transposition were part of the product, XLA:CPU would multiply bfloat16 in float32, at half the rate, and
    # many small float32 products of few columns at a third of the rate (a quarter of a step of gemnet_oc_tiny).
    narrow = x.ndim > 2 and g.shape[-1] <= FEW_COLUMNS
    if platform() != "cpu" or x.size == 0 or not (how == "bfloat16" or narrow):
        return product(x.mT, g, how, dtype)
    if how == "bfloat16":
        x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    (n, i), o = x.shape[-2:], g.shape[-1]
    if o * (n + i) < n * i:  # transposing g moves fewer numbers
        return _swapped(product(_swapped(g, g), x, how, dtype), x)
    return product(_swapped(x, g), g, how, dtype)


def _backward(how, dtype, turned, factors, g):
    x, w = factors
    if how == "bfloat16":
        g = g.astype(jnp.bfloat16)
    gw = outer(g, x, how, w.dtype) if turned else outer(x, g, how, w.dtype)
    return product(g, w, how, x.dtype, not turned), gw


product.defvjp(lambda x, w, how, dtype, turned: (product(x, w, how, dtype, turned), (x, w)), _backward)


class Shared(NamedTuple):
    """A factor w that a product of every block shares: its gradient is one product over all blocks (`share`).

    Added up block by block, the gradient of an array over quadruplets would be read and written once for each.
    """

    w: jax.Array  # [n, i, o]
    forward: tuple[jax.Array, jax.Array] | None  # carriers, whose "gradients" are the two factors of w's gradient
    turned: tuple[jax.Array, jax.Array] | None  # the same for the product of the backward pass


def share(w: jax.Array, count: int, columns: int, how: str, twice: bool) -> list[Shared]:
    """The factor w [n, i, o] for `count` calls of `shared_product` with [n, o, columns], to each its own.

    Args:
      twice: gradients are differentiated again, and the products of the backward pass share the factor, too.
    """
    forward = _carriers(w, count, columns, how)
    turned = _carriers(w, count, columns, how) if twice else [None] * count
    return [Shared(w, *pair) for pair in zip(forward, turned, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _carriers(w: jax.Array, count: int, columns: int, how: str) -> list[tuple[jax.Array, jax.Array]]:
    # Nothing reads them. They are made of w so that `jax.vmap` maps them, and so their gradients, where it maps w.
    carrier = jnp.repeat(w[..., :1], columns, -1), jnp.repeat(w[..., :1, :].mT, columns, -1)
    return [carrier] * count


def _carried(count, columns, how, w, carriers):
    left, right = (jnp.concatenate(parts, axis=-1) for parts in zip(*carriers, strict=True))
    return (product(left, right, how, w.dtype, True),)


_carriers.defvjp(lambda w, *how: (_carriers(w, *how), w), _carried)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def shared_product(s: Shared, x: jax.Array, how: str) -> jax.Array:
    """Multiplies w [n, i, o] x [n, o, c] -> [n, i, c] in the dtype of w; `how` is that of `product`."""
    return product(s.w, x, how, s.w.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shared_turned(s: Shared, g: jax.Array, how: str, dtype) -> jax.Array:
    return product(s.w.mT, g, how, dtype)


def _shared_backward(how, kept, g):
    s, x = kept
    gx = product(s.w.mT, g, how, x.dtype) if s.turned is None else _shared_turned(s, g, how, x.dtype)
    return Shared(None, (g, x.astype(g.dtype)), None), gx


def _turned_backward(how, dtype, kept, gx):
    s, g = kept
    return Shared(None, None, (g, gx.astype(g.dtype))), product(s.w, gx, how, g.dtype)


shared_product.defvjp(lambda s, x, how: (shared_product(s, x, how), (s, x)), _shared_backward)
_shared_turned.defvjp(lambda s, g, *how: (_shared_turned(s, g, *how), (s, g)), _turned_backward)


def product_over_two(x: jax.Array, w: jax.Array, how: str, dtype) -> jax.Array:
    """Multiplies [..., i, c] x [i, c, o] -> [..., o] in `dtype`, summed over i and c; `how` is that of `product`.

    On TPUs, whose layouts have tiles, merging i and c into one axis would cost three passes over x.
    """
    if platform() == "cpu":
        flat = product(x.reshape(-1, w.shape[0] * w.shape[1]), w.reshape(-1, w.shape[2]), how, dtype)
        return flat.reshape(*x.shape[:-2], -1)
    rows = "nk"[: x.ndim - 2]
    return _contraction(x, w, f"{rows}ic,ico->{rows}o", how, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _contraction(x: jax.Array, w: jax.Array, spec: str, how: str, dtype) -> jax.Array:
    """Computes `jnp.einsum` of two factors whose common axes are all summed."""
    left, right, out = re.split(",|->", spec)
    summed = [axis for axis in left if axis in right]
    dims = (tuple(map(left.index, summed)), tuple(map(right.index, summed))), ((), ())
    found = [axis for axis in left + right if axis not in summed]
    return _multiplied(x, w, dims, how, dtype).transpose([found.index(axis) for axis in out])


def _contraction_backward(spec, how, dtype, factors, g):
    (x, w), (left, right, out) = factors, re.split(",|->", spec)
    gx = _contraction(g, w, f"{out},{right}->{left}", how, x.dtype)
    return gx, _contraction(x, g, f"{left},{out}->{right}", how, w.dtype)


_contraction.defvjp(lambda x, w, *how: (_contraction(x, w, *how), (x, w)), _contraction_backward)


def written_out(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies [..., n, i] x [..., i, o] -> [..., n, o] as a sum of i elementwise products, for small i.

    XLA fuses it with the operations before and after it. A matrix product reads and writes arrays in its own layouts;
    for few terms, the change of layout costs an accelerator more than the arithmetic.
    """
    terms = [x[..., i, None] * w[..., None, i, :] for i in range(x.shape[-1])]
    return sum(terms[1:], terms[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def written_out_once(x: jax.Array, w: jax.Array, how: str) -> jax.Array:
    """`written_out` whose gradients are products, of precision `how`, for GPUs.

    Written out, they would be a sum over the rows for each of the i terms, which all read the gradient anew.
    """
    return written_out(x, w)


def _products_backward(how, factors, g):
    x, w = factors
    return product(g, w, how, x.dtype, True), outer(x, g, how, w.dtype)


written_out_once.defvjp(lambda x, w, how: (written_out_once(x, w, how), (x, w)), _products_backward)


def swapped(x: jax.Array) -> jax.Array:
    """Returns x.mT; on a CPU it is transposed in memory.

    Batched products with a transposed first factor are slow on CPUs. This is meant for factors that many products
    share. For a factor that is used once, the branch takes longer to compile than it saves.
    """
    return _swapped(x, x)


@jax.custom_vjp
def _swapped(x: jax.Array, after: jax.Array) -> jax.Array:
    """Returns x.mT; on a CPU it is transposed in memory, and only after `after` is computed.

    Without the second condition the forward pass would keep both x and its transpose. XLA moves transpositions through
    every operation but a branch, so the transposition is put behind a branch whose condition is always true and cannot
    be evaluated by XLA. The condition reads many numbers, because XLA evaluates one whose numbers are all known
    constants.
    """
    if platform() != "cpu":
        return x.mT
    some = after[0].reshape(-1), after.reshape(len(after), -1)[:, 0]
    always = jnp.all(0 * some[0] != 1) & jnp.all(0 * some[1] != 1)
    return jax.lax.cond(always, lambda x: x.mT, lambda x: jnp.zeros(x.mT.shape, x.dtype), x)


_swapped.defvjp(lambda x, after: (_swapped(x, after), None), lambda _, g: (g.mT, None))

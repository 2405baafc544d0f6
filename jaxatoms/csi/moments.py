"""Count, mean and centred second moment of a feature cloud, accumulated on device from padded batches.

Masked batches of node features enter; a `Moments` of O(d^2) size leaves, however many structures were seen.
Everything that accumulates is float64 inside a local `jax.enable_x64`, so the global flag stays as the caller
has it. Nothing here knows a model, a dataset or the Frechet distance.
"""

import functools
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxatoms.io import open_npz
from jaxatoms.types import InputError

MATMULS = ("float64", "slices")
SLICE_BITS = 8  # bfloat16 holds integers up to 2^8 exactly
SLICE_ROWS = 1024  # 1024 products of two integers <= 2^7 sum to <= 2^24: exact in float32
N_SLICE = 5  # 2^-39 of a column's largest deviation
SLICE_PAIRS = [(i, j) for i in range(N_SLICE) for j in range(i, N_SLICE) if i + j < N_SLICE]  # rest < 2^-40


Array = np.ndarray | jax.Array


class Moments(NamedTuple):
    """Mergeable summary of rows; a leading axis, where present, runs over partial sums or blocks.

    Between updates the arrays live on the device; `to_host` fetches them.
    """

    count: np.ndarray  # type: ignore[assignment]  # [] float64, exact up to 2^53 rows
    mean: np.ndarray  # [d] float64
    scatter: np.ndarray  # [d, d] float64, sum over rows of (x - mean)(x - mean)^T


def empty_moments(width: int, n_parts: int | None = None) -> Moments:
    """Moments of no rows.

    Args:
      width: d, number of features.
      n_parts: if given, every array gets this leading axis (blocks, devices).

    Returns:
      `Moments` of zeros, host float64.
    """
    lead = () if n_parts is None else (n_parts,)
    return Moments(np.zeros(lead), np.zeros((*lead, width)), np.zeros((*lead, width, width)))


def update(moments: Moments, rows: Array, mask: Array | None = None, matmul: str | None = None) -> Moments:
    """Adds the real rows of one padded batch (Chan's update), on device.

    The buffers of `moments` are donated when they live on the device: keep only what is returned.

    Args:
      moments: sums so far, from `empty_moments` or `update`.
      rows: [n, d] features, any float type; padding rows may hold anything, NaN included.
      mask: [n] bool, True = real; None means all are.
      matmul: "float64", "slices" (exact bfloat16 pieces, for chips without fast float64), or None: "slices"
        on TPU, "float64" elsewhere.

    Returns:
      `Moments` of device arrays.

    Raises:
      InputError: the widths differ or `matmul` is unknown.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979, eq. 2.1.
    """
    matmul = _checked_matmul(moments, rows, matmul)
    with jax.enable_x64(True):
        return _update(_on_device(moments), jnp.asarray(rows), _full_mask(rows, mask), matmul)


def update_part(
    parts: Moments, part: int, rows: Array, mask: Array | None = None, matmul: str | None = None
) -> Moments:
    """Adds one padded batch to entry `part` of stacked moments `[n_parts, ...]`; see `update`."""
    if not 0 <= part < len(parts.count):
        raise InputError(
            f"part {part} does not exist: there are {len(parts.count)}; use 0..{len(parts.count) - 1}"
        )
    matmul = _checked_matmul(parts, rows, matmul)
    with jax.enable_x64(True):
        return _update_part(_on_device(parts), part, jnp.asarray(rows), _full_mask(rows, mask), matmul)


def make_sharded_update(mesh: Mesh, axis: str, matmul: str = "float64") -> Callable[..., Moments]:
    """Makes `update(parts, rows, mask)` in which every device of `mesh` keeps its own partial sums.

    No communication happens until `merge_parts`. Start from `sharded_moments(mesh, axis, width)`;
    `rows [n, d]` and `mask [n]` are split over `axis`, so n must be a multiple of the axis size.

    Example:
      step = make_sharded_update(mesh, "data")
      parts = sharded_moments(mesh, "data", 256)
      for rows, mask in batches:
          parts = step(parts, rows, mask)
      moments = merge_parts(parts)
    """
    spec = PartitionSpec(axis)

    def local(parts: Moments, rows: jax.Array, mask: jax.Array) -> Moments:
        one = _chan_update(jax.tree.map(lambda a: a[0], parts), rows, mask, matmul)
        return jax.tree.map(lambda a: a[None], one)

    step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec), donate_argnums=0)

    def sharded_update(parts: Moments, rows: jax.Array, mask: jax.Array) -> Moments:
        with jax.enable_x64(True):
            return step(parts, rows, mask)

    return sharded_update


def sharded_moments(mesh: Mesh, axis: str, width: int) -> Moments:
    """Empty partial sums `[n_device, ...]`, one per device along `axis` of `mesh`."""
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    with jax.enable_x64(True):
        return jax.device_put(empty_moments(width, mesh.shape[axis]), sharding)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the union of two disjoint sets of rows (host float64).

    Raises:
      InputError: the widths differ.
    """
    a, b = to_host(first), to_host(second)
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"cannot merge moments of widths {a.mean.shape[-1]} and {b.mean.shape[-1]}: "
            "extract both with the same model and layer"
        )
    total = a.count + b.count
    share = b.count / total if total else 0.0
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.count * share)
    return Moments(total, a.mean + delta * share, scatter)


def merge_all(moments: Iterable[Moments]) -> Moments:
    """Moments of the union of several disjoint sets; `merge` applied from left to right."""
    return functools.reduce(merge, moments)


def merge_parts(parts: Moments) -> Moments:
    """Merges stacked moments `[n_parts, ...]` (blocks, or one entry per device) into one."""
    host = to_host(parts)
    return merge_all(Moments(*entry) for entry in zip(*host, strict=True))


def to_host(moments: Moments) -> Moments:
    """The same moments as NumPy float64 arrays."""
    return Moments(*(np.asarray(a, np.float64) for a in moments))


def covariance(moments: Moments) -> np.ndarray:
    """Unbiased covariance `scatter / (count - 1)`, `[d, d]` or `[n_parts, d, d]` float64.

    Raises:
      InputError: fewer than two rows were seen.
    """
    host = to_host(moments)
    if np.any(host.count < 2):
        raise InputError(
            f"covariance needs at least 2 feature rows, got {int(np.min(host.count))}: add structures"
        )
    return host.scatter / (host.count - 1)[..., None, None]


def moments_of_rows(rows: np.ndarray, batch_rows: int = 32_768, matmul: str | None = None) -> Moments:
    """Moments of an array in memory, `rows` [n, d], streamed in batches of one shape; host float64 result."""
    total = empty_moments(rows.shape[1])
    batch_rows = min(batch_rows, 1 << max(0, len(rows) - 1).bit_length())
    for start in range(0, len(rows), batch_rows):
        piece = rows[start : start + batch_rows]
        missing = batch_rows - len(piece)
        padded = np.pad(piece, ((0, missing), (0, 0))) if missing else piece
        total = update(total, padded, np.arange(batch_rows) < len(piece), matmul)
    return to_host(total)


def save_moments(path: str | os.PathLike, moments: Moments) -> None:
    """Writes `moments.npz` with float64 arrays `count`, `mean`, `scatter` (mergeable across processes)."""
    np.savez(path, **to_host(moments)._asdict())


def load_moments(path: str | os.PathLike) -> Moments:
    """Reads what `save_moments` wrote.

    Raises:
      InputError: the file is missing, not an npz archive, or lacks one of the three arrays.
    """
    with open_npz(path, "is not a readable moments file", "remove it and write it again") as archive:
        missing = [name for name in Moments._fields if name not in archive]
        if missing:
            raise InputError(f"{path} lacks array {missing[0]!r}: write it with save_moments")
        return Moments(*(archive[name] for name in Moments._fields))


def _checked_matmul(moments: Moments, rows: Array, matmul: str | None) -> str:
    if rows.ndim != 2 or rows.shape[1] != moments.mean.shape[-1]:
        raise InputError(
            f"features have shape {tuple(rows.shape)}, expected [rows, {moments.mean.shape[-1]}]: "
            "use one model and layer for a whole set"
        )
    if matmul is None:
        return "slices" if jax.default_backend() == "tpu" else "float64"
    if matmul not in MATMULS:
        raise InputError(f"unknown matmul {matmul!r}; use one of {', '.join(MATMULS)}")
    return matmul


def _on_device(moments: Moments) -> Moments:
    return Moments(*(jnp.asarray(a, jnp.float64) for a in moments))  # type: ignore[arg-type]


def _full_mask(rows: Array, mask: Array | None) -> jax.Array:
    return jnp.ones(rows.shape[0], bool) if mask is None else jnp.asarray(mask, bool)


def _chan_update(moments: Moments, rows: jax.Array, mask: jax.Array, matmul: str) -> Moments:
    """One Chan update in float64; call under `enable_x64`."""
    real = mask[:, None]
    x = jnp.where(real, rows, 0).astype(jnp.float64)
    n = jnp.sum(mask, dtype=jnp.float64)
    mean = jnp.sum(x, axis=0) / jnp.maximum(n, 1)
    centred = jnp.where(real, x - mean, 0)
    product = _gram_slices if matmul == "slices" else _gram_float64
    total = moments.count + n
    share = n / jnp.maximum(total, 1)
    delta = mean - moments.mean
    scatter = moments.scatter + product(centred) + jnp.outer(delta, delta) * (moments.count * share)
    return Moments(total, moments.mean + delta * share, scatter)


@functools.partial(jax.jit, static_argnames="matmul", donate_argnums=0)
def _update(moments: Moments, rows: jax.Array, mask: jax.Array, matmul: str) -> Moments:
    return _chan_update(moments, rows, mask, matmul)


@functools.partial(jax.jit, static_argnames="matmul", donate_argnums=0)
def _update_part(parts: Moments, part: jax.Array, rows: jax.Array, mask: jax.Array, matmul: str) -> Moments:
    one = _chan_update(jax.tree.map(lambda a: a[part], parts), rows, mask, matmul)
    return jax.tree.map(lambda a, b: a.at[part].set(b), parts, one)


def _gram_float64(x: jax.Array) -> jax.Array:
    return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)


def _gram_slices(x: jax.Array) -> jax.Array:
    """x^T x of float64 `x [n, d]` from bfloat16 products that are exact in float32.

    Each column is scaled to +-64 and cut into five integers of 8 bits; products of integers over 1024 rows
    fit float32 exactly, and the O(d^2) sums of blocks are float64.

    Source: the error-free slicing of Ozaki et al., Numer. Algorithms 59, 95 (2012).
    """
    n, d = x.shape
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=0), jnp.finfo(jnp.float32).tiny)
    slices = _integer_slices(x / scale * 2.0 ** (SLICE_BITS - 2))
    n_block = -(-n // SLICE_ROWS)
    pad = ((0, 0), (0, n_block * SLICE_ROWS - n), (0, 0))
    blocks = jnp.pad(slices, pad).reshape(len(slices), n_block, SLICE_ROWS, d).swapaxes(0, 1)
    total, _ = jax.lax.scan(lambda s, b: (s + _block_gram(b), None), jnp.zeros_like(x, shape=(d, d)), blocks)
    return total * jnp.outer(scale, scale) * 4.0 ** (2 - SLICE_BITS)


def _integer_slices(x: jax.Array) -> jax.Array:
    """[n, d] in +-64 -> [5, n, d] bfloat16 integers, slice k weighing 2^(-8 k)."""
    pieces = []
    for _ in range(N_SLICE):
        pieces.append(jnp.round(x))
        x = (x - pieces[-1]) * 2.0**SLICE_BITS
    return jnp.stack(pieces).astype(jnp.bfloat16)


def _block_gram(block: jax.Array) -> jax.Array:
    """[5, 1024, d] integer slices -> [d, d] float64."""
    d = block.shape[-1]
    total = jnp.zeros((d, d), jnp.float64)
    for i, j in SLICE_PAIRS:
        exact = jnp.matmul(block[i].T, block[j], preferred_element_type=jnp.float32).astype(jnp.float64)
        total += (exact if i == j else exact + exact.T) * 2.0 ** (-SLICE_BITS * (i + j))
    return total

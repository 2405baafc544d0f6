"""Positions -> edge vectors and angular features, float32 (or float64) throughout, finite in every derivative.

Directions d -> b -> a <- c of a quadruplet enter through real spherical harmonics (triplets) and through Fourier
features of azimuths around the middle edge (quadruplets), so that no pair of edges is ever enumerated.
"""

from typing import NamedTuple

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.graphs.batch import GraphBatch, PaddedEdges
from jaxatoms.models.common import indexing
from jaxatoms.ops.target import platform

FAR = 1e3  # A; length of padding edges: finite, and far outside the envelope
BENT_SINE = 0.25  # sine of an angle (14.5 degrees from a straight line) from which on a smooth quadruplet is whole


class EdgeGeometry(NamedTuple):
    """Lengths and directions of the edges of one graph; padding edges are FAR along x."""

    distance: jax.Array  # [n_edge] A
    direction: jax.Array  # [n_edge, 3] unit vector from sender to receiver


class Pairs(NamedTuple):
    """The dense (receiver, sender) pair of each edge; pairs are sorted because the edges are."""

    pair: jax.Array  # [n_edge] int32 (graph * n + receiver's rank) * n + sender's rank
    last: jax.Array  # [n_graph * n * n] from `indexing.last_of_segment`
    longest: int  # no pair has more images: as many as edges arrive at an atom, where the graph's table says how many


def edge_pairs(batch: GraphBatch, edges: PaddedEdges) -> Pairs:
    """Dense pair indices of a graph sorted by (receiver, sender)."""
    n_graph, n = batch.node_table.shape
    senders, receivers = batch.node_slot[edges.senders], batch.node_slot[edges.receivers]
    pair = jnp.where(receivers < n_graph * n, receivers * n + senders % n, n_graph * n * n)
    return Pairs(pair, indexing.last_of_segment(pair, n_graph * n * n), _most_at_an_atom(edges))


def _most_at_an_atom(edges: PaddedEdges) -> int:
    """A bound on the edges that arrive at one atom."""
    return len(edges.receivers) if edges.in_table is None else edges.in_table.shape[1]


def edge_geometry(batch: GraphBatch, positions: jax.Array, edges: PaddedEdges, pairs: Pairs) -> EdgeGeometry:
    """Edge vectors `positions[receivers] - positions[senders] + shifts @ cell`, through dense pair differences.

    Going through the pairs makes the gradient with respect to positions two dense sums instead of a scatter.

    Args:
      positions: [n_node, 3] A (an argument of its own so that forces can be -dE/dpositions).
    """
    n_graph, n = batch.node_table.shape
    dense = indexing.take_rows(positions, batch.node_table.reshape(-1), batch.node_slot).reshape(n_graph, n, 3)
    difference = (dense[:, :, None] - dense[:, None, :]).reshape(-1, 3)
    cell = _cells(batch, edges).astype(positions.dtype)
    # Not a matmul: reduced-precision matmul units must not touch geometry.
    offset = jnp.sum(edges.shifts[:, :, None].astype(positions.dtype) * cell, axis=1)
    vector = indexing.take_segments(difference, *pairs) + offset
    # Mask before the norm: sqrt has an infinite slope at the zero vector of a padding edge.
    real = (pairs.pair < len(pairs.last))[:, None]
    vector = jnp.where(real, vector, jnp.asarray([FAR, 0, 0], vector.dtype))
    distance = jnp.sqrt(jnp.sum(vector**2, axis=-1))
    return EdgeGeometry(distance, vector / distance[:, None])


def _cells(batch: GraphBatch, edges: PaddedEdges) -> jax.Array:
    """[n_edge, 3, 3] the cell of each edge's structure; its gradient, which the stress needs, has no scatter."""
    of_atoms = indexing.take_many(batch.cell, batch.node_graph, batch.node_table)
    last = indexing.last_of_segment(edges.receivers, len(of_atoms))
    return indexing.take_segments(of_atoms, edges.receivers, last, _most_at_an_atom(edges))


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner product of 3-vectors over the last axis, without a matmul."""
    return jnp.sum(a * b, axis=-1)


def legendre(z: jax.Array, count: int) -> jax.Array:
    """P_l(z), l = 0..count-1, stacked on a new last axis."""
    values = [jnp.ones_like(z), z]
    for degree in range(2, count):
        values.append(((2 * degree - 1) * z * values[-1] - (degree - 1) * values[-2]) / degree)
    return indexing.stacked(values[:count], axis=-1)


def harmonic_norms(count: int) -> np.ndarray:
    """[count] sqrt((2l+1)/(4 pi)): Y_l(z) = norm * P_l(z) is the m = 0 spherical harmonic."""
    return np.sqrt((2 * np.arange(count) + 1) / (4 * np.pi))


def num_components(count: int) -> int:
    """How many numbers hold the components (l, m) of `count` degrees: count**2, on a GPU rounded up by zeros.

    cuBLAS multiplies rows of 8 numbers; XLA would copy 49 components into 56 before each product of every block.
    """
    return -(-(count**2) // 8) * 8 if platform() == "gpu" else count**2


def harmonics(direction: jax.Array, count: int) -> jax.Array:
    """[..., num_components] real harmonics of unit vectors with sum_m y_lm(v) y_lm(w) = P_l(v . w)."""
    irreps = e3nn.Irreps.spherical_harmonics(count - 1)
    # The library multiplies with the backend's default precision: tf32 on a GPU, a bfloat16 pass on a TPU.
    with jax.default_matmul_precision("highest"):
        found = e3nn.spherical_harmonics(irreps, direction, normalize=False, normalization="norm").array
    zeros = jnp.zeros((*found.shape[:-1], num_components(count) - count**2), found.dtype)
    return jnp.concatenate([found, zeros], axis=-1) if zeros.size else found


def degree_of_component(count: int) -> np.ndarray:
    """[count, num_components] one-hot matrix: which degree l each harmonic component (l, m) has; zeros have none."""
    degree = np.repeat(np.arange(count), 2 * np.arange(count) + 1)
    return np.pad(np.eye(count)[:, degree], ((0, 0), (0, num_components(count) - count**2)))


def frame(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two unit vectors that complete `direction` [..., 3] to a right-handed frame; the gauge cancels later."""
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(direction), axis=-1), 3, dtype=direction.dtype)
    first = jnp.cross(axis, direction)
    first = first / jnp.sqrt(dot(first, first))[..., None]
    return first, jnp.cross(direction, first)


class Azimuth(NamedTuple):
    """Direction of v around an axis: its angle with the axis, harmonics of its azimuth, collinearity."""

    cosine: jax.Array  # [...]
    squared_sine: jax.Array  # [...]
    phases: tuple[jax.Array, ...]  # 2 * count - 1 of [...]: 1, cos(k alpha), sin(k alpha), k = 1..count-1
    collinear: jax.Array  # [...] bool


def azimuth(v: jax.Array, axis: jax.Array, first: jax.Array, second: jax.Array, count: int) -> Azimuth:
    """Fourier features of the azimuth of unit vectors `v` around `axis`; all arguments [..., 3], broadcast.

    Exactly collinear vectors have no azimuth; the reference's clamp of |p x q| at 1e-9 then gives a dihedral of 90
    degrees. They are reported as `collinear` below a threshold that absorbs rounding of the dtype.
    """
    x, y = dot(v, first), dot(v, second)
    squared = x * x + y * y
    threshold = 1e-9 if squared.dtype == jnp.float64 else 1e-5
    collinear = squared < threshold**2
    scale = jax.lax.rsqrt(jnp.where(collinear, 1.0, squared))
    c1, s1 = jnp.where(collinear, 1.0, x * scale), jnp.where(collinear, 0.0, y * scale)
    cosines, sines = [jnp.ones_like(c1), c1], [jnp.zeros_like(s1), s1]
    for _ in range(2, count):
        c, s = cosines[-1], sines[-1]
        cosines.append(c * c1 - s * s1)
        sines.append(c * s1 + s * c1)
    return Azimuth(dot(v, axis), squared, (*cosines, *sines[1:]), collinear)


def bend(squared_sine: jax.Array) -> jax.Array:
    """0 on a straight line, 1 from a sine of `BENT_SINE` on; twice continuously differentiable and flat at both ends.

    Near a line it falls with the sixth power of the sine, which makes up for harmonics of the azimuth up to order 6.
    Source: ours, not published (docs/reference/gemnet_oc.md, Smooth quadruplets).
    """
    u = jnp.minimum(squared_sine / BENT_SINE**2, 1.0)
    return u**3 * (10 - 15 * u + 6 * u**2)


def legendre_of_cosine(count: int) -> np.ndarray:
    """[count, count] a_lk with P_l(cos t) = sum_k a_lk cos(k t)."""
    t = np.linspace(0, np.pi, 4 * count)
    cosines = np.cos(np.arange(count)[:, None] * t)
    values = np.stack([np.polynomial.Legendre.basis(degree)(np.cos(t)) for degree in range(count)])
    return np.round(np.linalg.lstsq(cosines.T, values.T, rcond=None)[0].T, 12)

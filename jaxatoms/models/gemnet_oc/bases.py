"""Radial and angular bases, projected once per forward pass and shared by all interaction blocks.

The angular sums are prepared in moment form. With real harmonics y_lm normalised so that
sum_m y_lm(v) y_lm(w) = P_l(v . w), a sum over the neighbours b of an atom,
sum_b Y_l(v_f . v_b) x_b, equals c_l sum_m y_lm(v_f) A_lm with the moments A_lm = sum_b y_lm(v_b) x_b; the pair
b = f, which the network excludes, is subtracted. Quadruplets use Fourier moments of the azimuth around the
middle edge in the same way. Both are exact, and linear in the number of edges.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import stacked, sum_segments, take_many, take_rows, unstacked
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc import geometry as geo
from jaxatoms.models.gemnet_oc import initializers
from jaxatoms.models.gemnet_oc.concat import ConcatLayer
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.indices import Indices
from jaxatoms.models.gemnet_oc.layers import Dense
from jaxatoms.ops.products import Shared, product, swapped, written_out
from jaxatoms.ops.target import platform


class TripletBasis(NamedTuple):
    """Projects harmonic moments of the incoming edges onto each outgoing main edge (e2e, a2e)."""

    project: jax.Array  # [n_node, k_main * n_cbf, n_lm] as the policy stores edge arrays
    self_weight: jax.Array  # [n_node, k_main, n_cbf] weight of the excluded pair in = out


class QuadBasis(NamedTuple):
    """Fourier moments of d -> b around b -> a, and their projection onto each edge c -> a."""

    circular: jax.Array  # [E_qint, k_main, n_cbf] as the policy stores edge arrays
    phases: jax.Array  # [E_qint, n_moment, k_main] zero where masked
    project: jax.Array | Shared  # [n_node, k_main * n_sbf, n_moment * k_qint] stored likewise
    self_weight: jax.Array  # [n_node, k_main, n_sbf, k_qint] weight of the excluded case c = d


class BasisOutput(NamedTuple):
    """Everything geometric that the blocks read; E main edges, slots [n_node, k]."""

    radial: jax.Array  # [E, n_radial] as the policy stores edge arrays, and so are the gates
    gate_e2e: jax.Array  # [E, n_rbf]
    gate_quad: jax.Array  # [E, n_rbf]
    gate_e2a: jax.Array  # [E, n_rbf]
    gate_a2e: jax.Array  # [E_a2ee2a, n_rbf]
    gate_atom: jax.Array  # [E, n_rbf]
    gate_out: jax.Array  # [E, n_rbf]
    pair: jax.Array  # [n_graph, n, n_rbf, n] radial basis of all images of a pair (receiver, basis, sender)
    main_harmonics: jax.Array  # [n_node, n_lm, k_main]
    a2ee2a_harmonics: jax.Array  # [n_node, n_lm, k_a2ee2a]
    e2e: TripletBasis
    a2e: TripletBasis
    e2a: jax.Array  # [n_node, n_cbf, k_main] the whole e2a sum, folded into one weight per incoming edge
    quad: QuadBasis
    directions: jax.Array  # [E, 3]
    distances: jax.Array  # [E]


class BasisEmbedding(nnx.Module):
    """Radial basis -> [n_edge, n_out, n_spherical]; `kernel` [n_radial, n_out * n_spherical]."""

    def __init__(self, config: GemNetOCConfig, n_out: int, n_spherical: int, rngs, precision):
        kernel = initializers.he_orthogonal_basis(rngs.params(), config.num_radial, n_spherical, n_out)
        self.kernel = nnx.Param(kernel)
        self.n_out, self.n_spherical, self.precision = n_out, n_spherical, precision

    def __call__(self, radial: jax.Array) -> jax.Array:
        return self.precision.dot(radial, self.kernel[...]).reshape(-1, self.n_out, self.n_spherical)

    def combined(self, radial: jax.Array, series: np.ndarray) -> jax.Array:
        """[n_edge, j, n_out, l]: the functions (l, m) of as many degrees as orders, summed over m with series [m, j].

        The kernel is combined instead of its much larger products.
        """
        count = math.isqrt(self.n_spherical)
        kernel = self.kernel[...].reshape(-1, self.n_out, count, count)
        # Written out: as a product of 7 terms it is one that XLA's GPU compiler finds no tiles for.
        kernel = jnp.sum(kernel[:, None] * series.T[:, None, None].astype(kernel.dtype), axis=-1)
        flat = self.precision.dot(radial, kernel.reshape(len(kernel), -1))
        return flat.reshape(-1, series.shape[1], self.n_out, count)


def radial_basis(distance: jax.Array, cutoff: float, num_radial: int) -> jax.Array:
    """[n_edge, num_radial] Gaussians of distance / cutoff times the polynomial envelope; 0 from the cutoff on.

    Source: GemNet-OC (arXiv 2204.02782); envelope exponent 5, Gaussian width of one spacing.
    """
    x = (distance / cutoff)[:, None]
    inside = x < 1
    x = jnp.where(inside, x, 1.0)
    envelope = 1 + x**5 * (-21 + x * (35 - 15 * x))
    centres = jnp.linspace(0, 1, num_radial, dtype=distance.dtype)
    gaussians = jnp.exp(-0.5 * (num_radial - 1) ** 2 * (x - centres) ** 2)
    return jnp.where(inside, envelope * gaussians, 0.0)


class Bases(nnx.Module):
    """All basis projections of GemNet-OC. Attribute names follow the checkpoints (aeint: a2e, eaint: e2a)."""

    def __init__(self, config: GemNetOCConfig, rngs: nnx.Rngs, precision: Precision):
        c, args = config, dict(rngs=rngs, precision=precision)
        self.mlp_rbf_qint = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_cbf_qint = BasisEmbedding(c, c.emb_size_cbf, c.num_spherical, **args)
        self.mlp_sbf_qint = BasisEmbedding(c, c.emb_size_sbf, c.num_spherical**2, **args)
        self.mlp_rbf_aeint = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_cbf_aeint = BasisEmbedding(c, c.emb_size_cbf, c.num_spherical, **args)
        self.mlp_rbf_eaint = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_cbf_eaint = BasisEmbedding(c, c.emb_size_cbf, c.num_spherical, **args)
        self.mlp_rbf_aint = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_rbf_tint = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_cbf_tint = BasisEmbedding(c, c.emb_size_cbf, c.num_spherical, **args)
        self.mlp_rbf_h = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.mlp_rbf_out = Dense(c.num_radial, c.emb_size_rbf, **args)
        self.edge_emb = ConcatLayer(c.emb_size_atom, c.num_radial, c.emb_size_edge, args)
        self.config, self.precision = config, precision

    @jax.named_scope("bases")
    def __call__(self, batch: GraphBatch, positions: jax.Array, indices: Indices) -> BasisOutput:
        """Bases of a batch at `positions` [n_node, 3] A."""
        geometry = {
            name: geo.edge_geometry(batch, positions, edges, geo.edge_pairs(batch, edges))
            for name, edges in [("main", batch.main), ("a2ee2a", batch.a2ee2a), ("qint", batch.qint)]
        }
        radial = {name: self._radial(g.distance) for name, g in geometry.items()}
        rad, count, store = radial["main"], self.config.num_spherical, self.precision.store
        stored = store(rad)
        main_v = self._to_slots(geometry["main"].direction, batch.main.in_table, indices.main_slot)
        a2ee2a_v = self._to_slots(geometry["a2ee2a"].direction, batch.a2ee2a.in_table, indices.a2ee2a_slot)
        main_y, a2ee2a_y = geo.harmonics(main_v, count), geo.harmonics(a2ee2a_v, count)
        return BasisOutput(
            radial=stored,
            gate_e2e=self.mlp_rbf_tint(stored),
            gate_quad=self.mlp_rbf_qint(stored),
            gate_e2a=self.mlp_rbf_eaint(stored),
            gate_a2e=self.mlp_rbf_aeint(store(radial["a2ee2a"])),
            gate_atom=self.mlp_rbf_h(stored),
            gate_out=self.mlp_rbf_out(stored),
            pair=self._pair(batch, positions),
            main_harmonics=swapped(main_y),
            a2ee2a_harmonics=swapped(a2ee2a_y),
            e2e=self._triplet(self.mlp_cbf_tint(rad), main_y, batch, indices),
            a2e=self._triplet(self.mlp_cbf_aeint(rad), main_y, batch, indices),
            e2a=self._e2a(self.mlp_cbf_eaint(radial["a2ee2a"]), main_y, a2ee2a_y, batch, indices),
            quad=self._quad(radial, geometry["qint"].direction, main_v, batch, indices),
            directions=geometry["main"].direction,
            distances=geometry["main"].distance,
        )

    def for_blocks(self, basis: BasisOutput) -> list[BasisOutput]:
        """The bases for every block; on a GPU the largest array, a projection, knows that all multiply by it.

        A CPU, which gains no bandwidth by it, takes a tenth longer for a step so.
        """
        c, quad = self.config, basis.quad
        if platform() != "gpu":
            return [basis] * c.num_blocks
        shared = self.precision.share(quad.project, c.num_blocks, c.emb_size_quad_in, twice=not c.direct_forces)
        return [basis._replace(quad=quad._replace(project=project)) for project in shared]

    def _radial(self, distance: jax.Array) -> jax.Array:
        return radial_basis(distance, self.config.rbf_cutoff, self.config.num_radial)

    def _to_slots(self, direction: jax.Array, table: jax.Array, slot: jax.Array) -> jax.Array:
        """[n_node, k, 3] directions; empty slots point along x so that every feature stays finite."""
        out = take_rows(direction, table.reshape(-1), slot).reshape(*table.shape, 3)
        empty = (table == direction.shape[0])[:, :, None]
        return jnp.where(empty, jnp.asarray([1, 0, 0], out.dtype), out)

    def _pair(self, batch: GraphBatch, positions: jax.Array) -> jax.Array:
        """[n_graph, n, n_rbf, n] the a2a radial basis, summed over the images of each pair of atoms."""
        pairs = geo.edge_pairs(batch, batch.a2a)
        distance = geo.edge_geometry(batch, positions, batch.a2a, pairs).distance
        q = sum_segments(self.mlp_rbf_aint(self._radial(distance)), *pairs)
        n_graph, n = batch.node_table.shape
        return q.reshape(n_graph, n, n, -1).transpose(0, 1, 3, 2)

    def _triplet(self, weights: jax.Array, harmonics: jax.Array, batch, indices: Indices) -> TripletBasis:
        """Projection of moments onto main edges from per-edge weights [E, n_cbf, n_spherical]."""
        project, self_weight = self._expand(weights, harmonics, batch.main.in_table, indices.main_slot)
        return TripletBasis(_as_rows(self.precision.store(project)), self_weight)

    def _expand(self, weights, harmonics, table, slot) -> tuple[jax.Array, jax.Array]:
        """w_il, y_lm -> c_l w_il y_lm in slots, and the self weight sum_l c_l w_il (since P_l(1) = 1)."""
        count = self.config.num_spherical
        norms = jnp.asarray(geo.harmonic_norms(count), weights.dtype)
        scaled = weights * norms
        flat = take_rows(scaled, table.reshape(-1), slot).reshape(*table.shape, *weights.shape[1:])
        one_hot = jnp.asarray(geo.degree_of_component(count), weights.dtype)
        expanded = jnp.matmul(flat, one_hot, precision="highest")
        return expanded * harmonics[:, :, None, :], jnp.sum(flat, axis=-1)

    def _e2a(self, weights, main_y, a2ee2a_y, batch: GraphBatch, indices: Indices) -> jax.Array:
        """[n_node, n_cbf, k_main] weight of every incoming main edge in the e2a sum of its atom.

        The e2a interaction sums over all pairs (incoming main edge, outgoing a2ee2a edge) of an atom, so the sum
        over outgoing edges does not depend on the features: it is done here, once for all blocks.
        """
        table = batch.a2ee2a.in_table
        project, self_weight = self._expand(weights, a2ee2a_y, table, indices.a2ee2a_slot)
        total = jnp.sum(project, axis=1)  # [N, n_cbf, n_lm]
        weight = product(total, main_y, "highest", total.dtype, True)
        same = take_rows(self_weight.reshape(-1, total.shape[1]), indices.twin_a2ee2a, indices.twin_main)
        return weight - same.reshape(*table.shape[:1], -1, total.shape[1]).mT

    def _quad(self, radial, qint_v, main_v, batch: GraphBatch, indices: Indices) -> QuadBasis:
        count = self.config.num_spherical
        first, second = geo.frame(qint_v)
        n_node, k = batch.main.in_table.shape
        from_b = take_many(main_v.reshape(n_node, -1), batch.qint.senders, batch.qint.out_table)
        inner = geo.azimuth(from_b.reshape(-1, k, 3), qint_v[:, None], first[:, None], second[:, None], count)
        weights = self.mlp_cbf_qint(radial["qint"]) * jnp.asarray(geo.harmonic_norms(count), qint_v.dtype)
        circular = product(self._polar(inner), weights, "highest", weights.dtype, True)
        regular, collinear = indices.in_mask & ~inner.collinear, indices.in_mask & inner.collinear
        phases = [jnp.where(regular, wave, 0) for wave in inner.phases] + [collinear.astype(qint_v.dtype)]
        project, self_weight = self._quad_project(radial["main"], qint_v, first, second, main_v, batch, indices)
        return QuadBasis(self.precision.store(circular), stacked(phases, 1), project, self_weight)

    def _polar(self, around: geo.Azimuth) -> jax.Array:
        """[..., n_spherical] P_l of the angle with the middle edge; of smooth quadruplets times their factor `bend`.

        The factor of d scales x', which is linear in the circular basis, and so reaches the excluded case c = d too.
        """
        legendre = geo.legendre(around.cosine, self.config.num_spherical)
        return legendre * geo.bend(around.squared_sine)[..., None] if self.config.smooth_quadruplets else legendre

    def _quad_project(self, radial, qint_v, first, second, main_v, batch, indices: Indices):
        """The spherical basis of c -> a, contracted with the Fourier expansion of P_l(cos theta)."""
        count, table = self.config.num_spherical, batch.qint.in_table
        n_node, k_q = table.shape
        frames = jnp.concatenate([qint_v, first, second], axis=-1)
        frames = take_rows(frames, table.reshape(-1), indices.qint_slot).reshape(n_node, 1, k_q, 9)
        axis, first, second = jnp.split(frames, 3, axis=-1)
        outer = geo.azimuth(main_v[:, :, None], axis, first, second, count)  # [N, k, k_q]
        norms = jnp.asarray(geo.harmonic_norms(count), radial.dtype)
        mask = indices.out_mask.transpose(0, 2, 1)[..., None]
        polar = jnp.where(mask, self._polar(outer) * norms, 0)
        in_table = batch.main.in_table
        slots = take_rows(radial, in_table.reshape(-1), indices.main_slot)
        series = geo.legendre_of_cosine(count) * geo.harmonic_norms(count)[:, None]
        weights = self.mlp_sbf_qint.combined(slots, series).reshape(*in_table.shape, count, -1, count)
        moments, own = _fourier_moments(_sum_degrees(weights, polar), outer.phases, outer.collinear)
        project = stacked([self.precision.store(moment) for moment in moments], -2)
        return _as_rows(project.reshape(*project.shape[:3], -1)), own


def _as_rows(project: jax.Array) -> jax.Array:
    """[n_node, k, i, m] -> [n_node, k * i, m]."""
    return project.reshape(len(project), -1, project.shape[-1])


def _sum_degrees(weights: jax.Array, polar: jax.Array) -> list[jax.Array]:
    """[N, k, j, i, l], [N, k, q, l] -> j of [N, k, i, q], summed over the few l."""
    n, k, count, i, _ = weights.shape
    if platform() != "cpu":
        return [written_out(weights[:, :, j], polar.mT) for j in range(count)]
    waves = product(weights.reshape(n, k, count * i, -1), polar, "highest", polar.dtype, True)
    return unstacked(waves.reshape(n, k, count, i, -1), 2)


def _fourier_moments(waves: list[jax.Array], phases, collinear: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """The cosine series sum_k waves[k] cos(k t) as one weight per moment, and its value at t = 0.

    Args:
      waves: of [..., i, q].
      phases: of [..., q], from `azimuth`; collinear: [..., q], where t counts as 90 degrees.

    Returns:
      weights, each [..., i, q], of the moments 1, cos(k a), sin(k a) and "collinear inside", and [..., i, q].
    """
    count = len(waves)
    at_right_angle = sum(waves[4::4], waves[0]) - sum(waves[2::4])
    turning = [jnp.where(collinear, 0, wave)[..., None, :] for wave in phases]
    collinear = collinear[..., None, :]
    moments = [jnp.where(collinear, at_right_angle, waves[0])]
    moments += [waves[k] * turning[k] for k in range(1, count)]
    moments += [waves[k] * turning[count - 1 + k] for k in range(1, count)]
    own = jnp.where(collinear, at_right_angle, sum(waves[1:], waves[0]))
    return [*moments, at_right_angle], own

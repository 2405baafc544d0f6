"""Interaction and output blocks of GemNet-OC over flat edges; attribute names follow the checkpoints."""

import jax
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import sum_rows, take_many, take_rows
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.bases import BasisOutput, QuadBasis, TripletBasis
from jaxatoms.models.gemnet_oc.concat import ConcatLayer
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.indices import Indices
from jaxatoms.models.gemnet_oc.layers import Dense, ScaleFactor, apply_all, residuals
from jaxatoms.ops.dense_chain import settled
from jaxatoms.ops.products import widened

INV_SQRT_2, INV_SQRT_3 = 0.5**0.5, 3**-0.5


def silent(name: str, **arrays):
    """The default observer: blocks report named intermediates to `observe`, for tests and scale fitting."""


def _project(basis: TripletBasis, moments: jax.Array, same: jax.Array, precision: Precision) -> jax.Array:
    """[n_node, k_main, n_cbf, c] projected angular sums, the pair in = out removed; `same` [n_node, k_main, c]."""
    z = precision.dot(basis.project, moments).reshape(*basis.self_weight.shape, -1)
    return z - basis.self_weight[..., None] * widened(same)[:, :, None, :]


class Bilinear(nnx.Module):
    """The dense map after an angular sum; a module of its own because checkpoints name it so."""

    def __init__(self, n_in, n_out, args):
        self.bilinear = Dense(n_in, n_out, **args)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., i, c] -> [rows, n_out] where i * c = n_in; rows are all that comes before."""
        kernel = self.bilinear.kernel[...].reshape(*x.shape[-2:], -1)
        return self.bilinear.precision.dot_over_two(x, kernel).reshape(-1, kernel.shape[-1])


class SwapUp(nnx.Module):
    """Base of the edge interactions: up-projections of an edge and of its counter-edge, averaged."""

    def _init_up(self, n_in: int, n_out: int, args):
        self.up_projection_ca = Dense(n_in, n_out, act=True, **args)
        self.up_projection_ac = Dense(n_in, n_out, act=True, **args)

    def _up(self, slots: jax.Array, batch: GraphBatch, indices: Indices) -> jax.Array:
        """[n_node * k_main, c] -> [E, n_out]."""
        y = take_rows(slots, indices.main_slot, batch.main.in_table.reshape(-1))
        swapped = take_rows(y, batch.swap, batch.swap)
        return (self.up_projection_ca(y) + self.up_projection_ac(swapped)) * INV_SQRT_2


class TripletEdge(SwapUp):
    """Triplet sums onto main edges: from main edges (e2e) or, with atom input, from a2ee2a edges (a2e)."""

    def __init__(self, c: GemNetOCConfig, n_in: int, args):
        self.dense_ba = Dense(n_in, n_in, act=True, **args)
        self.precision = args["precision"]
        self.mlp_rbf = Dense(c.emb_size_rbf, n_in, **args)
        self.scale_rbf = ScaleFactor()
        self.down_projection = Dense(n_in, c.emb_size_trip_in, act=True, **args)
        self.mlp_cbf = Bilinear(c.emb_size_cbf * c.emb_size_trip_in, c.emb_size_trip_out, args)
        self.scale_cbf_sum = ScaleFactor()
        self._init_up(c.emb_size_trip_out, c.emb_size_edge, args)

    def e2e(self, m, basis: BasisOutput, batch: GraphBatch, indices: Indices, observe=silent):
        """[E, emb_edge] from edge states m [E, emb_edge]."""
        table = batch.main.in_table
        x = self._gate(self.dense_ba(m), basis.gate_e2e, observe)
        slots = take_rows(x, table.reshape(-1), indices.main_slot).reshape(*table.shape, -1)
        moments = self.precision.weighted_sums(basis.main_harmonics, slots)
        z = _project(basis.e2e, moments, slots, self.precision)
        return self._finish(z, x, batch, indices, observe)

    def a2e(self, h, basis: BasisOutput, batch: GraphBatch, indices: Indices, observe=silent):
        """[E, emb_edge] from atom states h [n_node, emb_atom]."""
        table = batch.a2ee2a.in_table
        x = self.dense_ba(h).astype(basis.gate_a2e.dtype)
        x = take_many(x, batch.a2ee2a.senders, batch.a2ee2a.out_table)
        x = self._gate(x, basis.gate_a2e, observe)
        slots = take_rows(x, table.reshape(-1), indices.a2ee2a_slot)
        same = take_rows(slots, indices.twin_a2ee2a, indices.twin_main)
        moments = self.precision.weighted_sums(basis.a2ee2a_harmonics, slots.reshape(*table.shape, -1))
        z = _project(basis.a2e, moments, same.reshape(*batch.main.in_table.shape, -1), self.precision)
        return self._finish(z, x, batch, indices, observe)

    def _gate(self, x, gate, observe):
        gated = x * self.mlp_rbf(gate)
        observe("scale_rbf", value=gated, reference=x)
        return self.down_projection(self.scale_rbf(gated))

    def _finish(self, z, x, batch, indices, observe):
        y = self.mlp_cbf(z.astype(x.dtype))
        observe("scale_cbf_sum", value=y, reference=x)
        return self._up(self.scale_cbf_sum(y), batch, indices)


class TripletAtom(nnx.Module):
    """Triplet sums onto atoms (e2a): incoming main edges, outgoing a2ee2a edges, both at the atom."""

    def __init__(self, c: GemNetOCConfig, args):
        n = c.emb_size_edge
        self.dense_ba = Dense(n, n, act=True, **args)
        self.precision = args["precision"]
        self.mlp_rbf = Dense(c.emb_size_rbf, n, **args)
        self.scale_rbf = ScaleFactor()
        self.down_projection = Dense(n, c.emb_size_trip_in, act=True, **args)
        self.mlp_cbf = Bilinear(c.emb_size_cbf * c.emb_size_trip_in, c.emb_size_trip_out, args)
        self.scale_cbf_sum = ScaleFactor()
        self.up_projection_ca = Dense(c.emb_size_trip_out, c.emb_size_atom, act=True, **args)

    def __call__(self, m, basis: BasisOutput, batch: GraphBatch, indices: Indices, observe=silent):
        """[n_node, emb_atom] from edge states m [E, emb_edge]."""
        table = batch.main.in_table
        x = self.dense_ba(m)
        gated = x * self.mlp_rbf(basis.gate_e2a)
        observe("scale_rbf", value=gated, reference=x)
        x = self.down_projection(self.scale_rbf(gated))
        slots = take_rows(x, table.reshape(-1), indices.main_slot).reshape(*table.shape, -1)
        z = self.precision.weighted_sums(basis.e2a, slots)
        y = self.mlp_cbf(z)
        observe("scale_cbf_sum", value=y, reference=x)
        return self.up_projection_ca(self.scale_cbf_sum(y))


class Quadruplet(SwapUp):
    """Quadruplet sums onto main edges c -> a over d -> b -> a."""

    def __init__(self, c: GemNetOCConfig, args):
        n = c.emb_size_edge
        self.dense_db = Dense(n, n, act=True, **args)
        self.precision = args["precision"]
        self.mlp_rbf = Dense(c.emb_size_rbf, n, **args)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Dense(c.emb_size_cbf, c.emb_size_quad_in, **args)
        self.scale_cbf = ScaleFactor()
        self.mlp_sbf = Bilinear(c.emb_size_sbf * c.emb_size_quad_in, c.emb_size_quad_out, args)
        self.scale_sbf_sum = ScaleFactor()
        self.down_projection = Dense(n, c.emb_size_quad_in, act=True, **args)
        self._init_up(c.emb_size_quad_out, n, args)

    def __call__(self, m, basis: BasisOutput, batch: GraphBatch, indices: Indices, observe=silent):
        """[E, emb_edge] from edge states m [E, emb_edge]."""
        table = batch.main.in_table
        x = self.dense_db(m)
        gated = x * self.mlp_rbf(basis.gate_quad)
        observe("scale_rbf", value=gated, reference=x)
        x = self.down_projection(self.scale_rbf(gated))
        slots = take_rows(x, table.reshape(-1), indices.main_slot).reshape(table.shape[0], -1)
        from_b = take_many(slots, batch.qint.senders, batch.qint.out_table)
        from_b = from_b.reshape(-1, table.shape[1], x.shape[-1])  # [Q, k, c]
        turned = from_b * self.mlp_cbf(basis.quad.circular)
        observe("scale_cbf", value=turned, reference=from_b)
        turned = self.scale_cbf(turned)
        y = self.mlp_sbf(self._sums(turned, basis.quad, batch, indices))
        observe("scale_sbf_sum", value=y, reference=turned)
        return self._up(self.scale_sbf_sum(y), batch, indices)

    def _sums(self, turned: jax.Array, quad: QuadBasis, batch: GraphBatch, indices: Indices) -> jax.Array:
        """[n_node, k_main, n_sbf, c] projected sums over all d and b, the case c = d removed."""
        (n, k, i, k_q), n_moment = quad.self_weight.shape, quad.phases.shape[1]
        moments = self.precision.weighted_sums(quad.phases, turned)
        moments = moments.reshape(moments.shape[0], -1)
        moments = take_rows(moments, batch.qint.in_table.reshape(-1), indices.qint_slot)
        moments = moments.reshape(n, k_q, n_moment, -1).swapaxes(1, 2).reshape(n, k_q * n_moment, -1)
        z = self.precision.dot(quad.project, moments).reshape(n, k, i, -1)
        same = take_rows(turned.reshape(-1, turned.shape[-1]), indices.same_in, indices.same_out)
        own = self.precision.weighted_sums(quad.self_weight, same.reshape(n, k, k_q, -1), few=True)
        return (z - own).astype(turned.dtype)


class Pair(nnx.Module):
    """All pairs in the cutoff, atoms to atoms (a2a); images of a pair were summed in the basis."""

    def __init__(self, c: GemNetOCConfig, args):
        self.bilinear = Dense(c.emb_size_rbf * c.emb_size_aint_in, c.emb_size_aint_out, **args)
        self.precision = args["precision"]
        self.scale_rbf_sum = ScaleFactor()
        self.down_projection = Dense(c.emb_size_atom, c.emb_size_aint_in, act=True, **args)
        self.up_projection = Dense(c.emb_size_aint_out, c.emb_size_atom, act=True, **args)

    def __call__(self, h, basis: BasisOutput, batch: GraphBatch, observe=silent):
        """[n_node, emb_atom] from atom states h [n_node, emb_atom]."""
        n_graph, n, n_rbf, _ = basis.pair.shape
        x = self.down_projection(h)
        dense = take_rows(x, batch.node_table.reshape(-1), batch.node_slot).reshape(n_graph, n, -1)
        z = self.precision.weighted_sums(basis.pair.reshape(n_graph, n * n_rbf, n), dense)
        y = self.bilinear(z.reshape(n_graph * n, -1))
        y = take_rows(y, batch.node_slot, batch.node_table.reshape(-1))
        observe("scale_rbf_sum", value=y, reference=x)
        return self.up_projection(self.scale_rbf_sum(y))


class EdgeSum(nnx.Module):
    """Edge states summed onto atoms through a radial gate, then a dense chain; the base of two blocks.

    The chain begins with a dense layer from edge to atom width, which the reference leaves out where the two are equal
    (docs/reference/gemnet_oc.md, Atom update).
    """

    def __init__(self, c: GemNetOCConfig, args):
        self.dense_rbf = Dense(c.emb_size_rbf, c.emb_size_edge, **args)
        self.scale_sum = ScaleFactor()
        first = [Dense(c.emb_size_edge, c.emb_size_atom, act=True, **args)] if c.edge_sum_dense else []
        self.layers = nnx.List([*first, *residuals(c.num_atom, c.emb_size_atom, **args)])

    def gather(self, m, gate, batch: GraphBatch, observe=silent, compensation: float = 1.0):
        """[n_node, emb_atom]; `compensation` multiplies the sum (edge dropout) before the scale factor."""
        total = sum_rows(m * self.dense_rbf(gate), batch.main.in_table, batch.main.receivers)
        observe("scale_sum", value=total, reference=m)
        return apply_all(self.layers, self.scale_sum(total * compensation))


class AtomUpdate(EdgeSum):
    """What a block's edge states add to its atom states."""

    @jax.named_scope("atom_update")
    def __call__(self, m, basis: BasisOutput, batch: GraphBatch, observe=silent):
        """[n_node, emb_atom] from edge states m [E, emb_edge]."""
        return self.gather(m, basis.gate_atom, batch, observe)


class OutputBlock(EdgeSum):
    """Per-block outputs: x_E on atoms and, with direct forces, x_F on edges."""

    def __init__(self, c: GemNetOCConfig, args):
        super().__init__(c, args)
        self.seq_energy2 = residuals(c.num_output_afteratom, c.emb_size_atom, **args)
        self.has_forces = c.direct_forces
        if c.direct_forces:
            self.seq_forces = residuals(c.num_atom, c.emb_size_edge, **args)
            self.dense_rbf_F = Dense(c.emb_size_rbf, c.emb_size_edge, **args)
            self.scale_rbf_F = ScaleFactor()

    @jax.named_scope("output_block")
    def __call__(self, h, m, basis: BasisOutput, batch: GraphBatch, edge_dropout=0.0, observe=silent):
        """(x_E [n_node, emb_atom], x_F [E, emb_edge] or None)."""
        x = self.gather(m, basis.gate_out, batch, observe, compensation=1 / (1 - edge_dropout))
        x_e = apply_all(self.seq_energy2, (x + h) * INV_SQRT_2)
        if not self.has_forces:
            return x_e, None
        x_f = apply_all(self.seq_forces, m)
        gated = x_f * self.dense_rbf_F(basis.gate_out)
        observe("scale_rbf_F", value=gated, reference=x_f)
        return x_e, self.scale_rbf_F(gated)


def _named(observe, prefix: str):
    return lambda name, **arrays: observe(f"{prefix}.{name}", **arrays)


class InteractionBlock(nnx.Module):
    """One message-passing block: all five interactions read the same h and m."""

    def __init__(self, c: GemNetOCConfig, args):
        edge, atom = c.emb_size_edge, c.emb_size_atom
        self.dense_ca = Dense(edge, edge, act=True, **args)
        self.trip_interaction = TripletEdge(c, edge, args)
        self.quad_interaction = Quadruplet(c, args)
        self.atom_edge_interaction = TripletEdge(c, atom, args)
        self.edge_atom_interaction = TripletAtom(c, args)
        self.atom_interaction = Pair(c, args)
        self.layers_before_skip = residuals(c.num_before_skip, edge, **args)
        self.layers_after_skip = residuals(c.num_after_skip, edge, **args)
        self.atom_emb_layers = residuals(c.num_atom_emb_layers, atom, **args)
        self.atom_update = AtomUpdate(c, args)
        self.concat_layer = ConcatLayer(atom, edge, edge, args)
        self.residual_m = residuals(c.num_concat, edge, **args)

    @jax.named_scope("interaction_block")
    def __call__(self, h, m, basis: BasisOutput, batch: GraphBatch, indices: Indices, observe=silent):
        """(h [n_node, emb_atom], m [E, emb_edge]) -> the updated pair."""
        parts = self._interactions(h, m, basis, batch, indices, observe)
        x = self.dense_ca(m) + parts["trip_interaction"] + parts["quad_interaction"]
        x = settled((x + parts["atom_edge_interaction"]) * 0.5)
        h = settled((h + parts["edge_atom_interaction"] + parts["atom_interaction"]) * INV_SQRT_3)
        m = settled((m + apply_all(self.layers_before_skip, x)) * INV_SQRT_2)
        m = apply_all(self.layers_after_skip, m)
        h = apply_all(self.atom_emb_layers, h)
        update = self.atom_update(m, basis, batch, _named(observe, "atom_update"))
        observe("atom_update", value=update)
        h = settled((h + update) * INV_SQRT_2)
        y = apply_all(self.residual_m, self.concat_layer(h, m, batch, indices))
        return h, settled((m + y) * INV_SQRT_2)

    def _interactions(self, h, m, basis, batch, indices, observe) -> dict[str, jax.Array]:
        calls = {
            "trip_interaction": lambda o: self.trip_interaction.e2e(m, basis, batch, indices, o),
            "quad_interaction": lambda o: self.quad_interaction(m, basis, batch, indices, o),
            "atom_edge_interaction": lambda o: self.atom_edge_interaction.a2e(h, basis, batch, indices, o),
            "edge_atom_interaction": lambda o: self.edge_atom_interaction(m, basis, batch, indices, o),
            "atom_interaction": lambda o: self.atom_interaction(h, basis, batch, o),
        }
        out = {}
        for name, call in calls.items():
            with jax.named_scope(name):
                out[name] = call(_named(observe, name))
            observe(name, value=out[name])
        return out

"""GemNet-OC: a padded batch -> node features x_E and edge features x_F.

The parameters' paths equal the names of the public checkpoints (see `names.py`). Padding edges and nodes carry exact
zeros from the first layer to the last: no layer of the backbone has a bias, and their radial basis and atom
embedding are zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import stacked, unstacked
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.bases import Bases
from jaxatoms.models.gemnet_oc.blocks import InteractionBlock, OutputBlock, _named, silent
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.indices import derive
from jaxatoms.models.gemnet_oc.layers import Dense, apply_all, residuals
from jaxatoms.ops.target import platform


class Features(NamedTuple):
    """What the heads read; padding rows are zero."""

    node: jax.Array  # [n_node, emb_atom] x_E, the node feature of the Chemical Similarity Index
    edge: jax.Array | None  # [E, emb_edge] x_F, only with direct forces
    directions: jax.Array  # [E, 3] unit vectors from sender to receiver


class FinalMLP(nnx.Module):
    """The concatenated outputs of all output blocks -> one feature of width n."""

    def __init__(self, n: int, c: GemNetOCConfig, args):
        first = Dense(n * (c.num_blocks + 1), n, act=True, **args)
        self.out_mlp = nnx.List([first, *residuals(c.num_global_out_layers, n, **args)])

    @jax.named_scope("final_mlp")
    def __call__(self, outputs: list[jax.Array]) -> jax.Array:
        return apply_all(self.out_mlp, jnp.concatenate(outputs, axis=-1))


class GemNetOC(nnx.Module):
    """The backbone. Atom embeddings come from outside (as in the reference, where tasks share them)."""

    def __init__(self, config: GemNetOCConfig, rngs: nnx.Rngs, precision: Precision = Precision()):
        args: dict = dict(rngs=rngs, precision=precision)
        self.config = config
        self.bases = Bases(config, **args)
        self.int_blocks = nnx.List([InteractionBlock(config, args) for _ in range(config.num_blocks)])
        self.out_blocks = nnx.List([OutputBlock(config, args) for _ in range(config.num_blocks + 1)])
        self.out_mlp_E = FinalMLP(config.emb_size_atom, config, args)
        self.out_mlp_F = FinalMLP(config.emb_size_edge, config, args) if config.direct_forces else None

    def __call__(self, batch: GraphBatch, h: jax.Array, *, positions=None, edge_dropout=0.0, observe=silent):
        """Features of a batch.

        Args:
          batch: padded structures and graphs.
          h: [n_node, emb_atom] atom embeddings, zero for padding.
          positions: [n_node, 3] A; defaults to `batch.positions`. Pass it to differentiate.
          edge_dropout: the rate with which the graphs lost edges; the atom sums of the output blocks are
            divided by 1 - edge_dropout. 0 in evaluation.
          observe: called as observe(name, value=..., [reference=...]) with named intermediates.

        Returns:
          `Features`.
        """
        positions = batch.positions if positions is None else positions
        with jax.named_scope("indices"):
            indices = derive(batch)
        basis = self.bases(batch, positions, indices)
        with jax.named_scope("edge_embedding"):
            m = self.bases.edge_emb(h, basis.radial, batch, indices)
        observe("emb", value=m)
        if self.config.remat and observe is silent:
            x_e, x_f = self._recomputed(h, m, basis, batch, indices, edge_dropout)
        else:
            x_e, x_f = self._written_out(h, m, basis, batch, indices, edge_dropout, observe)
        edge = None if self.out_mlp_F is None else self.out_mlp_F(x_f)
        return Features(self.out_mlp_E(x_e), edge, basis.directions)

    def _written_out(self, h, m, basis, batch, indices, edge_dropout, observe):
        """The blocks and their outputs: x_E of every output block, x_F of every one or None."""
        together, states, outputs = observe is silent and platform() != "cpu", [], []
        for_blocks = self.bases.for_blocks(basis)
        for i, out in enumerate(self.out_blocks):
            if i:
                block, named = self.int_blocks[i - 1], _named(observe, f"int_blocks.{i - 1}")
                h, m = block(h, m, for_blocks[i - 1], batch, indices, named)
                observe(f"block{i - 1}", h=h, m=m)
            if together:
                states.append((h, m))
            else:
                x = out(h, m, basis, batch, edge_dropout, _named(observe, f"out_blocks.{i}"))
                observe(f"out{i}", x_E=x[0], x_F=x[1])
                outputs.append(x)
        if together:
            return self._outputs_at_once(states, basis, batch, edge_dropout)
        x_e, x_f = zip(*outputs, strict=True)
        return list(x_e), None if x_f[0] is None else list(x_f)

    def _outputs_at_once(self, states, basis, batch, edge_dropout):
        """All output blocks as one over stacked weights and states: they are alike and need nothing of each other.

        A fifth of the launches on a GPU. On a CPU, which gains nothing, batched products lack some types.
        """
        definition = nnx.graphdef(self.out_blocks[0])
        weights = jax.tree.map(lambda *leaves: stacked(list(leaves), 0), *map(nnx.state, self.out_blocks))
        h, m = (stacked(list(parts), 1) for parts in zip(*states, strict=True))

        def one(weights, h, m):
            return nnx.merge(definition, weights)(h, m, basis, batch, edge_dropout)

        x_e, x_f = jax.vmap(one, in_axes=(0, 1, 1), out_axes=1)(weights, h, m)
        return unstacked(x_e, 1), None if x_f is None else unstacked(x_f, 1)

    def _recomputed(self, h, m, basis, batch, indices, edge_dropout):
        """The blocks and their outputs, each computed again in the backward pass.

        The blocks run in a loop, whose passes come one after the other; written out, the recomputed blocks were all
        alive together on CPU.
        """
        layers = list(zip(self.int_blocks, self.out_blocks[1:], strict=True))
        definition = nnx.graphdef(layers[0])

        def body(carry, variables):
            block, out = nnx.merge(definition, variables)
            h, m = block(*carry, basis, batch, indices)
            return (h, m), out(h, m, basis, batch, edge_dropout)

        first = self.out_blocks[0](h, m, basis, batch, edge_dropout)
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, layers))
        _, later = jax.lax.scan(jax.checkpoint(body), (h, m), weights)
        return tuple(None if one is None else [one, *more] for one, more in zip(first, later, strict=True))

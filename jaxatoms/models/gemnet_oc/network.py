"""GemNet-OC: a padded batch -> node features x_E and edge features x_F.

The parameters' paths equal the names of the public checkpoints (see `interop/names.py`). Padding edges and nodes
carry exact zeros from the first layer to the last: no layer of the backbone has a bias, and their radial basis
and atom embedding are zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.gemnet_oc.bases import Bases
from jaxatoms.models.gemnet_oc.blocks import InteractionBlock, OutputBlock, _named, silent
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.indices import derive
from jaxatoms.models.layers import Dense, apply_all, residuals
from jaxatoms.models.precision import Precision


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
        outputs = [self._output(0, h, m, basis, batch, edge_dropout, observe)]
        if self.config.remat and observe is silent:
            outputs += self._recomputed(h, m, basis, batch, indices, edge_dropout)
        else:
            for i, block in enumerate(self.int_blocks):
                h, m = block(h, m, basis, batch, indices, _named(observe, f"int_blocks.{i}"))
                observe(f"block{i}", h=h, m=m)
                outputs.append(self._output(i + 1, h, m, basis, batch, edge_dropout, observe))
        x_e, x_f = zip(*outputs, strict=True)
        edge = None if self.out_mlp_F is None else self.out_mlp_F(list(x_f))
        return Features(self.out_mlp_E(list(x_e)), edge, basis.directions)

    def _recomputed(self, h, m, basis, batch, indices, edge_dropout) -> list:
        """The outputs after every block, each computed again in the backward pass.

        The blocks run in a loop, whose passes come one after the other; written out, the recomputed blocks were all
        alive together on CPU.
        """
        layers = list(zip(self.int_blocks, self.out_blocks[1:], strict=True))
        definition = nnx.graphdef(layers[0])

        def body(carry, variables):
            block, out = nnx.merge(definition, variables)
            h, m = block(*carry, basis, batch, indices)
            return (h, m), out(h, m, basis, batch, edge_dropout)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, layers))
        _, (x_e, x_f) = jax.lax.scan(jax.checkpoint(body), (h, m), stacked)
        return [(x_e[i], None if x_f is None else x_f[i]) for i in range(len(layers))]

    def _output(self, i, h, m, basis, batch, edge_dropout, observe):
        x = self.out_blocks[i](h, m, basis, batch, edge_dropout, _named(observe, f"out_blocks.{i}"))
        observe(f"out{i}", x_E=x[0], x_F=x[1])
        return x

"""A dense layer over [h_sender, h_receiver, edge feature], as the edge embedding and the blocks use it."""

import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import take_many
from jaxatoms.models.gemnet_oc.indices import Indices
from jaxatoms.models.gemnet_oc.layers import Dense


class ConcatLayer(nnx.Module):
    """act(W [h_sender, h_receiver, x]) without building the concatenation: W is split by rows."""

    def __init__(self, n_atom: int, n_edge: int, n_out: int, args):
        self.dense = Dense(2 * n_atom + n_edge, n_out, act=True, **args)
        self.n_atom = n_atom

    def __call__(self, h, x, batch: GraphBatch, indices: Indices):
        n, kernel, dot = self.n_atom, self.dense.kernel[...], self.dense.precision.dot
        by_atom = dot(h, jnp.concatenate([kernel[:n], kernel[n : 2 * n]], axis=1)).astype(x.dtype)
        sent, received = jnp.split(by_atom, 2, axis=1)
        sent = take_many(sent, batch.main.senders, indices.main_out_table)
        received = take_many(received, batch.main.receivers, batch.main.in_table)
        return self.dense.activate(sent + received + dot(x, kernel[2 * n :]))

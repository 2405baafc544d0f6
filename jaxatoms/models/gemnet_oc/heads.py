"""Heads of GemNet-OC: node and edge features -> values per atom and forces, one pair of heads per task.

Outputs are in the normalised units of the training targets; `data/references.py` turns them into eV and eV/A.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.indexing import sum_rows
from jaxatoms.models.common.initializers import uniform_fan_in
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.gemnet_oc.layers import Dense, apply_all
from jaxatoms.ops.products import widened

NUM_LAYERS = 5
NUM_EXTENT_LAYERS = 6  # of the head for the electronic spatial extent


class HeadMLP(nnx.Module):
    """Linear layers n -> n -> ... -> n_out with scaled SiLU between them, behind dropout.

    Layers have a bias but a last one of width 1; none with bias=False. Source: docs/reference/gemnet_oc.md, Heads.
    """

    def __init__(
        self, n: int, rngs: nnx.Rngs, precision: Precision, *, bias=True, n_layers=NUM_LAYERS, n_out=1, dropout=0.0
    ):
        args = dict(rngs=rngs, precision=precision, init=uniform_fan_in)
        hidden = [Dense(n, n, act=True, bias=bias, **args) for _ in range(n_layers - 1)]
        self.layers = nnx.List([*hidden, Dense(n, n_out, bias=bias and n_out > 1, **args)])
        self.dropout = dropout

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., n] -> [...] or, with n_out > 1, [..., n_out]; `key` switches the dropout of x on."""
        if self.dropout and key is not None:
            keep = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0)
        x = self.layers[-1](self.last_features(x))
        return x[..., 0] if x.shape[-1] == 1 else x

    def last_features(self, x: jax.Array) -> jax.Array:
        """[..., n] -> [..., n], what the last layer reads; an output of width 1 is linear in it, without a constant."""
        *hidden, _ = self.layers
        return widened(apply_all(hidden, x))


def direct_forces(scalars: jax.Array, directions: jax.Array, batch: GraphBatch) -> jax.Array:
    """[n_node, 3] sums of `scalars` [E] times `directions` [E, 3] over the edges arriving at each atom."""
    per_edge = scalars[:, None] * directions
    return sum_rows(per_edge, batch.main.in_table, batch.main.receivers)

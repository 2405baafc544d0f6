"""Point-wise feed-forward network on the sphere, with a separate path for the invariants."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.edges import map_tiles
from jaxatoms.models.equiformer_v2.harmonics import sphere_grid
from jaxatoms.models.equiformer_v2.layers import Linear, SO3Linear


class FeedForward(nnx.Module):
    """[n_node, (lmax+1)**2, sphere_channels] -> [n_node, (lmax+1)**2, n_out], a tile of atoms at a time."""

    def __init__(self, config: EquiformerV2Config, n_out: int, rngs, precision: Precision, *, hidden=None):
        n_in, n = config.sphere_channels, hidden or config.ffn_hidden_channels
        self.scalar_mlp = Linear(n_in, n, rngs, precision)
        self.so3_linear_1 = SO3Linear(config.lmax, n_in, n, rngs, precision)
        self.grid_mlp = nnx.List([Linear(n, n, rngs, precision, bias=False) for _ in range(3)])
        self.so3_linear_2 = SO3Linear(config.lmax, n, n_out, rngs, precision)
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        return map_tiles(self._tile, self.config.tile_nodes, x)

    def invariants(self, x: jax.Array) -> jax.Array:
        """[n_node, (lmax+1)**2, sphere_channels] -> [n_node, n], in which the l = 0 row of the output is affine."""
        return jax.nn.silu(self.scalar_mlp(x[:, 0]))

    def _tile(self, x: jax.Array) -> jax.Array:
        grids = sphere_grid(self.config.lmax, self.config.grid_resolution)
        to_grid, from_grid = (jnp.asarray(g, x.dtype) for g in grids)
        invariant = self.invariants(x)
        z = jnp.einsum("gk,nkc->ngc", to_grid, self.so3_linear_1(x), precision="highest")
        first, second, last = self.grid_mlp
        z = last(jax.nn.silu(second(jax.nn.silu(first(z)))))
        z = jnp.einsum("kg,ngc->nkc", from_grid[1:], z, precision="highest")
        return self.so3_linear_2(jnp.concatenate([invariant[:, None], z], axis=1))

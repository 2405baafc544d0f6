"""Layers of EquiformerV2 on plain arrays: linear maps with bias, per-degree linear maps, norms, radial networks.

Parameters are float32 (or the dtype they were given); norms, the radial basis and reductions follow the data's dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.models.common.initializers import uniform_fan_in
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.harmonics import degree_of_coefficient

EPS = 1e-5


class Linear(nnx.Module):
    """y = x W + b with `kernel` [n_in, n_out], uniform in +-gain/sqrt(n_in); the bias starts at zero."""

    def __init__(self, n_in: int, n_out: int, rngs, precision: Precision, *, bias: bool = True, gain: float = 1.0):
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (n_in, n_out)) * gain)
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.precision.dot(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class Table(nnx.Module):
    """One row of `kernel` [max_num_elements, n] per atomic number."""

    def __init__(self, n_row: int, n: int, rngs, *, bound: float | None = None):
        key, shape = rngs.params(), (n_row, n)
        values = jax.random.normal(key, shape) if bound is None else jax.random.uniform(key, shape, minval=-bound,
                                                                                       maxval=bound)
        self.kernel = nnx.Param(values)

    def __call__(self, atomic_numbers: jax.Array, project: jax.Array | None = None) -> jax.Array:
        """[n] -> [n, channels], times `project` [channels, m] if given.

        A product with a one-hot matrix: its gradient is a matmul, where a lookup's would be a colliding scatter.
        """
        table = self.kernel[...]
        if project is not None:
            table = jnp.matmul(table, project, precision="highest")
        one_hot = jax.nn.one_hot(atomic_numbers, len(table), dtype=table.dtype)
        return jnp.matmul(one_hot, table, precision="highest")


class LayerNorm(nnx.Module):
    """Normalise over the last axis; `weight` and `bias` [n]."""

    def __init__(self, n: int):
        self.weight, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))

    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(centred**2, -1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + EPS) * self.weight[...] + self.bias[...]


class SO3Linear(nnx.Module):
    """A linear map per degree, `kernel` [lmax+1, n_in, n_out]; `bias` [n_out] on l = 0 only."""

    def __init__(self, lmax: int, n_in: int, n_out: int, rngs, precision: Precision):
        bound = n_in**-0.5
        shape = (lmax + 1, n_in, n_out)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.bias = nnx.Param(jnp.zeros(n_out))
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, (lmax+1)**2, n_in] -> [n, (lmax+1)**2, n_out]."""
        kernel, parts = self.kernel[...], []
        for l in range(len(kernel)):
            y = self.precision.dot(x[:, l * l : (l + 1) ** 2], kernel[l])
            parts.append(y if l else y + self.bias[...])
        return jnp.concatenate(parts, axis=1)


class SeparableNorm(nnx.Module):
    """`layer_norm_sh`: layer norm of l = 0; all l >= 1 share one scale per atom."""

    def __init__(self, lmax: int, n: int):
        self.norm_l0 = LayerNorm(n)
        self.affine_weight = nnx.Param(jnp.ones((lmax, n)))
        self.lmax = lmax

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n_node, (lmax+1)**2, n] -> the same shape."""
        degree = degree_of_coefficient(self.lmax)[1:]
        weights = jnp.asarray(1 / (self.lmax * (2 * degree + 1)), x.dtype)[:, None]
        rest = x[:, 1:]
        scale = jax.lax.rsqrt(jnp.sum(jnp.mean(rest**2, -1, keepdims=True) * weights, 1, keepdims=True) + EPS)
        scaled = rest * scale * self.affine_weight[...][degree - 1]
        return jnp.concatenate([self.norm_l0(x[:, :1]), scaled], axis=1)


class DegreeNorm(nnx.Module):
    """`rms_norm_sh` (one scale for all degrees) and `layer_norm` (a scale per degree); l = 0 is centred."""

    def __init__(self, lmax: int, n: int, *, shared: bool):
        self.affine_weight = nnx.Param(jnp.ones((lmax + 1, n)))
        self.affine_bias = nnx.Param(jnp.zeros(n))
        self.lmax, self.shared = lmax, shared

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n_node, (lmax+1)**2, n] -> the same shape."""
        degree = degree_of_coefficient(self.lmax)
        x = jnp.concatenate([x[:, :1] - x[:, :1].mean(-1, keepdims=True), x[:, 1:]], axis=1)
        square = jnp.mean(x**2, -1)
        average = np.equal.outer(degree, np.arange(self.lmax + 1)) / (2 * degree[:, None] + 1)
        per_degree = square @ jnp.asarray(average, x.dtype)
        if self.shared:
            per_degree = jnp.broadcast_to(per_degree.mean(-1, keepdims=True), per_degree.shape)
        scale = jax.lax.rsqrt(per_degree + EPS)[:, degree, None]
        y = x * scale * self.affine_weight[...][degree]
        return jnp.concatenate([y[:, :1] + self.affine_bias[...], y[:, 1:]], axis=1)


def make_norm(config: EquiformerV2Config) -> nnx.Module:
    """The equivariant norm that the configuration names."""
    if config.norm_type == "layer_norm_sh":
        return SeparableNorm(config.lmax, config.sphere_channels)
    return DegreeNorm(config.lmax, config.sphere_channels, shared=config.norm_type == "rms_norm_sh")


def distance_basis(distance: jax.Array, config: EquiformerV2Config) -> jax.Array:
    """[n_edge] A -> [n_edge, num_gaussians]; centres 0..max_radius, no envelope."""
    spacing = config.max_radius / (config.num_gaussians - 1)
    centres = jnp.asarray(np.linspace(0, config.max_radius, config.num_gaussians), distance.dtype)
    return jnp.exp(-0.5 / (config.basis_width * spacing) ** 2 * (distance[:, None] - centres) ** 2)


class RadialNet(nnx.Module):
    """(distance, elements of both ends) -> n_out factors per edge; two hidden layers with LayerNorm and SiLU.

    The first linear map is applied to the element tables before their rows are taken.
    """

    def __init__(self, config: EquiformerV2Config, n_out: int, rngs, precision: Precision):
        c, n_in = config.edge_channels, config.num_gaussians + 2 * config.edge_channels
        self.linear_0, self.norm_1 = Linear(n_in, c, rngs, precision), LayerNorm(c)
        self.linear_3, self.norm_4 = Linear(c, c, rngs, precision), LayerNorm(c)
        self.linear_6 = Linear(c, n_out, rngs, precision)
        self.config = config

    def __call__(self, edges, source: Table, target: Table) -> jax.Array:
        """`edges` has distance, sender_z, receiver_z [n_edge] -> [n_edge, n_out]."""
        n, c = self.config.num_gaussians, self.config.edge_channels
        kernel = self.linear_0.kernel[...]
        basis = distance_basis(edges.distance, self.config)
        assert self.linear_0.bias is not None
        y = self.linear_0.precision.dot(basis, kernel[:n]) + self.linear_0.bias[...]
        y += source(edges.sender_z, kernel[n : n + c]) + target(edges.receiver_z, kernel[n + c :])
        y = self.linear_3(jax.nn.silu(self.norm_1(y)))
        return self.linear_6(jax.nn.silu(self.norm_4(y)))

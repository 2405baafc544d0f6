"""Node tensors of EquiformerV2 in the terms of e3nn-jax, for layers and analyses that are written with it.

Basis, order and sign of the coefficients are e3nn's (`harmonics.py`: polar axis y, m = -l..l), so there is no change of
basis; only the axes differ: ours are [coefficient, channel], e3nn's are [channel, component] within each degree.
"""

import math

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp

from jaxatoms.models.equiformer_v2.config import EquiformerV2Config


def node_irreps(config: EquiformerV2Config) -> e3nn.Irreps:
    """The degrees 0..lmax, `sphere_channels` times each: 16x0e+16x1o+16x2e for the tiny preset.

    Parities are those of the spherical harmonics of the edges, (-1)^l. The network keeps them in its first embedding
    only: it commutes with rotations, and not with reflections.
    """
    return e3nn.Irreps([(config.sphere_channels, irrep) for _, irrep in _degrees(config.lmax)])


def to_irreps_array(features: jax.Array) -> e3nn.IrrepsArray:
    """[..., (lmax+1)**2, channels] -> [..., channels * (lmax+1)**2], of `node_irreps` for a node embedding."""
    lmax = math.isqrt(features.shape[-2]) - 1
    return e3nn.IrrepsArray(_degrees(lmax), jnp.swapaxes(features, -1, -2)).axis_to_mul()


def _degrees(lmax: int) -> e3nn.Irreps:
    return e3nn.Irreps.spherical_harmonics(lmax)

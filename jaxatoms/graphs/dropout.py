"""Uniform numbers for candidate edges: from a generator, or from one key per structure.

With keys, what a structure loses depends on its key alone and not on the batch, the device or the process that it
is built on. NumPy only: data workers import this module without importing JAX.
"""

from typing import NamedTuple

import numpy as np

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


class StructureKeys(NamedTuple):
    """Keys of the structures of a batch, in their order."""

    keys: np.ndarray  # [n_graph] uint64


def structure_keys(seed: int, step: int, index: np.ndarray) -> StructureKeys:
    """Keys of the structures `index` [n_graph] as training step `step` of a run sees them."""
    base = np.random.SeedSequence([seed, 1, step]).generate_state(1, np.uint64)
    return StructureKeys(mix(base + mix(np.asarray(index).astype(np.uint64))))


def uniform(rng: np.random.Generator | StructureKeys, receivers: np.ndarray, n_node: np.ndarray) -> np.ndarray:
    """[n_edge] float32 in [0, 1).

    Args:
      receivers: [n_edge] atoms of the whole batch, non-decreasing.
      n_node: [n_graph] atoms per structure.
    """
    if not isinstance(rng, StructureKeys):
        return rng.random(len(receivers), np.float32)
    starts = np.searchsorted(receivers, np.cumsum(n_node) - n_node)
    counts = np.diff(np.append(starts, len(receivers)))
    place = np.arange(len(receivers)) - np.repeat(starts, counts)
    bits = mix(np.repeat(rng.keys, counts) + place.astype(np.uint64) * _INCREMENT)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195) on uint64."""
    x = x + _INCREMENT
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

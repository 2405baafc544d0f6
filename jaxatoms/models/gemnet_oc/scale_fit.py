"""Fitting GemNet-OC's scale factors: each layer's output variance is matched to its input's on real batches.

A factor is sqrt(in / out), where `out` is the mean feature variance over the rows it multiplies and `in` that of
its reference. The reference's rows are gathered per triplet, quadruplet or pair in the original; here each row
is weighted by how often it would be gathered, which is the same sum. A factor depends on earlier factors only,
so factors that do not depend on each other are fitted in one pass: four passes per block and one for the outputs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.gemnet_oc.indices import Indices, derive
from jaxatoms.models.gemnet_oc.network import GemNetOC
from jaxatoms.types import InputError

_FIRST = (
    "trip_interaction.scale_rbf",
    "quad_interaction.scale_rbf",
    "atom_edge_interaction.scale_rbf",
    "edge_atom_interaction.scale_rbf",
    "atom_interaction.scale_rbf_sum",
)
_SECOND = (
    "trip_interaction.scale_cbf_sum",
    "quad_interaction.scale_cbf",
    "atom_edge_interaction.scale_cbf_sum",
    "edge_atom_interaction.scale_cbf_sum",
)
_STAGES = (_FIRST, _SECOND, ("quad_interaction.scale_sbf_sum",), ("atom_update.scale_sum",))


def fitting_stages(num_blocks: int, direct_forces: bool) -> list[list[str]]:
    """Names of the factors in passes; every factor comes after those it depends on."""
    stages = [[f"int_blocks.{i}.{name}" for name in stage] for i in range(num_blocks) for stage in _STAGES]
    kinds = ("scale_sum", "scale_rbf_F") if direct_forces else ("scale_sum",)
    return [*stages, [f"out_blocks.{i}.{kind}" for i in range(num_blocks + 1) for kind in kinds]]


def row_weights(batch: GraphBatch, indices: Indices) -> dict[str, tuple[jax.Array, jax.Array]]:
    """(mask of the value's rows, weights of the reference's rows) for every kind of factor."""
    n_node, k = batch.main.in_table.shape
    k_ae = batch.a2ee2a.in_table.shape[1]
    edge = (indices.main_slot < n_node * k).astype(jnp.float32)
    edge_ae = (indices.a2ee2a_slot < n_node * k_ae).astype(jnp.float32)
    slot = (batch.main.in_table < batch.swap.shape[0]).astype(jnp.float32)
    degree, degree_ae = slot.sum(1), (batch.a2ee2a.in_table < len(edge_ae)).astype(jnp.float32).sum(1)
    twin_ae = _taken(indices.twin_a2ee2a, indices.main_slot, n_node * k_ae)
    twin = _taken(indices.twin_main, indices.a2ee2a_slot, n_node * k)
    node = batch.node_mask.astype(jnp.float32)
    inner = indices.in_mask.astype(jnp.float32)
    n_outer = indices.out_mask.sum(-1).reshape(-1).at[indices.qint_slot].get(mode="fill", fill_value=0)
    same = indices.same_out.reshape(inner.shape) < n_node * indices.out_mask.shape[1] * k
    a2a_real = (batch.node_slot[batch.a2a.receivers] < batch.node_table.size).astype(jnp.float32)
    # Counting edges by sender scatters; this runs a few hundred times before training, never in a step.
    pairs = jnp.zeros(n_node).at[batch.a2a.senders].add(a2a_real)
    receivers, receivers_ae = batch.main.receivers, batch.a2ee2a.receivers
    return {
        "trip_interaction.scale_rbf": (edge, edge),
        "trip_interaction.scale_cbf_sum": (slot.reshape(-1), edge * (degree[receivers] - 1)),
        "quad_interaction.scale_rbf": (edge, edge),
        "quad_interaction.scale_cbf": (inner, inner),
        "quad_interaction.scale_sbf_sum": (slot.reshape(-1), inner * (n_outer[:, None] - same)),
        "atom_edge_interaction.scale_rbf": (edge_ae, edge_ae),
        "atom_edge_interaction.scale_cbf_sum": (slot.reshape(-1), edge_ae * (degree[receivers_ae] - twin)),
        "edge_atom_interaction.scale_rbf": (edge, edge),
        "edge_atom_interaction.scale_cbf_sum": (node, edge * (degree_ae[receivers] - twin_ae)),
        "atom_interaction.scale_rbf_sum": (node, pairs),
        "scale_sum": (node, edge),
        "atom_update.scale_sum": (node, edge),
        "scale_rbf_F": (edge, edge),
    }


def _taken(index: jax.Array, slot: jax.Array, none: int) -> jax.Array:
    """[n] 1 where the entry of `index` at `slot` is not `none`."""
    return (index.at[slot].get(mode="fill", fill_value=none) < none).astype(jnp.float32)


def _feature_variance(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over features of the unbiased variance over rows, rows repeated `weight` times."""
    x, weight = x.reshape(-1, x.shape[-1]).astype(jnp.float32), weight.reshape(-1, 1)
    total = jnp.sum(weight)
    mean = jnp.sum(x * weight, axis=0) / jnp.maximum(total, 1)
    return jnp.mean(jnp.sum(weight * (x - mean) ** 2, axis=0) / jnp.maximum(total - 1, 1))


def factor_statistics(backbone: GemNetOC, batch: GraphBatch, h: jax.Array) -> dict[str, jax.Array]:
    """[2] (reference variance, value variance) times the number of value rows, for every factor by name."""
    weights, found = row_weights(batch, derive(batch)), {}

    def observe(name, value=None, reference=None, **_):
        if reference is None:
            return
        mask, weight = weights[name.split(".", 2)[2]]
        n = jnp.sum(mask)
        found[name] = n * jnp.stack([_feature_variance(reference, weight), _feature_variance(value, mask)])

    backbone(batch, h, observe=observe)
    return found


def fit_scale_factors(model: Any, batches: list[GraphBatch], notify: Callable[[str], None] = lambda _: None):
    """Fit every scale factor of `model` (with `embedding` and `backbone`) in place.

    Args:
      model: its factors are reset first.
      batches: padded batches without edge dropout, 16 in the reference.

    Raises:
      InputError: a factor comes out as 0, infinite or NaN.

    Source: GemNet's fit_scales procedure (16 batches, float32, sequential), in independent stages.
    """
    config = model.backbone.config
    factors = dict(scale_factors(model.backbone))
    for factor in factors.values():
        factor.scale_factor.set_value(jnp.zeros((), jnp.float32))
    graphdef, _ = nnx.split(model)

    @jax.jit
    def statistics(state, batch):
        merged = nnx.merge(graphdef, state)
        return factor_statistics(merged.backbone, batch, merged.embedding(batch.atomic_numbers))

    stages = fitting_stages(config.num_blocks, config.direct_forces)
    for i, stage in enumerate(stages):
        notify(f"fitting scale factors, pass {i + 1}/{len(stages)}")
        sums = _total(statistics(nnx.state(model), batch) for batch in batches)
        for name in stage:
            reference, value = sums[name]
            gamma = float(np.sqrt(reference / value)) if value > 0 else float("nan")
            if not np.isfinite(gamma) or gamma == 0:
                raise InputError(f"scale factor {name} cannot be fitted (variances {reference:g}, {value:g}); "
                                 "use other or more structures, or --scales shipped")
            factors[name].scale_factor.set_value(jnp.asarray(gamma, jnp.float32))


def _total(parts: Iterable[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + np.asarray(value, np.float64)
    return total


def scale_factors(backbone: GemNetOC):
    """(name, `ScaleFactor` module) of every factor, names as in the checkpoints without the `backbone.` prefix."""
    for path, module in nnx.iter_modules(backbone):
        if hasattr(module, "scale_factor"):
            yield ".".join(map(str, path)), module

"""Losses, errors and rates of fine-tuning. Source: docs/reference/finetuning.md, Heads and losses, Optimisation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.flat import per_parameter
from jaxatoms.training.losses import FORCE_EPS
from jaxatoms.training.optim import divide_by


def force_loss(forces: jax.Array, batch: GraphBatch, coefficient: float) -> jax.Array:
    """coefficient x the mean over labelled atoms of ||F - F_ref + 1e-6||; `forces` [n_node, 3] normalised."""
    # Mask before the norm: a missing label must not reach the square root.
    difference = jnp.where(batch.force_mask[:, None], forces - batch.forces + FORCE_EPS, 1.0)
    norms = jnp.where(batch.force_mask, jnp.sqrt(jnp.sum(difference**2, axis=-1)), 0)
    return coefficient * jnp.sum(norms) / jnp.maximum(jnp.sum(batch.force_mask), 1)


def scalar_loss(values: jax.Array, batch: GraphBatch) -> jax.Array:
    """Mean absolute error of `values` [n_graph], normalised."""
    error = jnp.where(batch.energy_mask, jnp.abs(values - batch.energy), 0)
    return jnp.sum(error) / jnp.maximum(jnp.sum(batch.energy_mask), 1)


def class_loss(logits: jax.Array, batch: GraphBatch, weights: tuple[float, ...]) -> jax.Array:
    """Weighted cross entropy of `logits` [n_graph, n_class], summed over the batch; classes lie in `batch.energy`."""
    label = jax.nn.one_hot(batch.energy.astype(jnp.int32), logits.shape[-1])
    per_graph = -jnp.sum(label * jax.nn.log_softmax(logits) * jnp.asarray(weights), axis=-1)
    return jnp.sum(jnp.where(batch.energy_mask, per_graph, 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptim:
    """AdamW of the fine-tuning recipe."""

    lr: float = 8e-5
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_value: float = 1.0
    """Every gradient component is cut to this size."""
    warmup_steps: int = 0
    """Steps of linear warm-up from warmup_start x lr, before the cosine."""
    warmup_start: float = 0.2
    cosine_steps: int
    """Step at which the cosine ends; afterwards the plateau rule takes over."""
    final_lr: float = 0.1
    """Where the cosine of every group ends, as a fraction of lr."""


def rate_factor(config: FinetuneOptim, step, multiplier: float):
    """Factor on multiplier x lr at `step`: warm-up, a cosine to the group's own floor, constant afterwards."""
    floor = float(np.clip(config.final_lr / multiplier, 0.01, 0.99))
    warmup = config.warmup_steps
    progress = jnp.clip((step - warmup) / max(config.cosine_steps - warmup, 1), 0, 1)
    cosine = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    rise = config.warmup_start + (1 - config.warmup_start) * step / max(warmup, 1)
    return jnp.where(step < warmup, rise, cosine)


def make_finetune_optimizer(
    config: FinetuneOptim, multipliers: Any, divisors: Any, trained: Any
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a learning rate per parameter; update(..., plateau=f) scales all of them.

    Args:
      multipliers: tree of learning rate multipliers (`Architecture.rate_multipliers`).
      divisors: tree by which gradients are divided first; None: nothing is.
      trained: tree of bools; False freezes a parameter.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, plateau=1.0, **extra):
        del params, extra

        def scaled(u, multiplier, train):
            if not train:
                return jnp.zeros_like(u)
            rate = config.lr * multiplier * rate_factor(config, state.count, multiplier)
            return -rate * plateau * u

        scaled_updates = per_parameter(scaled, updates, multipliers, trained)
        return scaled_updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.chain(
        optax.identity() if divisors is None else divide_by(divisors),
        optax.clip(config.clip_value),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.GradientTransformationExtraArgs(init, update),
    )


class Plateau(NamedTuple):
    """State of the rule that lowers the learning rate when validation stops improving (torch's ReduceLROnPlateau)."""

    factor: float = 1.0
    best: float = float("inf")
    bad_epochs: int = 0

    def after(self, metric: float, patience: int, decay: float = 0.8, threshold: float = 1e-4) -> "Plateau":
        """The state after one more validation epoch with this metric (lower is better)."""
        if metric < self.best * (1 - threshold):
            return Plateau(self.factor, metric, 0)
        if self.bad_epochs + 1 > patience:
            return Plateau(self.factor * decay, self.best, 0)
        return Plateau(self.factor, self.best, self.bad_epochs + 1)


def error_sums(out: Any, batch: GraphBatch) -> Mapping[str, jax.Array]:
    """Sums over a batch of the errors of a `ModelOutput`, in normalised units: free atoms only for forces."""
    sums = {}
    if out.forces is not None:
        mask = (batch.force_mask & batch.free)[:, None]
        sums["force_error"] = jnp.sum(jnp.where(mask, jnp.abs(out.forces - batch.forces), 0))
        sums["force_count"] = 3 * jnp.sum(mask)
    if out.energy is not None:
        mask = batch.energy_mask
        if out.energy.ndim == 1:
            difference = jnp.where(mask, out.energy - batch.energy, 0)
            sums["scalar_error"] = jnp.sum(jnp.abs(difference))
        else:
            right = jnp.argmax(out.energy, axis=-1) == batch.energy.astype(jnp.int32)
            label = jax.nn.one_hot(batch.energy.astype(jnp.int32), out.energy.shape[-1]) * mask[:, None]
            sums["class_right"], sums["class_count"] = jnp.sum(label * right[:, None], axis=0), jnp.sum(label, axis=0)
        sums["scalar_count"] = jnp.sum(mask)
    return sums

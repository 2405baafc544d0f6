"""Optimiser and learning rates of fine-tuning. Source: docs/reference/finetuning.md, Optimisation."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxatoms.training.flat import per_parameter
from jaxatoms.training.optim import divide_by


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
    """Factor on multiplier x lr at `step`: warm-up, a cosine to the group's own floor, constant afterwards.

    Of a Python number it is computed on the host, as `optim.warmup_cosine`.
    """
    xp = jnp if isinstance(step, jax.Array) else np
    floor = float(np.clip(config.final_lr / multiplier, 0.01, 0.99))
    warmup = config.warmup_steps
    progress = xp.clip((step - warmup) / max(config.cosine_steps - warmup, 1), 0, 1)
    cosine = floor + (1 - floor) * 0.5 * (1 + xp.cos(np.pi * progress))
    rise = config.warmup_start + (1 - config.warmup_start) * step / max(warmup, 1)
    return xp.where(step < warmup, rise, cosine)


def make_finetune_optimizer(
    config: FinetuneOptim, multipliers: Any, divisors: Any
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a learning rate per parameter; update(..., plateau=f) scales all of them.

    Args:
      multipliers: tree of learning rate multipliers (`Architecture.rate_multipliers`).
      divisors: tree by which gradients are divided first; None: nothing is.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, plateau=1.0, **extra):
        del params, extra

        def scaled(u, multiplier):
            rate = config.lr * multiplier * rate_factor(config, state.count, multiplier)
            return -rate * plateau * u

        scaled_updates = per_parameter(scaled, updates, multipliers)
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

"""AdamW with warm-up and cosine, norm clipping, and the division of shared gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxatoms.training.flat import per_parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The paper's pretraining recipe (arXiv 2502.11085, released code)."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on every parameter."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int = 2000
    """Steps of linear warm-up from 0.2 x lr."""
    warmup_start: float = 0.2
    final_lr: float = 0.1
    """The cosine ends at this fraction of lr."""
    clip_norm: float = 1.0
    """Global gradient norm after which gradients are scaled down."""
    ema_decay: float = 0.99


def warmup_cosine(config: OptimConfig, max_steps: int) -> optax.Schedule:
    """Learning rate of step i = 0, 1, ...: linear to the peak at i = warmup - 1, cosine to the end, then constant.

    Of a Python number it is computed on the host, so that the log of a rate does not wait for the device.
    """
    warmup, low = config.warmup_steps, config.final_lr * config.lr

    def schedule(step):
        xp = jnp if isinstance(step, jax.Array) else np
        rise = config.warmup_start + (1 - config.warmup_start) * step / max(warmup - 1, 1)
        progress = xp.clip((step - warmup) / max(max_steps - warmup, 1), 0, 1)
        cosine = low + 0.5 * (config.lr - low) * (1 + xp.cos(np.pi * progress))
        return xp.where(step < warmup, config.lr * rise, cosine)

    return schedule


def make_optimizer(config: OptimConfig, max_steps: int, divisors=None) -> optax.GradientTransformation:
    """The optimiser; `divisors` (a tree like the parameters) divides gradients before clipping."""
    adam = optax.adamw(
        warmup_cosine(config, max_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    divide = optax.identity() if divisors is None else divide_by(divisors)
    return optax.chain(divide, optax.clip_by_global_norm(config.clip_norm), adam)


def divide_by(divisors) -> optax.GradientTransformation:
    """Divide the gradient of every parameter by its entry of `divisors`, a tree of Python numbers."""

    def update(updates, state, params=None):
        del params
        return per_parameter(lambda g, d: g if d == 1 else g / d, updates, divisors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

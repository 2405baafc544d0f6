"""Several heads on one backbone, of which each structure has its own."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.models.common.output import HeadSpec


def make_heads(head: HeadSpec, make: Callable[..., nnx.Module]) -> nnx.Module:
    """One module, or a list of as many as there are data sets.

    Args:
      make: makes one; `make(bias=True)` makes one like pretraining's, where heads of their own have no biases.
    """
    if head.heads == 1:
        return make()
    with_bias = {"bias": True} if "bias" in inspect.signature(make).parameters else {}
    kept = range(head.heads - head.kept, head.heads)
    return nnx.List([make(**(with_bias if i in kept else {})) for i in range(head.heads)])


def _output(module: Any, *args: Any) -> jax.Array:
    return module(*args)


def own_head(modules: Any, task: jax.Array, *args: Any, of: Callable[..., jax.Array] = _output) -> jax.Array:
    """What the head of each row's own data set gives for it.

    Args:
      modules: of `make_heads`; each maps `args` to [n, ...].
      task: [n] which head each row has.
      of: (module, *args) -> [n, ...], what is asked of a head; by default its output.
    """
    if not isinstance(modules, nnx.List):
        return of(modules, *args)
    values = jnp.stack([of(module, *args) for module in modules], axis=-1)
    chosen = jax.nn.one_hot(task, len(modules), dtype=values.dtype)
    return jnp.sum(values * chosen.reshape(len(chosen), *(1,) * (values.ndim - 2), -1), axis=-1)

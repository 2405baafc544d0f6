"""The platform that a program is traced for: the default backend, or another one that it is only compiled for."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import jax

# A CPU compiles in half of the time with these, and runs the result at a third to half of the speed.
_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Training and evaluation on a GPU. Without the first, sums that the model rounds to bfloat16 are kept in float32 beside
# it; the second keeps XLA from copying factors side by side to merge products. Together they save a twentieth of the
# bytes that a compiled step of variant S moves (docs/notes/performance.md); not measured on hardware.
_ON_GPU = {"xla_allow_excess_precision": False, "xla_gpu_dot_merger_threshold_mb": 0}

# (platform, name of the device); JAX traces a program again where it is another one.
_other = jax.make_user_context()


def platform() -> str:
    """cpu, gpu or tpu."""
    return _other.value[0] if _other.value else jax.default_backend()


def chip() -> str:
    """The name of the device as JAX gives it, such as "NVIDIA H200"."""
    return _other.value[1] if _other.value else jax.devices()[0].device_kind


@contextlib.contextmanager
def compiling_for(name: str, device_kind: str = "") -> Iterator[None]:
    """Programs traced in the block are for this platform, whatever runs here.

    Args:
      device_kind: the name of the device that they are compiled for, where one is known.
    """
    with _other((name, device_kind)):
        yield


def step_options() -> dict[str, bool | int] | None:
    """Compiler options of training and evaluation steps; what XLA_FLAGS of the environment names stays as it says."""
    if platform() != "gpu":
        return None
    chosen = {word.partition("=")[0] for word in os.environ.get("XLA_FLAGS", "").split()}
    return {name: value for name, value in _ON_GPU.items() if f"--{name}" not in chosen}


def jit_for_few_runs(function: Callable, **options) -> Callable:
    """`jax.jit` of a small program that runs a few times: on a CPU it is compiled quickly rather than well."""

    @functools.cache
    def compiled():
        return jax.jit(function, compiler_options=_QUICKLY if platform() == "cpu" else None, **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        # Inside another program these are not a program of their own, and JAX refuses options there.
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return function(*args, **kwargs) if traced else compiled()(*args, **kwargs)

    return call

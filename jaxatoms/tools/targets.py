"""Chips that are not there, as devices which JAX can compile for: `v5e:4x4` (libtpu) and `h200:8` (XLA's GPU compiler).

Compiling for a GPU needs no GPU, driver or CUDA runtime, but the packages of `jaxatoms[gpu-compile]`.
"""

import os
import re
from typing import Any, NamedTuple

import jaxlib

from jaxatoms.tools import chips
from jaxatoms.types import InputError

LARGEST_HOST = 8  # GPUs that the links of the table connect
# Triton products need a GPU to be tuned on; cuBLAS takes its default algorithm instead.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Target(NamedTuple):
    """Described devices of one kind."""

    name: str  # as asked for
    chip: chips.Chip
    devices: list[Any]  # of JAX; programs can be compiled for them but not run

    @property
    def device_kind(self) -> str:
        """The name of the devices as JAX gives it, such as "TPU v5 lite"; of a described GPU the chip's, "H200"."""
        return self.name.partition(":")[0].upper() if self.chip.platform == "gpu" else self.devices[0].device_kind

    @property
    def options(self) -> dict[str, Any]:
        """Options to compile with."""
        return dict(GPU_OPTIONS) if self.chip.platform == "gpu" else {}


def find_target(name: str) -> Target:
    """The chips of a name such as v5e:4x4 (a TPU topology), h200 or h200:8 (GPUs of one host).

    Raises:
      InputError: an unknown chip or shape, or the compiler for it is not installed.
    """
    generation, _, shape = name.partition(":")
    chip = chips.CHIPS.get(generation)
    if chip is not None and chip.platform == "gpu" and re.fullmatch(r"[a-z]\d+(:\d+)?", name):
        return Target(name, chip, _gpu_devices(name, generation, int(shape or 1)))
    if chip is not None and chip.platform == "tpu" and re.fullmatch(r"\w+:\d+(x\d+)+", name):
        return Target(name, chip, _tpu_devices(name))
    tpus, gpus = (", ".join(chips.names(platform)) for platform in ("tpu", "gpu"))
    raise InputError(f"--compile-for {name}: use {tpus} with a shape, such as v5e:4x4 or v5p:2x2x1, or {gpus} alone or "
                     "with a number of devices, such as h200:8")  # fmt: skip


def _tpu_devices(name: str) -> list[Any]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server outside a cloud machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run, so no chip is claimed
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies  # reads the environment

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # libtpu reports through several classes
        text = str(error).splitlines()[0]
        raise InputError(f"--compile-for {name}: {text}; pip install libtpu, and check the shape") from error


def _gpu_devices(name: str, gpu: str, n_device: int) -> list[Any]:
    if not 1 <= n_device <= LARGEST_HOST:
        raise InputError(f"--compile-for {name}: a host has 1 to {LARGEST_HOST} GPUs; use a number such as {gpu}:8")
    from jax.experimental import topologies

    try:  # partitions x hosts x devices
        return topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{n_device}", target_config=chips.description(gpu)
        ).devices
    except Exception as error:  # NotImplementedError without a plugin; a plugin reports through several classes
        text, version = str(error).splitlines()[0], jaxlib.__version__
        raise InputError(
            f"--compile-for {name}: {text}; pip install 'jaxatoms[gpu-compile]' jax-cuda12-plugin=={version} "
            f"jax-cuda12-pjrt=={version} (as jaxlib), and set JAX_PLATFORMS=cpu"
        ) from error

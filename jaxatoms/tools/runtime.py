"""Process-wide settings of a command: memory allocator, compilation cache and platform."""

import ctypes
import functools
import os
import platform
from pathlib import Path

import jax

from jaxatoms.types import InputError

HOPPER = "9.0"  # compute capability of H100 and H200
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = 1.0  # seconds; what shorter compilations leave behind is not worth a look
KEPT_BYTES, KEPT_SECONDS = 2 * 2**30, 0.2  # of compiled programs: all together, and compiled for longer than this


def keep_freed_memory():
    """Let glibc keep what XLA:CPU frees after every step instead of returning it to the system.

    XLA:CPU allocates its temporaries anew at each step; fresh pages then cost a fault per 4 KiB, a tenth to a
    seventh of a step. Threads keep heaps of their own: in one heap for all of them, what another thread allocates
    during a step can lie behind the temporaries, and the next step's then find no room (docs/notes/training_step.md).
    Does nothing elsewhere, or where the user chose malloc settings.
    """
    if not _has_glibc() or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never: what is freed after a step may be more than an int can say


@functools.cache
def return_compiler_memory():
    """After each long compilation give back what it freed, before the program's own memory comes on top of it.

    A training step of variant S leaves 0.7 GiB that its temporaries, one block, do not fit into.
    """
    if _has_glibc():
        jax.monitoring.register_event_duration_secs_listener(_after_compilation)


def _after_compilation(event: str, seconds: float, **_):
    if event == _COMPILED and seconds > LONG:
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def use_compilation_cache():
    """Keep compiled programs for the next start, in `xla` below JAXATOMS_CACHE or else ~/.cache/jaxatoms.

    Those that were not used for longest go when the folder holds 2 GiB. What cannot be kept or loaded is compiled.
    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR moves the folder, JAX_ENABLE_COMPILATION_CACHE=false
    switches it off.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    folder = Path(os.environ.get("JAXATOMS_CACHE") or "~/.cache/jaxatoms").expanduser() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)


def without_accelerators():
    """Let this process use the CPU alone, whatever JAX_PLATFORMS says; without effect once a backend was used.

    Compilers for chips that are not there load so without asking for one.
    """
    jax.config.update("jax_platforms", "cpu")


def check_kernels(implementation: str):
    """Refuse kernels that the devices of this process cannot run.

    Args:
      implementation: a value of `--kernels`.

    Raises:
      InputError: naming the option.
    """
    if implementation == "pallas_tpu" and jax.default_backend() != "tpu":
        raise InputError("--kernels pallas_tpu is for TPUs; leave it out here")
    if implementation == "mosaic_gpu":
        capability = getattr(jax.devices()[0], "compute_capability", None)
        if capability != HOPPER:
            raise InputError("--kernels mosaic_gpu is for NVIDIA H100 and H200; leave it out here")


def prepare_process():
    """Settings of the allocator, the compiler's memory and its cache."""
    keep_freed_memory()
    return_compiler_memory()
    use_compilation_cache()

"""Process-wide settings of a training process: memory allocator and compilation cache. Called by commands only."""

import ctypes
import os
import platform
from pathlib import Path

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory():
    """Let glibc keep what XLA:CPU frees after every step instead of returning it to the system.

    XLA:CPU allocates its temporaries anew at each step; fresh pages then cost a fault per 4 KiB, a tenth to a
    seventh of a step. Does nothing elsewhere, or where the user chose malloc settings.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_ARENA_MAX, 1)


def use_compilation_cache():
    """Keep compiled programs in ~/.cache/jaxatoms/xla, unless JAX was told where (JAX_COMPILATION_CACHE_DIR)."""
    # Not on CPU: programs loaded from the cache there warn about machine features and need not repeat bit for bit.
    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        root = Path(os.environ.get("JAXATOMS_CACHE") or "~/.cache/jaxatoms").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(root / "xla"))


def prepare_process():
    """Both of the above."""
    keep_freed_memory()
    use_compilation_cache()

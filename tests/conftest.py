"""Puts this folder on the import path (pytest does so for the folder of a conftest): `fixtures`, `twins`.

XLA compiles without LLVM's optimisations and with its older code generator, which takes half as long, here and in the
processes that tests start: compiling is most of what the tests spend, and results do not depend on it beyond rounding.
What takes more than a second to compile is kept for the test run, so that runs that resume, and processes of their own,
load it.
"""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

import pytest

_QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones have no older generator
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")
if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):  # on an accelerator the programs under test are those of users
    os.environ["XLA_FLAGS"] = " ".join((*_QUICK, os.environ.get("XLA_FLAGS", "")))

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process of a test run; others inherit it
    _programs = tempfile.mkdtemp(prefix="jaxatoms-test-programs-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of a module's tests are dropped at its end; together they would fill 10 GiB."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond 100 kB, which fails as a full disk does (Python ignores the signal)."""
    import contextlib
    import resource

    @contextlib.contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited

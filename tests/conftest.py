"""Puts this folder on the import path (pytest does so for the folder of a conftest): `fixtures`, `twins`.

XLA compiles without LLVM's optimisations, here and in the processes that tests start: compiling is most of what the
tests spend, and results do not depend on it beyond rounding.
"""

import os

import pytest

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of a module's tests are dropped at its end; together they would fill 10 GiB."""
    yield
    import jax

    jax.clear_caches()

"""Puts this folder on the import path (pytest does so for the folder of a conftest): `fixtures`, `twins`.

XLA compiles without LLVM's optimisations, here and in the processes that tests start: compiling is most of what the
tests spend, and results do not depend on it beyond rounding.
"""

import os

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

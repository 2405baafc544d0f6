"""A function of padded batches, compiled once per batch shape; shapes are shared, and few are kept."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxatoms.data.packing import reused_budget
from jaxatoms.graphs.batch import BatchBudget

KEPT = 8  # programs; one of GemNet-OC-S with gradient forces takes some 100 MiB of host memory


class CompiledShapes:
    """`function`, compiled for the shapes of the batches that come.

    Args:
      function: of arrays and padded batches.
      kept: programs in memory; a further one displaces the one used longest ago.

    Attributes:
      n_compiled: compilations so far.
    """

    def __init__(self, function: Callable[..., Any], kept: int = KEPT):
        self._function, self._kept = function, kept
        self._programs: dict[BatchBudget, Any] = {}  # the one used last stands last
        self.n_compiled = 0

    def budget_for(self, need: BatchBudget, batch_edges: int = 0) -> BatchBudget:
        """The shape for a batch that needs `need`; see `packing.reused_budget`."""
        return reused_budget(need, list(self._programs), batch_edges)

    def __call__(self, budget: BatchBudget, *args: Any) -> Any:
        """The function of `args`, whose batch has the shape `budget`."""
        # A function of its own, so that its compiled code goes with it.
        program: Any = self._programs.pop(budget, None) or jax.jit(functools.partial(self._function))
        self._programs[budget] = program
        if len(self._programs) > self._kept:
            del self._programs[next(iter(self._programs))]
        before = program._cache_size()
        out = program(*args)
        self.n_compiled += program._cache_size() - before
        return out

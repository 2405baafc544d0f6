"""Where a kernel was measured to be faster than XLA: what `auto` chooses. Empty, for none has been measured yet.

A row belongs here once `benchmarks.kernels` and `benchmarks.train_throughput --kernels` have shown, on the hardware,
that the kernel is more than 15 % faster by itself and that the training step does not become slower. A kernel that
differentiates once needs a way to know that nothing differentiates twice; `auto` is asked for by pretraining alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxatoms.ops.target import chip


class Win(NamedTuple):
    """One measured case."""

    operation: str
    implementation: str
    chip: str  # a word of the device's name as JAX gives it, such as "H200" of "NVIDIA H200"
    where: Callable[..., bool]  # of the operation's arguments, their shapes and types
    source: str  # the file of benchmarks/results or the note with the measurement


WINS: tuple[Win, ...] = ()


def measured(operation: str, args: Sequence[Any], table: Sequence[Win] = WINS) -> str | None:
    """The implementation that was measured to be faster with these arguments on this chip; None without one."""
    rows = (win for win in table if win.operation == operation and win.chip in chip().split())
    return next((win.implementation for win in rows if win.where(*args)), None)

"""Calls of the training step: which steps one call makes, and their batches stacked for it.

A call of several steps saves their dispatch, which is what small batches wait for. Its batches must share one shape.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxatoms.data.loader import TrainBatches
from jaxatoms.data.shards import ShardedBatches
from jaxatoms.graphs.batch import GraphBatch, stack


class Call(NamedTuple):
    """Consecutive steps that one call makes."""

    first: int
    length: int


def plan_calls(first: int, total: int, every: Sequence[int], length: int) -> Iterator[Call]:
    """The calls of steps first .. total - 1: `length` steps each, and single ones where fewer are left.

    No call goes past the end or a multiple of any of `every`, where validation and saving need the state. From a step
    between two calls the plan continues as if it had begun earlier, so a resumed run makes the same calls.
    """
    while first < total:
        left = min(total, *((first // n + 1) * n for n in every)) - first
        yield Call(first, length if left >= length else 1)
        first += length if left >= length else 1


@dataclasses.dataclass
class StackedBatches:
    """Batches of a run for calls of several steps: leaves [n_step, ...], of each device where there are several."""

    source: TrainBatches | ShardedBatches

    def batch(self, call: Call) -> GraphBatch | list[GraphBatch]:
        """The batches of a call, all in the smallest budget that holds every one."""
        steps = range(call.first, call.first + call.length)
        if isinstance(self.source, TrainBatches):
            return stack(self.source.alike(steps))
        return [stack(batches) for batches in zip(*self.source.alike(steps), strict=True)]

"""Connects the devices and processes of a run: they join, share batches, and agree when to stop.

Only process 0 writes, and all processes share the file system of the run folder. On a single device these functions do
nothing.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxatoms.data import loader, shards
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.tools import lock
from jaxatoms.training import parallel
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.types import InputError


def join(coordinator: str | None, num_processes: int | None, process_id: int | None):
    """Joins the other processes of the run, if there are any; only process 0 keeps its standard output.

    It must be called before JAX uses a device.

    Raises:
      InputError: the options do not belong together, or the others cannot be reached.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num-processes and --process-id need --coordinator HOST:PORT")
        return
    args = {} if coordinator == "auto" else dict(coordinator_address=coordinator)
    if args and (num_processes is None or process_id is None):
        raise InputError("--coordinator HOST:PORT needs --num-processes and --process-id")
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM, which `StopFlag` handles
    # On CPUs, programs that run at the same time could enter collectives in another order than the other processes.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(**args, num_processes=num_processes, process_id=process_id)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--coordinator {coordinator}: {str(error).splitlines()[0]}") from error
    if not is_writer():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


def is_writer() -> bool:
    """Whether this process writes the run folder."""
    return jax.process_index() == 0


def wait_for_all(what: str):
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def writer_first(what: str) -> Iterator[None]:
    """Lets process 0 run the block before the others, so that they find what it converts or downloads."""
    if not is_writer():
        wait_for_all(what)
    yield
    if is_writer():
        wait_for_all(what)


def agreed(decide: Callable[[], bool]) -> bool:
    """Returns the decision of process 0 in every process."""
    if jax.process_count() == 1:
        return decide()
    own = decide() if is_writer() else False
    return bool(multihost_utils.broadcast_one_to_all(np.array(own)))


@contextlib.contextmanager
def one_run(run_dir: Path) -> Iterator[None]:
    """Lets process 0 hold the run folder for all processes of the run while the block runs.

    Raises:
      InputError: another run holds it; every process raises the error.
    """
    with contextlib.ExitStack() as held:
        problem = InputError(f"{run_dir}: process 0 could not take the run folder; see its message")

        def take() -> bool:
            nonlocal problem
            try:
                held.enter_context(lock.hold(run_dir))
            except InputError as error:
                problem = error
                return False
            return True

        if not agreed(take):
            raise problem
        yield


@dataclasses.dataclass
class Fleet:
    """The devices of a run."""

    mesh: Mesh | None
    shard_optimizer: bool = False

    def share(self, whole: loader.TrainBatches, sizes, edges, *, batch_edges, shapes: int, headroom: float,
              accumulate: int, alike: int):
        """Cuts the run's batches into parts for the devices of this process; a single part stays as it is.

        Args:
          sizes: `structure_sizes` of a sample.
          edges: [n] expected main edges of all samples.
          accumulate: number of parts of each device.
          alike: number of steps whose parts share a shape.
        """
        n = parallel.n_parts(self.mesh)
        if n * accumulate == 1:
            return whole
        if batch_edges is None and whole.batch_size < n * accumulate:
            raise InputError(f"--batch-size {whole.batch_size} leaves some of {n} devices empty; lower --devices")
        groups = shards.drawn_groups(sizes, whole.batch_size, batch_edges, whole.seed)
        largest = int(whole.corpus.n_node(whole.samples).max())
        budgets = shards.part_budgets(sizes, groups, n * accumulate, largest, shapes, headroom, alike)
        return shards.ShardedBatches(whole, edges, budgets, n, parallel.own_parts(self.mesh), accumulate)

    def place(self, batch: Any, axis: int = 0) -> GraphBatch:
        """Puts a host batch (a list of parts) onto the devices, whose axis becomes number `axis`."""
        return parallel.place_batch(batch if isinstance(batch, list) else [batch], self.mesh, axis)

    def place_state(self, state, constants) -> tuple[Any, Any, Any]:
        """Puts (state, constants) of process 0 onto all devices; returns them and the shardings of the state."""
        if self.mesh is None:
            return state, constants, None
        shardings = parallel.state_shardings(state, self.mesh, self.shard_optimizer)
        whole = parallel.replicated(self.mesh)
        return parallel.place_state(state, shardings), parallel.place_state(constants, whole), shardings

    def whole(self, tree):
        """Returns the same arrays, complete on every device."""
        return parallel.gather(tree, self.mesh) if self.shard_optimizer else tree

    def grouped(self, batches: list[GraphBatch]) -> list:
        """Groups evaluation batches as `place` takes them."""
        if self.mesh is None:
            return batches
        return loader.grouped(batches, self.mesh.size, parallel.own_parts(self.mesh))

    def agreement(self, every: int) -> Callable[[bool], bool]:
        """Returns a function that tells whether any process wants to stop; it asks at each `every`-th call."""
        if jax.process_count() == 1:
            return bool
        calls = 0

        def agree(wish: bool) -> bool:
            nonlocal calls
            calls += 1
            return calls % every == 0 and bool(multihost_utils.process_allgather(np.array(wish)).any())

        return agree


class FleetStore(CheckpointStore):
    """Stores checkpoints that process 0 writes and every process reads."""

    def __init__(self, directory: str | Path, fleet: Fleet, **options):
        super().__init__(directory, **options)
        self._fleet = fleet

    def save(self, step, arrays, meta, kind="last") -> Path:
        """Saves as `CheckpointStore.save` does; every process must call it."""
        arrays = self._fleet.whole(arrays)  # all processes take part in this
        return super().save(step, arrays, meta, kind) if is_writer() else self.directory


def output_dir(run_dir: Path) -> Path:
    """Returns where this process writes its records: process 0 into the run folder, others into a temporary one."""
    return run_dir if is_writer() else Path(tempfile.mkdtemp(prefix="jaxatoms-process-"))

"""`--compile-for v5e:4x4`: the real training step compiled for TPU chips that are not there, and what it would cost.

Needs `libtpu` from the package index, no TPU. What the compiler reports (memory, arithmetic, bytes) is exact for the
program, but for loops (searches in GemNet-OC, blocks in EquiformerV2 and with --remat), whose body it counts once;
time follows from a stated roofline, a bound and not a measurement. The compiler's own estimate of the time is not used:
it came out negative on programs of this kind.
"""

import dataclasses
import os
import re
import time
from typing import TextIO

import jax
import numpy as np

from jaxatoms.data import loader, packing, shards
from jaxatoms.graphs.batch import BatchBudget, collate, empty_structures
from jaxatoms.models import registry as models
from jaxatoms.ops.target import compiling_for
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.runs.pretraining import Pretraining, prepare
from jaxatoms.runs.run import TrainingRun, lower_step
from jaxatoms.tools import hlo
from jaxatoms.training import parallel
from jaxatoms.types import InputError

# Passes of the bf16 matrix unit per product: jax.lax.Precision on TPU (HIGHEST = 6, HIGH = 3).
LARGEST_PARTS = 6  # are named in the report
PASSES = {"bfloat16": 1, "tf32": 3, "float32": 6}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip."""

    flops: float  # bf16, per second
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes per second
    link: float  # all interconnect links of the chip, one direction, bytes per second
    cores: int = 1  # devices per chip, as JAX counts them


# Source: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, key specifications.
CHIPS = {
    "v4": Chip(275e12, 32e9, 1.228e12, 300e9, cores=2),
    "v5e": Chip(197e12, 16e9, 0.819e12, 200e9),
    "v5p": Chip(459e12, 95e9, 2.765e12, 600e9),
    "v6e": Chip(918e12, 32e9, 1.640e12, 448e9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says about one step on one device."""

    topology: str
    n_device: int
    seconds: float  # to compile
    flops: float
    bytes_accessed: float  # by the compiler's count, on-chip memory included
    parts: dict[str, int]  # bytes read from and written to main memory, by part of the model
    arguments: int  # bytes
    temporaries: int  # bytes
    collectives: dict[str, int]  # bytes by kind
    structures: float  # per step, over all devices
    edges: int  # edge slots per device

    @property
    def main_memory(self) -> int:
        """Bytes read from and written to main memory."""
        return sum(self.parts.values())

    @property
    def chip(self) -> Chip:
        """The chip of the topology."""
        return CHIPS[self.topology.split(":")[0]]


def report_for(config: PretrainConfig, out: TextIO):
    """`--compile-for`: the step compiled for a TPU topology, and its roofline."""
    if config.accumulate * config.steps_per_call > 1:
        raise InputError("--compile-for compiles a plain step; drop --accumulate and --steps-per-call")
    if config.remat == "auto":
        raise InputError("--compile-for has no device to ask for its memory; choose --remat yes or no")
    n_device = len(find_topology(config.compile_for).devices)
    run = prepare(dataclasses.replace(config, devices=1), None)
    assert isinstance(run.batches, loader.TrainBatches)  # of one device
    shape = part_shape(config, run.batches.corpus, run.batches.samples, n_device)
    print_report(compile_for(config.compile_for, run, *shape), run, out)


def find_topology(name: str):
    """The devices of a topology such as v5e:4x4, described by libtpu.

    Raises:
      InputError: an unknown chip or shape, or no libtpu.
    """
    generation = name.split(":")[0]
    if generation not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)+", name):
        raise InputError(f"--compile-for {name}: use {', '.join(CHIPS)} with a shape, such as v5e:4x4 or v5p:2x2x1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server outside a cloud machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run, so no chip is claimed
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies  # reads the environment

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu reports through several classes
        text = str(error).splitlines()[0]
        raise InputError(f"--compile-for {name}: {text}; pip install libtpu, and check the shape") from error


def compile_for(name: str, run: TrainingRun, budget: BatchBudget, structures: float) -> Compiled:
    """Compile the training step of a prepared run for a topology.

    Args:
      run: on the host.
      budget: of one device's part.
      structures: real ones per step, over all devices.

    Raises:
      InputError: the step does not fit into a chip's memory.
    """
    devices = find_topology(name).devices
    mesh = jax.sharding.Mesh(np.array(devices), (parallel.AXIS,))
    with compiling_for("tpu"):  # the model is written differently for CPUs
        lowered = lower_step(run, collate(*empty_structures(), budget), mesh)
    began = time.perf_counter()
    program = _fitting(lowered, name)
    seconds = time.perf_counter() - began
    cost, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    return Compiled(
        topology=name,
        n_device=len(devices),
        seconds=seconds,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        parts=hlo.bytes_by_part(hlo.operations(text)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=hlo.collective_bytes(text),
        structures=structures,
        edges=budget.n_main,
    )


def _fitting(lowered, name: str):
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+[GM])\) exceeds available HBM \(([\d.]+[GM])\)", str(error))
        sizes = f" (temporaries take {needed[1]} of {needed[2]})" if needed else ""
        raise InputError(f"--compile-for {name}: the step does not fit into a chip{sizes}; lower --batch-edges or "
                         "--batch-size, or add --remat yes") from error  # fmt: skip


def bounds(c: Compiled, precision: str) -> dict[str, float]:
    """Seconds per step that arithmetic, memory traffic and the sum of gradients take at the chip's peaks."""
    share = 1 / c.chip.cores
    ring = 2 * (c.n_device - 1) / c.n_device  # bytes that each device sends per byte summed
    return {
        "arithmetic": PASSES[precision] * c.flops / (share * c.chip.flops),
        "memory": c.main_memory / (share * c.chip.bandwidth),
        "all-reduce": ring * sum(c.collectives.values()) / (share * c.chip.link),
    }


def step_seconds(times: dict[str, float]) -> float:
    """Arithmetic and memory overlap, the sum of gradients does not (the pessimistic case)."""
    return max(times["arithmetic"], times["memory"]) + times["all-reduce"]


def part_shape(config, corpus, samples, n_device: int) -> tuple[BatchBudget, float]:
    """(largest budget of a device's part, structures per step) for the run's batches."""
    sizes = loader.measure(corpus, samples, config.edge_dropout, config.seed)
    groups = shards.drawn_groups(sizes, config.batch_size, config.batch_edges, config.seed)
    largest = int(corpus.n_node(samples).max())
    budgets = shards.part_budgets(sizes, groups, n_device, largest, config.batch_shapes or packing.MAX_SHAPES)
    return budgets[-1], float(np.mean([len(group) for group in groups]))


def print_report(c: Compiled, run: Pretraining, out: TextIO):
    """The compiler's numbers and the roofline, as text."""
    config, times = run.config, bounds(c, run.config.precision)
    seconds, gib = step_seconds(times), 2**30
    say = lambda text: print(text, file=out, flush=True)  # noqa: E731
    say(f"topology    {c.topology}: {c.n_device} devices, {c.chip.cores} per chip; libtpu, nothing was run")
    name = config.model or config.init
    say(f"model       {name}: {models.count_params(run.model.params):,} parameters, {config.precision}")
    say(f"part        {c.edges} edge slots per device; {c.structures:.0f} structures per step over all devices")
    say(f"compiled    in {c.seconds:.0f} s")
    total, limit = c.arguments + c.temporaries, c.chip.memory / c.chip.cores
    say(f"memory      {total / gib:.2f} GiB per device ({c.temporaries / gib:.2f} temporary) of {limit / gib:.1f}")
    say(f"arithmetic  {c.flops / 1e9:.1f} GFLOP per device and step, {PASSES[config.precision]} bf16 passes each")
    say(f"traffic     {c.main_memory / 1e9:.1f} GB of main memory per device and step "
        f"({c.bytes_accessed / 1e9:.1f} GB with on-chip memory, as the compiler counts)")
    largest = list(c.parts.items())[:LARGEST_PARTS]
    say("of it       " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in largest))
    say("collectives " + (", ".join(f"{k} {v / 1e6:.1f} MB" for k, v in c.collectives.items()) or "none"))
    say("roofline    " + ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in times.items()))
    budget = run.n_train * config.epochs
    hours = budget / c.structures * seconds / 3600
    say(f"bound       {c.structures / seconds:.0f} structures/s; N x E = {budget} in {hours:.3f} h")

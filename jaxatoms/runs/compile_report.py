"""What a compiled training step costs on chips that are not there, and the report of it."""

import dataclasses
from collections import Counter
from typing import TextIO

from jaxatoms.models import registry as models
from jaxatoms.runs.pretraining import Pretraining
from jaxatoms.tools import hlo, roofline
from jaxatoms.tools.chips import CHIPS, Chip
from jaxatoms.tools.gpu_dump import Graphs, Kernel

LARGEST_PARTS, LARGEST_KERNELS = 6, 4  # are named in the report
COMPILERS = {"tpu": "libtpu", "gpu": "XLA's compiler for NVIDIA GPUs"}
FLOORED = "launches of at least 2 us"
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuProgram:
    """What is known of a program for GPUs alone."""

    launched: list[hlo.Operation]  # in their order
    graphs: Graphs
    kernels: list[Kernel]  # of the largest modules; none where no assembler was found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says about one step on one device."""

    target: str
    n_device: int
    seconds: float  # to compile
    products: dict[str, float]  # arithmetic by precision; on TPU all of it, by the compiler's count
    compiler_bytes: float | None  # by the compiler's count, on-chip memory included; None for GPUs
    parts: dict[str, int]  # bytes read from and written to main memory, by part of the model
    part_flops: dict[str, int]  # of products, by part of the model; nothing on TPU
    arguments: int  # bytes
    temporaries: int  # bytes
    collectives: list[hlo.Collective]
    structures: float  # per step, over all devices
    edges: int  # edge slots per device
    gpu: GpuProgram | None = None

    @property
    def main_memory(self) -> int:
        """Bytes read from and written to main memory."""
        return sum(self.parts.values())

    @property
    def chip(self) -> Chip:
        """The chip of the target."""
        return CHIPS[self.target.split(":")[0]]


def bounds(c: Compiled) -> dict[str, float]:
    """Seconds per step at the chip's peaks: arithmetic, memory traffic, the sum of gradients, and launches of GPUs."""
    exchanged = sum(exchange.bytes for exchange in c.collectives)
    times = {
        "arithmetic": roofline.product_seconds(c.products, c.chip),
        "memory": roofline.memory_seconds(c.main_memory, c.chip),
        "all-reduce": roofline.ring_seconds(exchanged, c.n_device, c.chip),
    }
    if c.gpu is not None:
        times["launches"] = roofline.launches_seconds(c.gpu.launched, c.chip)
        times[FLOORED] = roofline.launches_seconds(c.gpu.launched, c.chip, roofline.LAUNCH_FLOOR)
    return times


def step_seconds(times: dict[str, float]) -> float:
    """The sum of gradients overlaps with nothing (the pessimistic case).

    On TPU arithmetic and memory overlap over the whole step, on GPUs within each launch, which takes at least 2 us.
    """
    return times.get(FLOORED, max(times["arithmetic"], times["memory"])) + times["all-reduce"]


def print_report(c: Compiled, run: Pretraining, out: TextIO):
    """The compiler's numbers and the roofline, as text."""
    config, times = run.config, bounds(c)
    seconds, budget = step_seconds(times), run.n_train * config.epochs
    hours = budget / c.structures * seconds / 3600
    lines = [
        ("target", f"{c.target}: {_number(c.n_device, 'device')}, {c.chip.cores} per chip; "
                   f"{COMPILERS[c.chip.platform]}, nothing was run; peaks of {c.chip.source}"),
        ("model", f"{config.model or config.init}: {models.count_params(run.model.params):,} parameters, "
                  f"{config.precision}"),
        ("part", f"{c.edges} edge slots per device; {c.structures:.0f} structures per step over all devices"),
        ("compiled", f"in {c.seconds:.0f} s"),
        ("memory", _memory(c)),
        *(_on_gpu(c, c.gpu) if c.gpu is not None else _on_tpu(c, config.precision)),
        ("collectives", _collectives(c.collectives)),
        ("roofline", ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in times.items())),
        ("bound", f"{c.structures / seconds:.0f} structures/s, not measured; N x E = {budget} in {hours:.3f} h"),
    ]  # fmt: skip
    print(*(f"{name:<11} {text}" for name, text in lines), sep="\n", file=out, flush=True)


def _on_tpu(c: Compiled, precision: str) -> list[tuple[str, str]]:
    passes, flops = c.chip.flops["bfloat16"] / c.chip.flops[precision], sum(c.products.values())
    largest = list(c.parts.items())[:LARGEST_PARTS]
    return [
        ("arithmetic", f"{flops / 1e9:.1f} GFLOP per device and step, {passes:.0f} bf16 passes each"),
        ("traffic", f"{c.main_memory / 1e9:.1f} GB of main memory per device and step "
                    f"({(c.compiler_bytes or 0) / 1e9:.1f} GB with on-chip memory, as the compiler counts)"),
        ("of it", ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in largest)),
    ]  # fmt: skip


def _on_gpu(c: Compiled, gpu: GpuProgram) -> list[tuple[str, str]]:
    largest = list(c.parts.items())[:LARGEST_PARTS]
    products = hlo.products_by_precision(gpu.launched)
    short = sum(roofline.launch_seconds(launch, c.chip) < roofline.LAUNCH_FLOOR for launch in gpu.launched)
    return [
        ("arithmetic", f"{sum(c.products.values()) / 1e9:.1f} GFLOP of products per device and step"),
        ("products", ", ".join(f"{name} {flops / 1e9:.1f} GFLOP in {_number(calls, 'launch')}"
                               for name, (flops, calls) in products.items()) or "none"),
        ("traffic", f"{c.main_memory / 1e9:.1f} GB of main memory per device and step, nothing kept in the L2 cache"),
        ("of it", ", ".join(f"{name} {size / 1e9:.1f} GB and {c.part_flops[name] / 1e9:.0f} GFLOP"
                            for name, size in largest)),
        ("launches", f"{len(gpu.launched):,} a step by its operations, {short:,} of them of less than 2 us by the "
                     "roofline"),
        ("graphs", f"{_number(gpu.graphs.graphs, 'CUDA graph')} with {gpu.graphs.inside:,} launches; "
                   f"{gpu.graphs.outside:,} outside"),
        ("registers", _registers(gpu.kernels)),
    ]  # fmt: skip


def _memory(c: Compiled) -> str:
    total, limit = c.arguments + c.temporaries, c.chip.memory / c.chip.cores
    fits = "fits" if total <= limit else "does not fit"
    return f"{total / GIB:.2f} GiB per device ({c.temporaries / GIB:.2f} temporary) of {limit / GIB:.1f}: {fits}"


def _registers(kernels: list[Kernel]) -> str:
    if not kernels:
        return "not known: the assembler ptxas (nvidia-cuda-nvcc-cu12) was not found"
    named = ", ".join(f"{kernel.name} {kernel.registers}" for kernel in kernels[:LARGEST_KERNELS])
    spilling = [kernel for kernel in kernels if kernel.spilled]
    spills = ", ".join(f"{kernel.name} {kernel.spilled} bytes" for kernel in spilling[:LARGEST_KERNELS])
    return f"per thread, of the {len(kernels)} largest kernels: {named}; spilled: {spills or 'nothing'}"


def _collectives(found: list[hlo.Collective]) -> str:
    total, calls = Counter(), Counter(exchange.kind for exchange in found)
    for exchange in found:
        total[exchange.kind] += exchange.bytes
    text = ", ".join(f"{kind} {size / 1e6:.1f} MB in {_number(calls[kind], 'call')}" for kind, size in total.items())
    beside = [f"{exchange.bytes / 1e6:.1f} MB beside {_number(exchange.beside, 'launch')}"
              for exchange in found if exchange.beside]  # fmt: skip
    return f"{text}; of them {', '.join(beside) or 'none beside other launches'}" if found else "none"


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('ch') else 's'}"

"""`--compile-for v5e:4x4` or `h200:8`: the real training step compiled for chips that are not there, and its cost.

TPUs need `libtpu` from the package index, NVIDIA GPUs the packages of `jaxatoms[gpu-compile]`; neither needs a device.
What the compiler reports (memory; on TPU arithmetic and bytes) and what is read off its program is exact for the
program. The body of a loop counts as often as it runs on GPUs, and once in a TPU compiler's own figures; time
follows from a stated roofline, a bound and not a measurement. A TPU compiler's own estimate of the time is not used: it
came out negative on programs of this kind. For GPUs nothing is tuned: products go to cuBLAS at its default algorithm.
"""

import dataclasses
import re
import tempfile
import time
from pathlib import Path
from typing import TextIO

import jax
import numpy as np

from jaxatoms.data import loader, packing, shards
from jaxatoms.graphs.batch import BatchBudget, collate, empty_structures
from jaxatoms.ops.target import compiling_for
from jaxatoms.runs.compile_report import Compiled, GpuProgram, print_report
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.runs.pretraining import prepare
from jaxatoms.runs.run import TrainingRun, lower_step
from jaxatoms.tools import chips, gpu_dump, hlo
from jaxatoms.tools.runtime import without_accelerators
from jaxatoms.tools.targets import Target, find_target
from jaxatoms.types import InputError


def report_for(config: PretrainConfig, out: TextIO):
    """`--compile-for`: the step compiled for a TPU topology or for GPUs, and its roofline."""
    if config.accumulate * config.steps_per_call > 1:
        raise InputError("--compile-for compiles a plain step; drop --accumulate and --steps-per-call")
    if config.remat == "auto":
        raise InputError("--compile-for has no device to ask for its memory; choose --remat yes or no")
    without_accelerators()
    jax.config.update("jax_enable_compilation_cache", False)  # a program for chips that are not there cannot be loaded
    target = find_target(config.compile_for)
    check_kernels_of(config.kernels, target)
    run = prepare(dataclasses.replace(config, devices=1), None, shapes_only=True)
    assert isinstance(run.batches, loader.TrainBatches)  # of one device
    shape = part_shape(config, run.batches.corpus, run.batches.samples, len(target.devices))
    print_report(compile_for(target, run, *shape), run, out)


def check_kernels_of(implementation: str, target: Target):
    """Refuse kernels that are not for the chips of a target.

    Raises:
      InputError: naming the option.
    """
    made_for = {"pallas_tpu": chips.names("tpu"), "mosaic_gpu": ["h100", "h200"]}
    chip = target.name.partition(":")[0]
    if chip not in made_for.get(implementation, [chip]):
        known = ", ".join(made_for[implementation])
        raise InputError(f"--kernels {implementation} is for {known}; leave it out for {chip}")


def compile_for(target: Target, run: TrainingRun, budget: BatchBudget, structures: float) -> Compiled:
    """Compile the training step of a prepared run for chips.

    Args:
      run: on the host.
      budget: of one device's part.
      structures: real ones per step, over all devices.

    Raises:
      InputError: the step does not fit into a TPU's memory.
    """
    with compiling_for(target.chip.platform, target.device_kind):  # the model is written differently for CPUs
        lowered = lower_step(run, collate(*empty_structures(), budget), target.devices)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        program = _fitting(lowered, target, Path(folder))
        seconds = time.perf_counter() - began
        gpu = _gpu_program(program.as_text(), Path(folder)) if target.chip.platform == "gpu" else None
    memory, text, cost = program.memory_analysis(), program.as_text(), program.cost_analysis() or {}
    operations = hlo.operations(text)
    products = {precision: float(n) for precision, (n, _) in hlo.products_by_precision(operations).items()}
    return Compiled(
        target=target.name,
        n_device=len(target.devices),
        seconds=seconds,
        products=products if gpu else {run.config.precision: cost["flops"]},
        compiler_bytes=cost.get("bytes accessed"),
        parts=hlo.bytes_by_part(operations),
        part_flops=hlo.flops_by_part(operations),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=hlo.collectives(text),
        structures=structures,
        edges=budget.n_main,
        gpu=gpu,
    )


def _gpu_program(text: str, dumped: Path) -> GpuProgram:
    ptxas = gpu_dump.find_ptxas()
    kernels = [] if ptxas is None else gpu_dump.largest_kernels(dumped, ptxas)
    return GpuProgram(launched=hlo.launches(text), graphs=gpu_dump.cuda_graphs(dumped), kernels=kernels)


def _fitting(lowered, target: Target, dump: Path):
    try:
        if target.chip.platform == "gpu":
            return lowered.compile(compiler_options={**target.options, "xla_dump_to": str(dump)})
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+[GM])\) exceeds available HBM \(([\d.]+[GM])\)", str(error))
        sizes = f" (temporaries take {needed[1]} of {needed[2]})" if needed else ""
        raise InputError(f"--compile-for {target.name}: the step does not fit into a chip{sizes}; lower --batch-edges "
                         "or --batch-size, or add --remat yes") from error  # fmt: skip


def part_shape(config, corpus, samples, n_device: int) -> tuple[BatchBudget, float]:
    """(largest budget of a device's part, structures per step) for the run's batches."""
    sizes = loader.measure(corpus, samples, config.edge_dropout, config.seed)
    groups = shards.drawn_groups(sizes, config.batch_size, config.batch_edges, config.seed)
    largest = int(corpus.n_node(samples).max())
    budgets = shards.part_budgets(sizes, groups, n_device, largest, config.batch_shapes or packing.MAX_SHAPES)
    return budgets[-1], float(np.mean([len(group) for group in groups]))

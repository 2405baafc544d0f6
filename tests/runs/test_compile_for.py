"""The report of a compiled step, its roofline, and programs for chips that are not there."""

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxatoms.runs import compile_for, compile_report
from jaxatoms.tools import gpu_dump, hlo
from jaxatoms.tools.targets import Target, find_target
from jaxatoms.types import InputError

STEP = compile_report.Compiled(
    target="v5e:4x4", n_device=16, seconds=1.0, products={"bfloat16": 197e12}, compiler_bytes=9e12,
    parts={"quadruplets": 800_000_000_000, "other": 19_000_000_000}, part_flops={}, arguments=0, temporaries=0,
    collectives=[hlo.Collective("all-reduce", 200_000_000, 0)], structures=100.0, edges=64,
)  # fmt: skip
LAUNCHED = [
    hlo.Operation("a", "custom-call", "quadruplets", False, 4_800_000_000, {"bfloat16": 989_000_000_000}),
    hlo.Operation("b", "fusion", "quadruplets", False, 4_800, {}),
]
GPU = compile_report.GpuProgram(
    launched=LAUNCHED, graphs=gpu_dump.Graphs(1, 2, 0), kernels=[gpu_dump.Kernel("b", 40, 8)]
)
ON_GPU = dataclasses.replace(
    STEP, target="h200", n_device=1, products={"bfloat16": 989e9}, compiler_bytes=None, collectives=[],
    parts={"quadruplets": 4_800_004_800}, part_flops={"quadruplets": 989_000_000_000},
    gpu=GPU,
)  # fmt: skip


def _report(compiled) -> dict[str, str]:
    """The lines of a report by their first words."""
    run = SimpleNamespace(
        config=SimpleNamespace(precision="bfloat16", model="gemnet_oc_s", init=None, epochs=5),
        model=SimpleNamespace(params={"w": jnp.ones(3)}), n_train=1000,
    )  # fmt: skip
    compile_report.print_report(compiled, run, out := io.StringIO())
    return {line.split()[0]: line for line in out.getvalue().splitlines()}


def test_the_roofline_of_a_tpu_counts_passes_cores_and_the_ring():
    times = compile_report.bounds(STEP)
    assert times == pytest.approx({"arithmetic": 1.0, "memory": 1.0, "all-reduce": 2 * 15 / 16 * 1e-3})
    exact = dataclasses.replace(STEP, products={"float32": 197e12})
    assert compile_report.bounds(exact)["arithmetic"] == pytest.approx(6)
    one_core = dataclasses.replace(STEP, target="v4:2x2x2", products={"bfloat16": 275e12 / 2})
    assert compile_report.bounds(one_core)["arithmetic"] == pytest.approx(1)
    assert compile_report.step_seconds(times) == pytest.approx(1 + 1.875e-3)


def test_the_roofline_of_a_gpu_adds_up_launches_with_and_without_a_floor():
    times = compile_report.bounds(ON_GPU)
    assert times["launches"] == pytest.approx(1e-3 + 1e-9)
    assert compile_report.step_seconds(times) == pytest.approx(1e-3 + 2e-6)


def test_the_report_of_a_tpu_names_passes_and_the_compilers_count():
    lines = _report(dataclasses.replace(STEP, products={"bfloat16": 1e12}))
    assert "1000.0 GFLOP per device and step, 1 bf16 passes each" in lines["arithmetic"]
    assert "9000.0 GB with on-chip memory" in lines["traffic"] and "graphs" not in lines


def test_the_report_of_a_gpu_names_launches_graphs_registers_and_products():
    lines = _report(ON_GPU)
    assert "2 a step" in lines["launches"] and "1 of them of less than 2 us" in lines["launches"]
    assert "1 CUDA graph with 2 launches; 0 outside" in lines["graphs"]
    assert "b 40; spilled: b 8 bytes" in lines["registers"]
    assert "bfloat16 989.0 GFLOP in 1 launch" in lines["products"]
    assert "quadruplets 4.8 GB and 989 GFLOP" in lines["of"]
    assert lines["memory"].endswith(": fits") and "not measured" in lines["bound"]
    assert _report(dataclasses.replace(ON_GPU, temporaries=142 * 10**9))["memory"].endswith(": does not fit")
    unknown = dataclasses.replace(ON_GPU, gpu=dataclasses.replace(GPU, kernels=[]))
    assert "ptxas" in _report(unknown)["registers"]


def test_a_step_that_does_not_fit_is_one_line():
    class Large:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries "
                "(18.31G) exceeds available HBM (15.75G). HLO module: jit_update."
            )

    with pytest.raises(InputError, match=r"does not fit into a chip \(temporaries take 18.31G of 15.75G\); lower"):
        compile_for._fitting(Large(), Target("v5e:2x2", STEP.chip, []), Path())


@pytest.mark.parametrize("n_device", [1, 8])
def test_a_dense_chain_for_a_gpu_has_the_products_and_the_traffic_of_a_hand_count(n_device, tmp_path):
    pytest.importorskip("jax_plugins.xla_cuda12")
    rows, width, target = 4096, 512, find_target(f"h200:{n_device}")
    mesh = jax.sharding.Mesh(target.devices, ("data",))
    spec = jax.sharding.PartitionSpec
    placed = lambda *axes: jax.sharding.NamedSharding(mesh, spec(*axes))  # noqa: E731
    x = jax.ShapeDtypeStruct((n_device * rows, width), jnp.bfloat16, sharding=placed("data"))
    w = jax.ShapeDtypeStruct((width, width), jnp.bfloat16, sharding=placed())

    def chain(x, w):
        return jax.nn.silu(jax.nn.silu(x @ w) @ w)

    lowered = jax.jit(chain).lower(x, w)
    text = compile_for._fitting(lowered, target, tmp_path).as_text()
    launched = hlo.launches(text)
    rows_once, weights = 2 * rows * width, 2 * width * width
    assert hlo.products_by_precision(launched) == {"bfloat16": (2 * 2 * rows * width * width, 2)}
    assert sum(launch.bytes for launch in launched) == 2 * (2 * rows_once + weights) + 2 * 2 * rows_once
    assert gpu_dump.cuda_graphs(tmp_path).inside + gpu_dump.cuda_graphs(tmp_path).outside == len(launched) == 4


@pytest.mark.parametrize(
    ("kernels", "chip"), [("pallas_tpu", "h200"), ("mosaic_gpu", "a100"), ("mosaic_gpu", "v5e:2x2")]
)
def test_kernels_of_other_chips_are_refused(kernels, chip):
    with pytest.raises(InputError, match=f"--kernels {kernels} is for .*; leave it out for {chip.partition(':')[0]}"):
        compile_for.check_kernels_of(kernels, SimpleNamespace(name=chip))
    compile_for.check_kernels_of("auto", SimpleNamespace(name=chip))
    compile_for.check_kernels_of("mosaic_gpu", SimpleNamespace(name="h200:8"))

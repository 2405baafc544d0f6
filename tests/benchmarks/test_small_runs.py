"""Benchmarks on next to nothing: they finish, and their lines hold what the report reads."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from benchmarks import feed_rate, inference_throughput, profile_step, report
from benchmarks import kernels as kernel_benchmark
from jaxatoms.tools.targets import find_target
from kernels.residual_pair.arguments import Case


def _assert_reported(line: dict):
    kind = report.KINDS[line["benchmark"]]
    assert all(name in line for name in kind.key)
    assert "|" in report.section(kind, [line])


@pytest.mark.parametrize(("kind", "batch_edges", "workers"), [("ani1x", None, 0), ("oc20", 8000, 1)])
def test_the_loader_is_measured_in_both_modes(tmp_path, kind, batch_edges, workers):
    store = feed_rate.make_store(kind, 100, tmp_path)
    batches = feed_rate.make_batches(store, feed_rate.KINDS[kind], batch_edges)
    line = feed_rate.feed_rate(batches, workers, seconds=0.2)
    assert line["structures_per_s"] >= line["batches_per_s"] > 0 and line["batch_mib"] > 0
    about = feed_rate.records.about("feed_rate")
    _assert_reported(line | about | {"case": kind, "workers": workers, "batch_size": 20, "batch_edges": batch_edges})


@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_the_kernel_and_xla_agree(kind):
    line = kernel_benchmark.measure(Case("small", 40, 8), kind, kernel_benchmark.kernel_here(), reps=1)
    assert line["largest_difference"] < 1e-2 and line["kernel_s"] > 0 and line["xla_s"] > 0
    _assert_reported(line)


@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_the_kernel_for_gpus_is_compiled_beside_xla(kind):
    pytest.importorskip("jax_plugins.xla_cuda12")
    case = Case("small", 200, 256, jnp.bfloat16)
    kernel, xla = kernel_benchmark.compile_case(case, kind, kernel_benchmark.ON_GPU, find_target("h200"))
    assert kernel["gflop"] == xla["gflop"] and kernel["launches"] < xla["launches"]
    _assert_reported(kernel)


@pytest.mark.slow
def test_prediction_is_measured():
    args = SimpleNamespace(model="gemnet_oc_tiny", precision="float32", copies=1, reps=1, warmup=1)
    line = inference_throughput.measure("mol20", "direct", args)
    assert line["structures"] == 20 and line["structures_per_s_with_graphs"] < line["structures_per_s"]
    _assert_reported(line)


@pytest.mark.slow
def test_the_parts_of_a_step_add_up_to_it():
    args = SimpleNamespace(model="gemnet_oc_tiny", precision="float32", copies=1, reps=2)
    record = profile_step.profile("mol20", "direct", args)
    total = {name: sum(part[name] for part in record["parts"].values()) for name in ("bytes", "flops")}
    seconds = sum(part["forward_s"] + part["backward_s"] for part in record["parts"].values())
    assert 0.9 < total["flops"] / record["compiler"]["flops"] < 1  # the compiler also counts what is not a product
    assert 0.5 < total["bytes"] / record["compiler"]["bytes accessed"] < 2
    assert 0.3 < seconds / record["step_s"] < 4  # operations run side by side, on a busy machine
    assert record["parts"].get("other", {"flops": 0})["flops"] < 0.02 * total["flops"]
    assert all(part["backward_s"] > 0 for name, part in record["parts"].items() if name == "quadruplets")
    (first, *rest) = report._parts(record)
    _assert_reported(first)
    assert len(rest) == len(record["parts"]) + 1  # and the input

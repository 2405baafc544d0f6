"""The table of chips, and names of chips that are not there."""

import dataclasses
import re

import pytest

from jaxatoms.tools import chips, targets
from jaxatoms.types import InputError

POLICIES = ("bfloat16", "tf32", "float32")  # of models.common.precision


@pytest.mark.parametrize("name", chips.CHIPS)
def test_every_chip_has_its_peaks_its_source_and_rates_that_fall_with_precision(name):
    chip = chips.CHIPS[name]
    assert chip.platform in ("tpu", "gpu") and chip.source.startswith("https://")
    assert min(chip.memory, chip.bandwidth, chip.link, chip.cores) > 0
    rates = [chip.flops[policy] for policy in POLICIES]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0
    assert 1e9 < chip.memory < 1e12 < chip.flops["bfloat16"], "bytes and operations per second, not GB and TFLOP/s"


@pytest.mark.parametrize("name", chips.names("gpu"))
def test_every_gpu_has_a_description_that_agrees_with_the_table(name):
    text, chip = chips.description(name), chips.CHIPS[name]
    number = lambda field: float(re.search(rf"\b{field}: (\d+)", text)[1])  # noqa: E731
    assert "Apache-2.0" in text and f"NVIDIA {name.upper()}" in text
    assert number("memory_bandwidth") == pytest.approx(chip.bandwidth, rel=0.01)
    assert number("device_memory_size") == pytest.approx(chip.memory, rel=0.08)  # GB and GiB, and what is reserved
    assert "collective_memory_granularity:" not in text


def test_all_descriptions_are_in_the_table():
    assert {path.stem for path in chips.DESCRIPTIONS.glob("*.txtpb")} == set(chips.names("gpu"))


def test_tpus_multiply_in_passes():
    flops = chips.CHIPS["v5e"].flops
    assert flops["bfloat16"] / flops["tf32"] == pytest.approx(3)
    assert flops["bfloat16"] / flops["float32"] == pytest.approx(6)


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4xx4", "cpu:1", "h300", "h200:2x2", "h200:", "h200:-1", "H200"])
def test_unknown_targets_are_refused_in_one_line(name):
    with pytest.raises(InputError, match="use v4, v5e, v5p, v6e with a shape.*h200.* number of devices") as refused:
        targets.find_target(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["h200:0", "h200:9"])
def test_a_host_has_one_to_eight_gpus(name):
    with pytest.raises(InputError, match=rf"{name}: a host has 1 to 8 GPUs; use a number such as h200:8"):
        targets.find_target(name)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
    from jax.experimental import topologies

    def missing(**kwargs):
        raise NotImplementedError(f"topology not implemented for {kwargs['platform']}\nmore")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(InputError, match=r"pip install 'jaxatoms\[gpu-compile\]' jax-cuda12-plugin==\d") as refused:
        targets.find_target("h200")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "devices"), [("v4:2x2x1", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x2", 4)])
def test_topologies_are_found_without_a_tpu(name, devices):
    pytest.importorskip("libtpu")
    assert len(targets.find_target(name).devices) == devices


@pytest.mark.parametrize("name", chips.names("gpu"))
def test_gpus_are_found_without_one(name):
    pytest.importorskip("jax_plugins.xla_cuda12")
    assert len(targets.find_target(name).devices) == 1
    assert len(targets.find_target(f"{name}:8").devices) == 8


def test_a_chip_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        chips.CHIPS["h200"].memory = 0

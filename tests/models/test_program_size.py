"""The training step stays a small program: what it launches and how long it is, with a tenth of room.

Counted on a CPU; `benchmarks.program_size` gives the same figures with compile times, and those of other networks.
"""

import functools

import pytest

from benchmarks.program_size import programs, shaped_model, sizes
from benchmarks.workloads import load_structures, make_workload

ROOM = 1.1
MEASURED = {  # gemnet_oc_tiny on mol20, float32, one flat vector of parameters
    "direct": {"stablehlo_lines": 12_709, "entry_fusion": 1_201, "entry_dot": 135},
    "gradient": {"stablehlo_lines": 22_808, "entry_fusion": 2_244, "entry_dot": 251},
}


@functools.cache
def _step(forces: str) -> tuple[str, str]:
    """(the step as it is traced, as it is compiled)"""
    batch = make_workload(load_structures("mol20", 1)).batch
    lowered = programs(shaped_model("gemnet_oc_tiny", forces, "float32"), batch)["step"]()
    return lowered.as_text(), lowered.compile().as_text()


@pytest.mark.parametrize("forces", ["direct", pytest.param("gradient", marks=pytest.mark.slow)])
def test_the_step_launches_no_more_than_it_did(forces):
    traced, compiled = _step(forces)
    found = {"stablehlo_lines": traced.count("\n"), **sizes(compiled)}
    grown = {name: (found[name], most) for name, most in MEASURED[forces].items() if found[name] > ROOM * most}
    assert not grown, "the program grew; if that pays, write the new figures here and what they buy into the message"


def test_the_optimiser_is_a_dozen_operations():
    """Over one vector, whatever the number of arrays; array by array it was 867 fusions."""
    _, compiled = _step("direct")
    entry = compiled[compiled.index("\nENTRY ") :]
    assert sum("/optimizer/" in line and " fusion(" in line for line in entry.splitlines()) <= 20

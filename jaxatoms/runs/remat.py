"""`--remat`: whether blocks are computed again in the backward pass, which saves memory for one more forward pass."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import psutil

from jaxatoms.runs.session import say

ROOM = 0.9  # share of the memory that a step may fill; the allocator and the next batch need some


def decide(setting: str, step_bytes: Callable[[], int], resolved: Path | None = None) -> bool:
    """Whether to recompute; `auto` means only where the step would not fit into the device otherwise.

    Args:
      setting: no, yes or auto.
      step_bytes: compiles the step for its largest batch, without recomputing, and returns the memory it needs.
      resolved: resolved.json of the run that is resumed, whose decision stands.
    """
    if setting != "auto":
        return setting == "yes"
    if resolved is not None and resolved.exists():
        return json.loads(resolved.read_text())["model"]["remat"]
    needed, there = step_bytes(), available_bytes(jax.local_devices()[0])
    decision = needed > ROOM * there
    sizes = f"a step needs {needed / 2**30:.1f} GiB of {there / 2**30:.1f}"
    say(f"--remat auto: {sizes}, so blocks are {'computed again' if decision else 'kept'} in the backward pass")
    return decision


def program_bytes(compiled) -> int:
    """Memory of a compiled program that runs: what it is given and what it makes on the way."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def available_bytes(device: jax.Device) -> int:
    """What a program may take of a device's memory; on a CPU, what the machine has left."""
    stats = device.memory_stats()
    return psutil.virtual_memory().available if stats is None else stats["bytes_limit"]

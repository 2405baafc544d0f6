"""What every benchmark's JSON line says about itself, and how it is appended to a file."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax

from jaxatoms.tools import hlo
from jaxatoms.tools.provenance import provenance


def about(benchmark: str) -> dict:
    """Name, time, command, machine, load and provenance; `benchmarks.report` sorts by the name."""
    command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]])
    machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 2)}
    return {
        **provenance(),
        "benchmark": benchmark,
        "run": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
    }


def cpu_name() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def append(records: list[dict], out: Path | None):
    """One JSON line each, at the end of the file if there is one."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def flops(compiled) -> float:
    """Operations of a compiled program; on a GPU, where the compiler counts none of its library calls, of products."""
    if jax.default_backend() != "gpu":
        return compiled.cost_analysis()["flops"]
    return sum(operation.flops for operation in hlo.operations(compiled.as_text()))

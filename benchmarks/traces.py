"""What a program's operations took and what it launched, from the profiler's trace of it running."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

SHORT = 2e-6  # seconds; a kernel below waits for its launch rather than for its work
GPU = "/device:GPU"


class Trace(NamedTuple):
    """Of one call of a program."""

    seconds: dict[str, float]  # by the operation's name in the compiled program
    launches: dict[str, float]  # on a GPU: "kernels", "short" (below 2 us) and "busy_s"; elsewhere empty
    kernels: dict[str, float]  # on a GPU: seconds by the kernel's name, the longest 60


def trace(call: Callable[[], object], repeats: int = 3) -> Trace:
    """The trace of a program.

    Args:
      call: runs the program once, to the end; its first calls, which compile, must be over.
    """
    seconds: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            on_gpu = plane.name.startswith(GPU)
            for line in plane.lines:
                for event in line.events:
                    duration = event.duration_ns / 1e9
                    if name := dict(event.stats).get("hlo_op"):
                        seconds[name] += duration / repeats
                    if on_gpu and line.name.startswith("Stream"):
                        kernels[event.name] += duration / repeats
                        launches.update(kernels=1 / repeats, busy_s=duration / repeats)
                        launches["short"] += (duration < SHORT) / repeats
    return Trace(dict(seconds), dict(launches), dict(kernels.most_common(60)))

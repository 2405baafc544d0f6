"""Seconds of every operation of a program, from the profiler's trace of it running."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax


def seconds_by_operation(call: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """{name of the operation in the compiled program: seconds per call}.

    Args:
      call: runs the program once, to the end; its first calls, which compile, must be over.
    """
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if name := dict(event.stats).get("hlo_op"):
                        total[name] += event.duration_ns / 1e9 / repeats
    return dict(total)

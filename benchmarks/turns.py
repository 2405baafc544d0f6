"""Several benchmark processes on one accelerator: they set up and compile side by side, and measure one at a time.

The environment variable JAXATOMS_TURNS names a file that the one that measures locks; without it nothing is waited for.
A process that still compiles keeps to processor cores of its own (`benchmarks.gpu_session` sees to that), so that a
slow compilation holds nobody up. Needs the standard library alone: the peers, which live in an environment of their
own, use it too.
"""

import fcntl
import os
import sys
import time

VARIABLE = "JAXATOMS_TURNS"
_began = time.perf_counter()
_files: list = []  # kept open: closing a file gives its lock back


def note(what: str) -> None:
    """Say on stderr how far this process is, where turns are kept: a session that runs out of time shows where."""
    if os.environ.get(VARIABLE):
        print(f"{what} after {time.perf_counter() - _began:.1f} s", file=sys.stderr, flush=True)


def wait_to_measure() -> None:
    """Wait until no other process measures; the turn ends with the process or at `set_up`."""
    note("ready to measure")
    path = os.environ.get(VARIABLE)
    if path and not _files:
        _files.append(open(path, "a"))  # noqa: SIM115
    if _files:
        fcntl.flock(_files[0], fcntl.LOCK_EX)
        note("measuring")


def set_up() -> None:
    """Begin another measurement in the same process, which gives the turn back."""
    if _files:
        fcntl.flock(_files[0], fcntl.LOCK_UN)

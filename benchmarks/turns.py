"""Several benchmark processes on one accelerator: they set up and compile side by side, and measure one at a time.

The environment variable JAXATOMS_TURNS names a file that all of them lock; without it nothing is waited for. A process
that sets up shares the lock, one that measures holds it alone, so nothing is measured while another one compiles.
Needs the standard library alone: the peers, which live in an environment of their own, use it too.
"""

import fcntl
import os

VARIABLE = "JAXATOMS_TURNS"
_files: list = []  # kept open: closing a file gives its lock back


def set_up() -> None:
    """Say that this process sets up or compiles; waits while another one measures."""
    _lock(fcntl.LOCK_SH)


def wait_to_measure() -> None:
    """Wait until no process sets up and none measures; the turn ends with the process or at the next `set_up`."""
    if _files:
        fcntl.flock(_files[0], fcntl.LOCK_UN)
    _lock(fcntl.LOCK_EX)


def _lock(kind: int) -> None:
    path = os.environ.get(VARIABLE)
    if path and not _files:
        _files.append(open(path, "a"))  # noqa: SIM115
    if _files:
        fcntl.flock(_files[0], kind)

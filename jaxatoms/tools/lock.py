"""One process at a time per output folder; the others are told who holds it.

The kernel's lock on a small file ends with the process that took it, however that dies. What stands in the file says
who it was, for messages, and for folders shared between hosts, where the kernel's lock may not reach.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxatoms.io import is_running
from jaxatoms.types import InputError

NAME = ".lock"


@contextlib.contextmanager
def hold(folder: Path, name: str = NAME) -> Iterator[None]:
    """Keep other processes out of `folder` while the block runs.

    A lock left by a process that is gone is taken over, with a word about it.

    Args:
      name: of the lock's file; another one where the folder holds several outputs.

    Raises:
      InputError: another process holds it, or one of another host may; or the lock cannot be written.
    """
    path = folder / name
    try:
        descriptor = _open_locked(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    try:
        _claim(path, descriptor)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still ours
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the file at `path`, with the kernel's lock on it where the file system has one."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _held(path, _read(path)) from None
        except OSError:  # no locks on this file system: what stands in the file has to do
            holder = _read(path)
            if holder.get("host") == socket.gethostname() and is_running(holder["pid"]):
                os.close(descriptor)
                raise _held(path, holder) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its holder removed it in this moment


def _claim(path: Path, descriptor: int) -> None:
    """Write who holds it, unless a process of another host may still do so."""
    holder, host = _read(path), socket.gethostname()
    if holder and holder.get("host") != host:
        raise InputError(
            f"{path.parent} was taken by {_who(holder)}; whether that runs cannot be seen from {host}: "
            f"if it does not, remove {path}"
        )
    if holder:
        print(f"{path.parent}: {_who(holder)} is gone without an end; going on in its place", flush=True)
    record = {"pid": os.getpid(), "host": host, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": _command()}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free disk space or choose another folder") from error


def _held(path: Path, holder: dict) -> InputError:
    return InputError(f"{path.parent} is in use by {_who(holder)}; wait until it ends, or choose another folder")


def _read(path: Path) -> dict:
    """What the holder wrote; empty where nobody did, or not yet."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else {}


def _who(holder: dict) -> str:
    if not holder:
        return "another process"
    told = {name: holder.get(name, "?") for name in ("pid", "host", "since", "command")}
    return "process {pid} on {host} since {since} ({command})".format(**told)


def _command() -> str:
    return " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])[:80]

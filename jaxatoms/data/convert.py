"""Source files -> a store, piece by piece: in several processes, taken up again after a kill, equal to one stream."""

import contextlib
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from jaxatoms.data.columns import read_manifest
from jaxatoms.data.registry import READERS, DatasetSpec
from jaxatoms.data.workers import end_with_parent
from jaxatoms.data.writer import join_columns, write_columns
from jaxatoms.io import write_json
from jaxatoms.types import InputError, System

_log = logging.getLogger(__name__)


def convert(
    spec: DatasetSpec,
    source: Path,
    path: Path,
    described: dict,
    record_columns: Callable | None = None,
    workers: int = 1,
    notify: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the store of a data set at `path`; it appears whole or not at all.

    A source that falls into pieces (formulas, shards) is converted into one small store each beside `path`, then
    joined. Finished pieces survive a kill and serve the next call, unless the source has changed since. Memory does
    not grow with the source.

    Args:
      described: what identifies the source; kept in the manifest.
      record_columns: as for `write_columns`.
      workers: processes that convert; 1 works in this one.
      notify: called with (pieces done, pieces in all).

    Raises:
      InputError: a faulty source, a folder that cannot be written, a worker that was killed.
    """
    reader, options = READERS[spec.reader], dict(spec.options)
    parts = reader.parts(source) if hasattr(reader, "parts") else []
    if len(parts) <= 1:
        write_columns(_named_errors(reader.read(source, **options), source), path, described, record_columns)
        return
    folder = path.with_name(f"{path.name}.pieces")
    _open_folder(folder, {"source": described, "n_part": len(parts)})
    pieces = [folder / f"{i:06d}" for i in range(len(parts))]
    jobs = [(spec.reader, part, piece) for part, piece in zip(parts, pieces, strict=True) if not _is_done(piece)]
    done = len(parts) - len(jobs)
    for _ in _run(jobs, workers):
        done += 1
        if notify:
            notify(done, len(parts))
    join_columns(pieces, path, described, record_columns)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other processes from converting into the same store until the block ends; they wait.

    The lock goes with the process that holds it, so that a killed one blocks nobody.

    Raises:
      InputError: a folder that cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(
            f"{lock.parent}: cannot be written ({error.strerror}); choose another cache folder with JAXATOMS_CACHE"
        ) from None
    with file:
        _wait_for(file, path)
        yield


def _wait_for(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("%s: another process converts it; waiting", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        _log.info("%s: this file system has no locks", path)


def _named_errors(systems: Iterator[System], source: Path | str) -> Iterator[System]:
    """The same systems; whatever goes wrong in a reader is one line that names file and record."""
    done, key = 0, ""
    try:
        for system in systems:
            yield system
            done, key = done + 1, system.key
    except InputError:
        raise
    except Exception as error:
        after = f"after record {done - 1} ({key})" if done else "at the first record"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = "it is damaged, or not what its name says; check it or download it again"
        raise InputError(f"{source}: {after}: cannot be read ({reason}); {remedy}") from error


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_folder(folder: Path, identity: dict) -> None:
    """The folder of pieces of this very source; those of another one are removed."""
    note = folder / "source.json"
    if note.is_file() and json.loads(note.read_text()) == json.loads(json.dumps(identity)):
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another cache folder with JAXATOMS_CACHE"
        ) from None
    write_json(note, identity)


def _is_done(piece: Path) -> bool:
    try:
        read_manifest(piece)
    except InputError:
        return False
    return True


def _run(jobs: list[tuple], workers: int) -> Iterator[Path]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _convert_part(*job)
        return
    # Spawned, not forked: the parent may hold threads of other libraries.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=end_with_parent) as pool:
        futures = [pool.submit(_convert_part, *job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise InputError(
                "a conversion process was killed (out of memory?); run the same command again, finished pieces are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _convert_part(reader: str, part: tuple, piece: Path) -> Path:
    known: Any = READERS[reader]  # one with `parts`
    systems = _named_errors(known.read_part(part), part[0])
    write_columns(systems, piece, {"part": [str(item) for item in part[:2]]})
    return piece

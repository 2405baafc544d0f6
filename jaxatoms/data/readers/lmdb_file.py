"""LMDB files opened for reading, after checking that they are whole: a page beyond the end would kill the process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import lmdb

from jaxatoms.data.readers.checks import fail, is_hidden, require_file

_DATA = "data.mdb"  # in a folder, as lmdb.open makes it unless told otherwise
RECORDS_PER_PART = 10_000  # a conversion's unit of work


@contextlib.contextmanager
def open_lmdb(path: Path | str) -> Iterator[lmdb.Transaction]:
    """A read transaction on an LMDB: one file, or a folder that holds data.mdb.

    Raises:
      InputError: missing, cut or otherwise damaged file.
    """
    path = require_file(Path(path) / _DATA if _is_folder_form(Path(path)) else path)
    try:
        # No lock file beside it: archives lie on read-only media.
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=True, max_readers=1)
    except lmdb.Error as error:
        fail(path, "", f"not a readable LMDB file ({error})", "download it again")
    with env:
        expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if path.stat().st_size < expected:
            fail(path, "", f"cut: {path.stat().st_size} of {expected} bytes", "download it again")
        with env.begin() as transaction:
            yield transaction


def shards(path: Path | str, pattern: str) -> list[Path]:
    """The LMDB itself, or those below a folder that match, in the order of their names; hidden ones are passed over.

    Raises:
      InputError: nothing there.
    """
    path = Path(path)
    whole = path.is_file() or _is_folder_form(path)
    found = [path] if whole else [shard for shard in sorted(path.rglob(pattern)) if not is_hidden(shard, path)]
    if not found:
        fail(path, "", f"holds no {pattern} files", "unpack the archive there")
    return found


def _is_folder_form(path: Path) -> bool:
    return (path / _DATA).is_file()


def ranges(n: int) -> list[tuple[int, int]]:
    """0..n-1 cut into (first, stop) pieces of `RECORDS_PER_PART`."""
    return [(i, min(i + RECORDS_PER_PART, n)) for i in range(0, n, RECORDS_PER_PART)]

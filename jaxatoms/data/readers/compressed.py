"""Compressed text as a plain file: ASE seeks in what it reads, which is extremely slow in an xz stream."""

import contextlib
import gzip
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxatoms.data.readers.checks import fail, require_file

_OPENERS: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open}


@contextlib.contextmanager
def plain_file(path: Path | str) -> Iterator[Path]:
    """A path to the uncompressed content: the file itself, or a temporary copy removed on leaving.

    Raises:
      InputError: missing or damaged file.
    """
    path = require_file(path)
    if path.suffix not in _OPENERS:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxatoms-") as folder:
        copy = Path(folder) / path.stem
        _decompress(path, copy)
        yield copy


def _decompress(path: Path, copy: Path) -> None:
    try:
        with _OPENERS[path.suffix](path, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        fail(path, "", f"damaged compressed file ({error})", "download it again")

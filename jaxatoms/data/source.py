"""What a source is: a fingerprint of all files that are read, which tells whether a converted store still fits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxatoms.data.readers.checks import is_hidden

WHOLE_FILE_LIMIT = 64 << 20  # bytes; hashing more than this at every start would be felt
_ENDS = 1 << 20  # bytes hashed at the head and the tail of a larger file


def fingerprint_source(path: Path | str, files: Sequence[Path] = ()) -> dict:
    """The identity of a file, of all files below a folder, or of the files that a reader names.

    Args:
      path: the source.
      files: what is read instead of `path` alone, auxiliary files included.

    Returns:
      {"kind", "size", "hash"}; kind "sha256" means the whole content was hashed, "size+mtime+ends" that size,
      modification time and the first and last MiB were, "folder..." and "files: names..." that names, sizes and times
      were.
    """
    path, files = Path(path), list(files)
    if files and files != [path]:
        return _fingerprint_several(files)
    if path.is_dir():
        visible = (file for file in path.rglob("*") if file.is_file() and not is_hidden(file, path))
        return _listing("folder", sorted(visible), path)
    return _fingerprint_file(path)


def _fingerprint_file(path: Path) -> dict:
    stat = path.stat()
    whole = stat.st_size <= WHOLE_FILE_LIMIT
    digest = hashlib.sha256(b"" if whole else f"{stat.st_size} {stat.st_mtime_ns}".encode())
    with open(path, "rb") as file:
        if whole:
            digest.update(file.read())
        else:
            digest.update(file.read(_ENDS))
            file.seek(-_ENDS, 2)
            digest.update(file.read(_ENDS))
    return {
        "kind": "sha256" if whole else "size+mtime+ends",
        "size": stat.st_size,
        "hash": digest.hexdigest(),
    }


def _fingerprint_several(files: list[Path]) -> dict:
    sizes = [file.stat().st_size for file in files]
    if sum(sizes) > WHOLE_FILE_LIMIT:
        return _listing("files", files, Path())
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.name}\0{size}\n".encode())
        digest.update(file.read_bytes())
    return {"kind": "files: sha256", "size": sum(sizes), "hash": digest.hexdigest()}


def _listing(kind: str, files: list[Path], folder: Path) -> dict:
    # Thousands of shards: names, sizes and times say enough, and reading them all does not scale.
    digest, size = hashlib.sha256(), 0
    for file in files:
        stat = file.stat()
        size += stat.st_size
        name = file.relative_to(folder) if file.is_relative_to(folder) else file
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"kind": f"{kind}: names+sizes+mtimes", "size": size, "hash": digest.hexdigest()}

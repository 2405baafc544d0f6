"""What a source file is: a fingerprint that tells whether a converted store still belongs to it."""

import hashlib
from pathlib import Path

WHOLE_FILE_LIMIT = 64 << 20  # bytes; hashing more than this at every start would be felt
_ENDS = 1 << 20  # bytes hashed at the head and the tail of a larger file


def fingerprint_source(path: Path | str) -> dict:
    """The identity of a file or of all files below a folder.

    Returns:
      {"kind", "size", "hash"}; kind "sha256" means the whole content was hashed, "size+mtime+ends" that size,
      modification time and the first and last MiB were, "folder..." that names, sizes
      and times of the files below were.
    """
    path = Path(path)
    if path.is_dir():
        return _fingerprint_folder(path)
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


def _fingerprint_folder(folder: Path) -> dict:
    # Thousands of shards: names, sizes and times say enough, and reading them all does not scale.
    digest, size = hashlib.sha256(), 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        size += stat.st_size
        digest.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"kind": "folder: names+sizes+mtimes", "size": size, "hash": digest.hexdigest()}

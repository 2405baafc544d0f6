"""Fetches original files: resumed, verified, from mirrors, with a record of the hashes first seen.

Built on pooch (hashes, atomic placement); resuming is ours. A file is on disk whole and verified, or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pooch
import requests

from jaxatoms.data.remote import RemoteFile
from jaxatoms.io import replacing, write_json
from jaxatoms.types import InputError

RECORDS = "downloads.json"  # in the data set's folder: name -> sha256 of what was fetched
_CHUNK = 1 << 16  # bytes; at most this much is fetched twice after a break
_TRIES = 5  # per address; each goes on where the last one broke off
_TIMEOUT = 60  # s without a byte

pooch.get_logger().setLevel("WARNING")
Progress = Callable[[int, int | None], None]  # (bytes so far, bytes in all where the server says)


def fetch(
    file: RemoteFile, folder: Path, from_file: Path | None = None, progress: Progress | None = None
) -> tuple[Path, bool]:
    """The file in `folder`, downloaded unless a good one is there, and whether a known hash was checked.

    A hash that nobody published is recorded on first use (`downloads.json`) and demanded ever after.

    Args:
      from_file: a copy that is already on this machine, taken instead of downloading.

    Raises:
      InputError: no space, no address that works, a wrong hash, `from_file` missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, known = folder / file.name, file.hash or _recorded(folder, file.name)
    if path.is_file():
        _verify(path, known, "remove the file and download again")
    else:
        _check_space(file, folder)
        if from_file is not None:
            _place_copy(from_file, path, known)
        else:
            _download(file, path, known, progress)
    _record(folder, path)
    return path, bool(known)


def unpack(file: RemoteFile, folder: Path) -> None:
    """Unpacks the archives of a fetched file beside it, once; a run that was killed starts that archive again.

    Raises:
      InputError: a damaged archive, or one with members outside the folder.
    """
    for name in file.unpack:
        mark = folder / f".{name}.unpacked"
        if mark.exists():
            continue
        found = sorted(folder.rglob(name))
        if not found:
            raise InputError(f"{folder}: {name} is not there; it was expected inside {file.name}")
        try:
            _extract(found[0], found[0].parent)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise InputError(f"{found[0]}: cannot be unpacked ({error}); remove it and download again") from None
        mark.touch()


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        return
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")  # refuses links and paths that lead outside


def _check_space(file: RemoteFile, folder: Path) -> None:
    needed = int(file.size * (1 + (file.growth if file.unpack else 0)))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {file.name} needs {needed / 1e9:.1f} GB unpacked, but {free / 1e9:.1f} GB are free; "
            "make space or choose another --data-root"
        )


def _place_copy(source: Path, path: Path, known: str) -> None:
    if not source.is_file():
        raise InputError(f"{source}: no such file; check --from-file")
    with replacing(path) as draft:
        shutil.copyfile(source, draft)
        try:
            _verify(draft, known, "it is another file than the data set's")
        except InputError as error:
            raise InputError(str(error).replace(str(draft), str(source))) from None


def _download(file: RemoteFile, path: Path, known: str, progress: Progress | None) -> None:
    failures = []
    for url in file.urls:
        try:
            pooch.retrieve(
                url, known or None, path.name, path.parent, downloader=_Resuming(path, progress)  # type: ignore[arg-type]
            )
            return
        except requests.HTTPError as error:
            failures.append(f"{url}: HTTP {getattr(error.response, 'status_code', '?')}")
        except requests.RequestException as error:
            failures.append(f"{url}: {type(error).__name__}")
        except ValueError as error:  # pooch: the hash differs
            failures.append(f"{url}: {_one_line(error)}")
        except OSError as error:
            failures.append(f"{url}: {error.strerror or error}")
    raise InputError(
        f"{path.name}: cannot be downloaded ({'; '.join(failures)}); run the same command again, or fetch it yourself "
        f"and pass --from-file"
    )


class _Resuming:
    """Downloader for pooch: collects into `.<name>.part`, which survives an interruption and is gone on with.

    A part is only continued where the server confirms that the file is still the same (ETag or date, and length).
    """

    def __init__(self, path: Path, progress: Progress | None):
        self.part = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.part.json")
        self.progress = progress

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        for attempt in range(_TRIES):
            try:
                self._go_on(url)
                break
            except (requests.ConnectionError, requests.Timeout, _Truncated):
                if attempt == _TRIES - 1:
                    raise
        os.replace(self.part, output_file)
        self.note.unlink(missing_ok=True)

    def _go_on(self, url: str) -> None:
        start, tag = self._state(url)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-", "If-Range": tag} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if start and response.status_code == 416:  # nothing beyond: the part is whole, or another file's
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(start):
                    return
                self.part.unlink()
                raise _Truncated("the part is longer than the file")
            response.raise_for_status()
            start = start if response.status_code == 206 else 0
            self._remember(url, response)
            self._receive(response, start)

    def _receive(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with open(self.part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            try:
                for block in response.iter_content(_CHUNK):
                    file.write(block)
                    if self.progress:
                        self.progress(file.tell(), total)
            except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
                raise _Truncated(str(error)) from None
            if total is not None and file.tell() != total:
                raise _Truncated(f"got {file.tell()} of {total} bytes")

    def _state(self, url: str) -> tuple[int, str]:
        """(bytes held, validator) of a part of this very address; (0, "") to start anew."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            note = json.loads(self.note.read_text())
            if note["url"] == url and note["tag"] and self.part.stat().st_size:
                return self.part.stat().st_size, note["tag"]
        return 0, ""

    def _remember(self, url: str, response: requests.Response) -> None:
        etag = response.headers.get("ETag", "")
        tag = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
        self.note.write_text(json.dumps({"url": url, "tag": tag}))


class _Truncated(requests.RequestException):
    """The connection ended before the body did."""


def _recorded(folder: Path, name: str) -> str:
    known = _read_records(folder).get(name)
    return f"sha256:{known['sha256']}" if known else ""


def _read_records(folder: Path) -> dict:
    try:
        return json.loads((folder / RECORDS).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{folder / RECORDS}: damaged ({error}); remove it") from None


def _record(folder: Path, path: Path) -> None:
    records = _read_records(folder)
    if path.name in records:
        return
    records[path.name] = {"sha256": pooch.file_hash(str(path)), "size": path.stat().st_size}
    write_json(folder / RECORDS, records)


def _verify(path: Path, known: str, remedy: str) -> None:
    if not known:
        return
    kind, _, expected = known.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise InputError(f"{path}: its {kind} is {found[:12]}..., expected {expected[:12]}...; {remedy}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

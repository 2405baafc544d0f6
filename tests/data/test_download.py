"""Downloads against a server on this machine: resumed, verified, mirrored, recorded; faults in one line."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fixtures import native

from jaxatoms.data import download
from jaxatoms.data.registry import DATASETS
from jaxatoms.data.remote import RemoteFile
from jaxatoms.types import InputError

BODY = bytes(range(256)) * 4096  # 1 MiB
HELD = len(BODY) // 3 // download._CHUNK * download._CHUNK  # of a transfer that breaks off after a third
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good serves BODY with ranges; /cut breaks off once; /dead always; /wrong sends other bytes; /plain no ranges."""

    def do_GET(self):
        server, start = self.server, 0
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/missing":
            self.send_error(404)
            return
        body = BODY[::-1] if self.path == "/wrong" or server.changed else BODY
        wanted = self.headers.get("Range")
        tag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        if wanted and self.path != "/plain" and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body)
        if self.path == "/dead":
            stop = start
        elif self.path == "/cut" and not server.cut:
            server.cut, stop = True, start + len(body) // 3
        self.wfile.write(body[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as opened:
        opened.requests, opened.cut, opened.changed = [], False, False
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield opened
        opened.shutdown()


def file_at(server, *paths, **more):
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{path}" for path in paths)
    return RemoteFile("data.bin", urls, len(BODY), **more)


def refused(*parts, **arguments):
    with pytest.raises(InputError) as error:
        download.fetch(**arguments)
    return native.is_one_line_about(error, *parts)


def test_a_file_is_fetched_once_and_recorded(server, tmp_path):
    seen = []
    path, known = download.fetch(file_at(server, "good"), tmp_path, progress=lambda *n: seen.append(n))
    assert path.read_bytes() == BODY
    assert not known
    assert seen[-1] == (len(BODY), len(BODY))
    assert download.fetch(file_at(server, "good"), tmp_path) == (path, True)
    assert len(server.requests) == 1
    path.write_bytes(BODY[:-1] + b"x")
    assert refused("its sha256 is", "remove the file", file=file_at(server, "good"), folder=tmp_path)


def test_a_broken_transfer_is_gone_on_with(server, tmp_path):
    path, _ = download.fetch(file_at(server, "cut", hash=f"sha256:{SHA}"), tmp_path)
    assert path.read_bytes() == BODY
    assert server.requests == [("/cut", None), ("/cut", f"bytes={HELD}-")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.bin", download.RECORDS]


def test_a_later_run_goes_on_where_an_earlier_one_died(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TRIES", 1)
    with pytest.raises(InputError):
        download.fetch(file_at(server, "cut"), tmp_path)
    assert not (tmp_path / "data.bin").exists()
    assert download.fetch(file_at(server, "cut"), tmp_path)[0].read_bytes() == BODY
    assert server.requests[-1] == ("/cut", f"bytes={HELD}-")


def test_a_part_of_another_version_is_not_continued(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TRIES", 1)
    with pytest.raises(InputError):
        download.fetch(file_at(server, "cut"), tmp_path)
    server.changed = True
    assert download.fetch(file_at(server, "cut"), tmp_path)[0].read_bytes() == BODY[::-1]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / ".data.bin.part").write_bytes(b"x" * 100)
    url = file_at(server, "plain").urls[0]
    (tmp_path / ".data.bin.part.json").write_text(f'{{"url": "{url}", "tag": "old"}}')
    assert download.fetch(file_at(server, "plain"), tmp_path)[0].read_bytes() == BODY


def test_a_mirror_stands_in(server, tmp_path):
    file = file_at(server, "missing", "wrong", "good", hash=f"sha256:{SHA}")
    path, known = download.fetch(file, tmp_path)
    assert path.read_bytes() == BODY
    assert known


def test_failures_are_named_for_every_address(server, tmp_path):
    file = file_at(server, "missing", "dead", "wrong", hash=f"sha256:{SHA}")
    assert refused("HTTP 404", "/dead", "/wrong", "--from-file", file=file, folder=tmp_path)
    assert not (tmp_path / "data.bin").exists()
    nobody = RemoteFile("data.bin", ("http://127.0.0.1:9/x",), 10)
    assert refused("ConnectionError", "--from-file", file=nobody, folder=tmp_path)


def test_too_little_space_is_said_before_the_transfer(server, tmp_path):
    file = RemoteFile("data.bin", ("http://127.0.0.1:9/x",), 10**18, unpack=("data.bin",), growth=3)
    assert refused("4000000000.0 GB unpacked", "GB are free", "--data-root", file=file, folder=tmp_path)


def test_a_file_of_ones_own_is_taken_and_verified(server, tmp_path):
    own = tmp_path / "own"
    own.write_bytes(BODY)
    file = RemoteFile("data.bin", ("http://127.0.0.1:9/x",), 10, hash=f"md5:{hashlib.md5(BODY).hexdigest()}")
    path, known = download.fetch(file, tmp_path / "a", from_file=own)
    assert (path.read_bytes(), known) == (BODY, True)
    own.write_bytes(b"other")
    assert refused(own, "its md5 is", file=file, folder=tmp_path / "b", from_file=own)
    assert not (tmp_path / "b" / "data.bin").exists()
    assert refused("no such file", file=file, folder=tmp_path / "c", from_file=tmp_path / "none")


def test_archives_in_archives_are_unpacked_once(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:bz2") as archive:
        member = tarfile.TarInfo("rmd17/npz_data/x.npz")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"data"))
    with zipfile.ZipFile(tmp_path / "rmd17.zip", "w") as archive:
        archive.writestr("rmd17.tar.bz2", inner.getvalue())
    file = RemoteFile("rmd17.zip", (), 1, unpack=("rmd17.zip", "rmd17.tar.bz2"))
    download.unpack(file, tmp_path)
    assert (tmp_path / "rmd17" / "npz_data" / "x.npz").read_bytes() == b"data"
    (tmp_path / "rmd17" / "npz_data" / "x.npz").unlink()
    download.unpack(file, tmp_path)
    assert not (tmp_path / "rmd17" / "npz_data" / "x.npz").exists()


def test_an_archive_cannot_write_outside(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("../../evil")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.unpack(RemoteFile("a.tar", (), 1, unpack=("a.tar",)), tmp_path)


def test_every_data_set_of_the_paper_has_an_address():
    for name, spec in DATASETS.items():
        if spec.family not in ("file", "demo"):
            assert all(file.urls and file.size for file in spec.remote.parts.values()), name
    assert DATASETS["demo:organic"].remote is None

"""One process per folder: the second is told who holds it, a lock of the dead is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxatoms.runs import fleet
from jaxatoms.tools import lock
from jaxatoms.types import InputError

HOLDER = """
import sys, time
from pathlib import Path
from jaxatoms.tools.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def take(folder, **options):
    with lock.hold(folder, **options):
        return sorted(path.name for path in folder.iterdir())


def record(**changes) -> str:
    dead = subprocess.Popen(["true"])
    dead.wait()
    usual = {"pid": dead.pid, "host": socket.gethostname(), "since": "2026-01-02 03:04:05", "command": "pretrain"}
    return json.dumps(usual | changes)


def test_the_second_process_is_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(InputError) as caught:
        take(tmp_path)
    text = str(caught.value)
    assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 2" in text
    assert "\n" not in text
    assert take(tmp_path, name=".other.lock") == [".lock", ".other.lock"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_dies_leaves_the_folder_free(tmp_path, holder, how, capsys):
    holder.send_signal(how)
    holder.wait()
    assert take(tmp_path) == [".lock"]
    assert ("is gone" in capsys.readouterr().out) == (how == signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_goes_with_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock.hold(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_cannot_be_checked(tmp_path):
    (tmp_path / ".lock").write_text(record(host="elsewhere"))
    with pytest.raises(InputError, match=r"on elsewhere since 2026-01-02 .*if it does not, remove .*\.lock$"):
        take(tmp_path)
    (tmp_path / ".lock").unlink()
    take(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_lock_cut_short_by_a_kill_is_taken_over(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    take(tmp_path)


def test_without_kernel_locks_the_record_decides(tmp_path, monkeypatch):
    """As on some network file systems."""
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    (tmp_path / ".lock").write_text(record(pid=os.getppid()))
    with pytest.raises(InputError, match=f"in use by process {os.getppid()}"):
        take(tmp_path)
    (tmp_path / ".lock").write_text(record())
    take(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing.*choose another folder"):
        take(tmp_path / "missing")


def test_process_0_takes_the_folder_for_all_processes_of_a_run(tmp_path, monkeypatch):
    with fleet.one_run(tmp_path):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), fleet.one_run(tmp_path):
            pass
        monkeypatch.setattr(fleet, "agreed", lambda decide: True)  # another process, which hears process 0's answer
        with fleet.one_run(tmp_path):
            pass
    monkeypatch.setattr(fleet, "agreed", lambda decide: False)
    with pytest.raises(InputError, match="process 0 could not take the run folder"), fleet.one_run(tmp_path):
        pass


@pytest.mark.parametrize("command", ["pretrain", "finetune", "csi", "study", "predict", "label"])
def test_commands_refuse_a_folder_in_use(tmp_path, holder, command):
    """Before they read any data."""
    arguments = {
        "pretrain": ["--upstream", "demo:organic", "--run-dir", str(tmp_path)],
        "finetune": ["--downstream", "demo:aspirin", "--init", "scratch", "--run-dir", str(tmp_path)],
        "csi": ["--upstream", "a.npz", "--downstream", "b.npz", "--out", str(tmp_path)],
        "study": ["--upstream", "demo:organic", "--downstream", "demo:aspirin", "--out", str(tmp_path)],
        "predict": ["--checkpoint", "none", "--structures", "none.xyz", "--out", str(tmp_path / "out.extxyz")],
        "label": ["--with", "none:none", "--structures", "none.xyz", "--out", str(tmp_path / "out.extxyz")],
    }[command]
    if command in ("predict", "label"):
        (tmp_path / ".lock").rename(tmp_path / ".out.extxyz.lock")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"experiments.{command}", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"is in use by process {holder.pid}" in done.stderr
    assert time.monotonic() - began < 60

"""Conversion in pieces: equal to one stream, in any number of processes, resumed after a kill without loss."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from fixtures import native, native_downstream, native_shards

import jaxatoms
from jaxatoms.data import convert as module
from jaxatoms.data.readers import ani1x, oc20, omat24, transition1x
from jaxatoms.data.registry import find_spec
from jaxatoms.data.store import Store, open_dataset, write_store
from jaxatoms.types import InputError, System

CASES = {
    "ani1x": (ani1x, lambda folder: native.write_ani1x(folder / "a.h5")),
    "transition1x": (transition1x, lambda folder: native.write_transition1x(folder / "t.h5")),
    "oc20": (oc20, lambda folder: native_shards.write_oc_shards(folder / "o")),
    "omat24": (omat24, lambda folder: native_downstream.write_omat(folder / "m", stress=None)),
}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("jaxatoms.data.readers.molecules._FRAMES_PER_PART", 5)
    monkeypatch.setattr("jaxatoms.data.readers.lmdb_file.RECORDS_PER_PART", 2)


@pytest.mark.parametrize("name", CASES)
def test_pieces_give_the_store_of_one_stream(tmp_path, small_pieces, name):
    reader, write = CASES[name]
    source, seen = write(tmp_path), []
    whole = write_store(reader.read(source), tmp_path / "whole", {})
    module.convert(find_spec(name), source, tmp_path / "s", {}, notify=lambda *counts: seen.append(counts))
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1]
    joined = Store.open(tmp_path / "s")
    assert joined.fingerprint == whole.fingerprint
    assert {k: joined.manifest[k] for k in ("n_node", "max_n_node", "elements", "periodic", "n_group")} == {
        k: whole.manifest[k] for k in ("n_node", "max_n_node", "elements", "periodic", "n_group")
    }
    joined.verify()
    assert not list(tmp_path.glob("*.pieces"))


@pytest.mark.slow
def test_several_processes_give_the_same_store(tmp_path, small_pieces):
    source = native.write_ani1x(tmp_path / "a.h5")
    one = open_dataset(f"ani1x@{source}", cache_dir=tmp_path / "one")[1]
    two = open_dataset(f"ani1x@{source}", cache_dir=tmp_path / "two", workers=2)[1]
    assert one.fingerprint == two.fingerprint


def test_columns_that_only_some_pieces_have_are_missing_elsewhere(tmp_path):
    from jaxatoms.data.writer import join_columns

    def system(**extra):
        return System(np.array([1], np.uint8), np.zeros((1, 3)), extra=extra)

    blocks = [[system()], [system(target_a=1.5, sid=3)], [system(target_b=np.ones(2))]]
    for i, block in enumerate(blocks):
        write_store(iter(block), tmp_path / f"{i}", {})
    join_columns([tmp_path / f"{i}" for i in range(3)], tmp_path / "joined", {})
    joined = Store.open(tmp_path / "joined")
    whole = write_store(itertools.chain(*blocks), tmp_path / "whole", {})
    assert joined.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(joined.column("target_a"), [np.nan, 1.5, np.nan])
    np.testing.assert_array_equal(joined.column("sid"), [-1, 3, -1])
    assert np.isnan(joined.column("target_b")[:2]).all()


def test_a_faulty_piece_keeps_the_others_for_the_next_time(tmp_path, small_pieces):
    folder = native_shards.write_oc_shards(tmp_path / "o", force=None)
    with pytest.raises(InputError, match="lacks 'force'"):
        open_dataset(f"oc22@{folder}", cache_dir=tmp_path / "c")
    kept = list((tmp_path / "c").glob("*.pieces/0*/manifest.json"))
    assert len(kept) == 3
    native_shards.write_oc_shards(folder)  # another source now: nothing old may be used
    _, store = open_dataset(f"oc22@{folder}", cache_dir=tmp_path / "c")
    assert len(store) == 6


def test_two_conversions_at_once_both_succeed(tmp_path, small_pieces, monkeypatch):
    source, calls = native.write_ani1x(tmp_path / "a.h5"), []
    plain = module._convert_part
    monkeypatch.setattr(module, "_convert_part", lambda *job: (time.sleep(0.05), calls.append(job), plain(*job))[2])
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(open_dataset, f"ani1x@{source}", None, tmp_path / "c") for _ in range(2)]
        first, second = (future.result()[1] for future in opened)
    assert first.fingerprint == second.fingerprint
    assert len(calls) == len(set(calls)), "the second waits and converts nothing again"


def test_any_error_of_a_reader_names_file_and_record(tmp_path, monkeypatch):
    def broken(part):
        yield System(np.array([1], np.uint8), np.zeros((1, 3)), key="first")
        raise TypeError("of two\nlines")

    monkeypatch.setattr(ani1x, "read_part", broken)
    monkeypatch.setattr(ani1x, "read", lambda path: broken(path))
    source = native.write_ani1x(tmp_path / "a.h5")
    with pytest.raises(InputError) as error:
        open_dataset(f"ani1x@{source}", cache_dir=tmp_path / "c")
    assert native.is_one_line_about(error, source, "after record 0 (first)", "TypeError: of two lines")


SCRIPT = """
import sys, time
import jaxatoms.data.readers.molecules as molecules
molecules._FRAMES_PER_PART = 5
from jaxatoms.data import convert, store
plain = convert._convert_part
def slow(*job):
    plain(*job)
    time.sleep(float(sys.argv[3]))
convert._convert_part = slow
_, found = store.open_dataset("ani1x@" + sys.argv[1], cache_dir=sys.argv[2])
print(found.fingerprint)
"""


def test_a_kill_loses_no_finished_piece(tmp_path, small_pieces):
    source, cache = native.write_ani1x(tmp_path / "a.h5"), tmp_path / "c"
    environment = os.environ | {"PYTHONPATH": str(Path(jaxatoms.__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, str(source), str(cache)]
    with subprocess.Popen([*command, "30"], env=environment) as process:
        deadline = time.monotonic() + 60
        while not (done := list(cache.glob("*.pieces/0*/manifest.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in done}
    assert before
    times = {}
    original = module.join_columns

    def spy(pieces, *rest):
        times.update({path: path.stat().st_mtime_ns for path in before})
        return original(pieces, *rest)

    module.join_columns = spy
    try:
        _, store = open_dataset(f"ani1x@{source}", cache_dir=cache)
    finally:
        module.join_columns = original
    assert times == before  # not converted again
    assert store.fingerprint == write_store(ani1x.read(source), tmp_path / "whole", {}).fingerprint


WORKERS = """
import sys, time
from jaxatoms.data import convert

def linger(*job):
    time.sleep(600)

if __name__ == "__main__":
    convert._convert_part = linger
    for _ in convert._run([(1,), (2,)], 2):
        pass
"""


@pytest.mark.slow
def test_workers_of_a_killed_conversion_end(tmp_path):
    script = tmp_path / "linger.py"
    script.write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(Path(jaxatoms.__file__).parents[1])}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as process:
        parent, deadline = psutil.Process(process.pid), time.monotonic() + 60
        while len(children := parent.children()) < 3 and time.monotonic() < deadline:  # two workers and a tracker
            time.sleep(0.1)
        time.sleep(2)
        process.send_signal(signal.SIGKILL)
    assert len(children) == 3
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_the_note_of_a_source_is_whole_or_absent(tmp_path):
    module._open_folder(tmp_path / "p", {"source": 1})
    (tmp_path / "p" / "000000").mkdir()
    module._open_folder(tmp_path / "p", {"source": 1})
    assert (tmp_path / "p" / "000000").exists()
    module._open_folder(tmp_path / "p", {"source": 2})
    assert not (tmp_path / "p" / "000000").exists()
    assert json.loads((tmp_path / "p" / "source.json").read_text()) == {"source": 2}

"""Process settings, seen from a process of their own."""

import os
import subprocess
import sys

import pytest

from jaxatoms.tools import runtime

SCRIPT = """
import sys
import numpy as np
from jaxatoms.tools import runtime

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

runtime.LONG = float(sys.argv[1])
runtime.prepare_process()
runtime.prepare_process()  # once is enough, twice no harm
import jax
blocks = [np.ones(2**17) for _ in range(300)]  # 300 MiB in pieces of 1 MiB
kept = blocks[::30]
del blocks
before = resident()
jax.jit(lambda x: x + 1)(1.0)
print(before - resident(), "KiB returned")
"""


@pytest.mark.skipif(not runtime._has_glibc(), reason="needs glibc")
@pytest.mark.parametrize(("long", "returned"), [("0", True), ("1000", False)])
def test_compilations_return_freed_memory(long, returned):
    done = subprocess.run([sys.executable, "-c", SCRIPT, long], capture_output=True, text=True, check=True)
    kib = int(done.stdout.split()[0])
    assert (kib > 200 * 1024) == returned, done.stdout


CACHE = """
import sys
import experiments  # as every command does first
from jaxatoms.tools import runtime
import jax

runtime.KEPT_SECONDS = 0.0
runtime.prepare_process()
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((50, 50))), jax.config.jax_compilation_cache_dir)
"""


def _with_cache(folder, **environment):
    """(stdout, stderr) of a process whose compiled programs are kept below `folder`."""
    own = ("JAX_COMPILATION", "JAX_PERSISTENT")  # of the test run
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env |= {"JAXATOMS_CACHE": str(folder), "TF_CPP_MIN_LOG_LEVEL": "1"} | environment  # 1: as JAX hands it on
    done = subprocess.run([sys.executable, "-c", CACHE], capture_output=True, text=True, check=True, env=env)
    return done.stdout.split(), done.stderr


def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    first, _ = _with_cache(tmp_path)
    kept = {path.name for path in (tmp_path / "xla").glob("*-cache")}
    assert first == ["125000.0", str(tmp_path / "xla")] and kept
    second, told = _with_cache(tmp_path)
    assert second == first and not told, "a loaded program says nothing"
    assert {path.name for path in (tmp_path / "xla").glob("*-cache")} == kept


def test_damaged_or_forbidden_caches_cost_nothing_but_time(tmp_path):
    _with_cache(tmp_path)
    for path in (tmp_path / "xla").glob("*-cache"):
        path.write_bytes(b"not a program")
    assert _with_cache(tmp_path)[0][0] == "125000.0"
    (tmp_path / "file").write_text("a file where the folder should be")
    assert _with_cache(tmp_path / "file") == (["125000.0", "None"], "")
    assert _with_cache(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == ["125000.0", "None"]
    assert _with_cache(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0][1] == str(tmp_path / "own")


LARGE = """
import resource
import numpy as np
from jaxatoms.tools import runtime

runtime.keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**31 + 2**27, np.uint8)  # freed at once, like the temporaries of a large step
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), faults())
"""


@pytest.mark.skipif(not runtime._has_glibc(), reason="needs glibc")
def test_freed_memory_is_kept_beyond_two_gigabytes():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 1000 > second, "the block's pages went back to the system"


TWO_THREADS = """
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from jaxatoms.tools import runtime

runtime.keep_freed_memory()
with ThreadPoolExecutor(1) as loader:
    batch = loader.submit(np.ones, 2**16, np.uint8).result()
own, maps = np.ones(2**16, np.uint8), Path("/proc/self/maps").read_text()
low, high = (int(end, 16) for end in re.search(r"^(\\w+)-(\\w+) .*heap.$", maps, re.M).groups())
print(low <= own.ctypes.data < high, low <= batch.ctypes.data < high)
"""


@pytest.mark.skipif(not runtime._has_glibc(), reason="needs glibc")
def test_what_another_thread_allocates_does_not_lie_beside_the_temporaries():
    """It took their place: the next step's went to fresh memory, and training took up to twice as much."""
    done = subprocess.run([sys.executable, "-c", TWO_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], "in the heap of the main thread: its own block, the loader's"

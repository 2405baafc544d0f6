"""Process settings, seen from a process of their own."""

import subprocess
import sys

import pytest

from experiments import runtime

SCRIPT = """
import sys
import numpy as np
from experiments import runtime

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


LARGE = """
import resource
import numpy as np
from experiments import runtime

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

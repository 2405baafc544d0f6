"""One command on a GPU: parity in float32 and bfloat16, then every named workload; writes one JSON file.

    python -m benchmarks.gpu_session --out benchmarks/results/gpu_session.json [--peer PYTHON] [--minutes 9]
    python -m benchmarks.report benchmarks/results/*.json*

Items run in waves: those of one wave set up and compile side by side, each in a process of its own on processor cores
of its own, and measure one at a time (`benchmarks.turns`), so that a quarter of an hour holds minutes of measuring
rather than of compiling. The first item runs alone. What every process says is printed at once with the item's name,
and the file is written after each item, so a failure or the end of a lease costs what was running. README.md beside
this file says what to bring to a host without a package index.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import turns
from jaxatoms.tools.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
PARITY = ("tests/parity", "tests/models/test_precision.py", "tests/models/test_full_precision.py",
          "tests/equiformer/test_equiformer_golden.py")  # float32 and bfloat16
# Autotuning compiles and times dozens of kernels for each of hundreds of products: minutes for one training step.
QUICK = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
TRACED = f"{QUICK} --xla_gpu_enable_command_buffer="  # kernels of a CUDA graph do not say what they belong to
TUNED = "--xla_gpu_enable_triton_gemm=false"  # products of the library alone, the fastest algorithm of each
# XLA's defaults of what the library sets for steps on a GPU (`jaxatoms.ops.target.step_options`).
DEFAULTS = "--xla_allow_excess_precision=true --xla_gpu_dot_merger_threshold_mb=32"


class Item(NamedTuple):
    """One thing to run."""

    name: str
    command: list[str]
    lines: bool = True  # appends JSON lines to a file given as --out
    xla_flags: str = QUICK  # beyond those of the environment


class Sizes(NamedTuple):
    """Copies of each workload's structures that fill a device, and repeats."""

    molecules: int = 22  # 65k edges
    twenty_slabs: int = 10
    slabs: int = 15  # 65k edges
    aspirin: int = 16  # 64 structures
    reps: int = 20
    workers: int = 6  # processes of the parity tests
    peer_device: str = "cuda"


TRIAL = Sizes(1, 1, 1, 1, 2, 1, "cpu")


def waves(model: str, peer: str | None, sizes: Sizes) -> list[list[Item]]:
    """Everything to run, most valuable first."""
    common = ["--model", model, "--reps", str(sizes.reps)]
    beside = ["--peer", peer, "--peer-device", sizes.peer_device] if peer else []
    large = "gemnet_oc_l" if model == "gemnet_oc_s" else model

    def step(name: str, case: str, copies: int, precision: str, *more: str, forces="direct", xla_flags=QUICK) -> Item:
        cases = ["--cases", case, "--grad"] if forces == "direct" else ["--cases", "--grad", case]
        options = [*cases, "--copies", str(copies), "--precision", precision, *common, *more]
        return Item(name, ["-m", "benchmarks.train_throughput", *options], xla_flags=xla_flags)

    def with_kernels(name: str, copies: int) -> Item:
        return step(f"molecules {name}, kernels", "mol20", copies, "bfloat16", "--kernels", "mosaic_gpu")

    def profile(name: str, case: str, copies: int, forces="direct") -> Item:
        cases = ["--cases", case, "--grad"] if forces == "direct" else ["--cases", "--grad", case]
        options = [*cases, "--copies", str(copies), "--precision", "bfloat16", *common]
        return Item(name, ["-m", "benchmarks.profile_step", *options], xla_flags=TRACED)

    chosen = ["-v", "-m", "not slow", "-k", "not float64", "--durations", "10"]  # names show also when cut off
    parity = ["-m", "pytest", *PARITY, *chosen, "--dist", "loadscope", "-n", str(sizes.workers)]
    return [
        [step("molecules batch 20, first", "mol20", 1, "bfloat16")],
        [
            Item("parity", parity, lines=False),
            step("molecules batch 20", "mol20", 1, "bfloat16", *beside),
            step("molecules packed", "mol20", sizes.molecules, "bfloat16", *beside),
            step("slabs batch 20", "slab2", sizes.twenty_slabs, "bfloat16", *beside),
            step("gradient forces batch 64", "aspirin4", sizes.aspirin, "bfloat16", *beside, forces="gradient"),
        ],
        [
            profile("profile packed", "mol20", sizes.molecules),
            profile("profile batch 20", "mol20", 1),
            profile("profile gradient", "aspirin4", sizes.aspirin, "gradient"),
            *([with_kernels("packed", sizes.molecules), with_kernels("batch 20", 1)] if model == "gemnet_oc_s" else []),
            step("molecules packed, tf32", "mol20", sizes.molecules, "tf32", *beside),
            step("molecules packed, no options", "mol20", sizes.molecules, "bfloat16", xla_flags=f"{QUICK} {DEFAULTS}"),
        ],
        [
            step("molecules batch 20, tuned products", "mol20", 1, "bfloat16", xla_flags=TUNED),
            step("molecules packed, tuned products", "mol20", sizes.molecules, "bfloat16", xla_flags=TUNED),
            step("molecules packed, float32", "mol20", sizes.molecules, "float32", *beside),
            step("large variant packed", "mol20", sizes.molecules, "bfloat16", "--model", large),
            Item("kernels", ["-m", "benchmarks.kernels", "--reps", str(sizes.reps)]),
            Item("EquiformerV2 forward", ["-m", "benchmarks.equiformer_forward", "--case", "mol20"]),
            Item("prediction", ["-m", "benchmarks.inference_throughput", "--precision", "bfloat16", *common]),
        ],
        [
            step("slabs packed", "slab2", sizes.slabs, "bfloat16"),
            Item("CSI", ["-m", "benchmarks.csi_throughput", "update", "frechet", "frechet_3200"]),
            step("molecules batch 20, XLA's own flags", "mol20", 1, "bfloat16", xla_flags=DEFAULTS),
        ],
    ]


def environment(folder: Path, xla_flags: str) -> dict[str, str]:
    """Of an item: memory is taken as it is needed, since processes share the device, and compiled programs are kept."""
    flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), xla_flags]))
    kept = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    return {turns.VARIABLE: str(folder / "turns")} | os.environ | kept | {"XLA_FLAGS": flags}


def pinned(share: int, of: int) -> list[str]:
    """The words that keep a command to its share of the processor's cores, where there are enough of them."""
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // of
    if size < 2 or not shutil.which("taskset"):
        return []
    return ["taskset", "-c", ",".join(map(str, cores[share * size : (share + 1) * size]))]


def run(item: Item, limit: float, folder: Path, prefix: Sequence[str] = ()) -> dict:
    """The outcome of an item: exit code (None: out of time), seconds, its JSON lines and the end of what it printed."""
    began, said = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as own:
        out = Path(own) / "out.jsonl"
        command = [*prefix, sys.executable, *item.command, *(["--out", str(out)] if item.lines else [])]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = environment(folder, item.xla_flags)
        with subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **streams) as process:
            expired = threading.Event()

            def stop():
                expired.set()
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started

            timer = threading.Timer(limit, stop)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                print(f"[{item.name}] {line}", end="", flush=True)
            code = process.wait()
            timer.cancel()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    seconds, code = time.perf_counter() - began, None if expired.is_set() else code
    return {"exit": code, "seconds": seconds, "lines": lines, "tail": "".join(said)[-5000:]}


def run_wave(wave: list[Item], limit: float, folder: Path, finished) -> None:
    """Run the items side by side; `finished(item, outcome)` is called as each ends, one call at a time."""
    lock = threading.Lock()

    def one(numbered: tuple[int, Item]) -> None:
        i, item = numbered
        outcome = run(item, limit, folder, pinned(i, len(wave)))
        with lock:
            finished(item, outcome)

    with ThreadPoolExecutor(len(wave)) as pool:
        list(pool.map(one, enumerate(wave)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of the peer's environment")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all items")
    parser.add_argument("--wave-minutes", type=float, default=4.0, help="for one wave at most")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="items whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="few repeats and small batches: a trial of the script")
    args = parser.parse_args()
    end = time.perf_counter() + 60 * args.minutes
    record: dict = {"command": sys.argv, "items": {}}

    def finished(item: Item, outcome: dict) -> None:
        record["items"][item.name] = outcome
        print(f"[{item.name}] exit {outcome['exit']} after {outcome['seconds']:.0f} s", flush=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        for wave in waves(args.model, args.peer, TRIAL if args.quick else Sizes()):
            todo = [item for item in wave if args.only is None or any(text in item.name for text in args.only)]
            left = end - time.perf_counter()
            if todo and left > 0:
                run_wave(todo, min(left, 60 * args.wave_minutes), Path(folder), finished)
            record["items"] |= {item.name: {"exit": None, "skipped": "no time left"} for item in todo if left <= 0}
    record |= provenance()
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

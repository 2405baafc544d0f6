"""One command on a GPU: parity in float32 and bfloat16, then every named workload; writes one JSON file.

    python -m benchmarks.gpu_session --out benchmarks/results/gpu_session.json [--peer PYTHON]
    python -m benchmarks.report benchmarks/results/*.json*

Not run on a GPU yet; the script itself was tried on a CPU (`--quick`, small models), where limits cut most items. Each
item runs in a process of its own and may take half of the time that is left, the last one all; the file is written
after each. So a failure or the end of a lease costs one item.
The workloads are those of `train_throughput` with copies that fill a large device.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
PARITY = ("tests/parity", "tests/models/test_precision.py")  # float32 and bfloat16


class Item(NamedTuple):
    """One thing to run."""

    name: str
    command: list[str]
    lines: bool = True  # appends JSON lines to a file given as --out


def _throughput(name: str, *options: str) -> Item:
    return Item(name, ["-m", "benchmarks.train_throughput", *options])


def items(model: str, peer: str | None, quick: bool) -> list[Item]:
    """Everything to run, most valuable first."""
    common = ["--model", model, *(["--reps", "2", "--warmup", "1"] if quick else [])]
    direct = lambda case, copies: ["--cases", case, "--grad", "--copies", str(copies)]  # noqa: E731
    gradient = lambda case, copies: ["--cases", "--grad", case, "--copies", str(copies)]  # noqa: E731
    molecules, slabs, aspirin = (1, 1, 1) if quick else (22, 15, 16)  # 65k edges, 65k edges, 64 structures
    large = "gemnet_oc_l" if model == "gemnet_oc_s" else model
    twenty = 1 if quick else 10
    with_peer = ["--peer", peer, "--peer-device", "cuda"] if peer else []
    bf16, f32 = ["--precision", "bfloat16"], ["--precision", "float32"]
    return [
        Item("parity", ["-m", "pytest", *PARITY, "-m", "not slow", "-k", "not float64"], lines=False),
        _throughput("molecules batch 20, bfloat16", *direct("mol20", 1), *bf16, *common, *with_peer),
        _throughput("molecules packed, bfloat16", *direct("mol20", molecules), *bf16, *common, *with_peer),
        _throughput("slabs batch 20, bfloat16", *direct("slab2", twenty), *bf16, *common, *with_peer),
        _throughput("gradient forces batch 64", *gradient("aspirin4", aspirin), *bf16, *common, *with_peer),
        _throughput("gradient forces batch 4", *gradient("aspirin4", 1), *bf16, *common, *with_peer),
        _throughput("molecules packed, float32", *direct("mol20", molecules), *f32, *common),
        _throughput("slabs packed, bfloat16", *direct("slab2", slabs), *bf16, *common),
        Item("profile", ["-m", "benchmarks.profile_step", "--copies", str(molecules), "--model", model, *bf16]),
        _throughput("large variant packed", *direct("mol20", molecules), *bf16, *common, "--model", large),
        Item("prediction", ["-m", "benchmarks.inference_throughput", "--model", model, *bf16]),
    ]


def run(item: Item, limit: float) -> dict:
    """The outcome of an item: exit code, seconds, its JSON lines and the end of what it printed."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        command = [sys.executable, *item.command, *(["--out", str(out)] if item.lines else [])]
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            code, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            code, text = None, error.stdout or ""
            text = text if isinstance(text, str) else text.decode(errors="replace")
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return {"exit": code, "seconds": time.perf_counter() - began, "lines": lines, "tail": text[-2000:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--model", default="gemnet_oc_s", help="preset or .json of dimensions")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of the peer's environment")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all items; one takes at most half the rest")
    parser.add_argument("--quick", action="store_true", help="few repeats and small batches: a trial of the script")
    args = parser.parse_args()
    end = time.perf_counter() + 60 * args.minutes
    record: dict = {"command": sys.argv, "items": {}}
    todo = items(args.model, args.peer, args.quick)
    for item in todo:
        left = end - time.perf_counter()
        if left <= 0:
            record["items"][item.name] = {"exit": None, "skipped": "no time left"}
            continue
        record["items"][item.name] = result = run(item, left if item is todo[-1] else left / 2)
        print(f"{item.name:32} exit {result['exit']}  {result['seconds']:.0f} s", flush=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    record |= provenance()
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Lines of `benchmarks.train_throughput` -> the table in RESULTS.md: `python -m benchmarks.report FILE.jsonl ...`.

The newest line of each case on each machine is shown; older ones stay in the JSON files.
"""

import argparse
import json
from pathlib import Path

OUT = Path(__file__).with_name("RESULTS.md")
HEAD = """# Training steps

Written by `python -m benchmarks.report`; what the columns mean is in `benchmarks/train_throughput.py`. Peak memory is
that of the whole process. Ratios are ours / peer, below 1 in our favour: time of the step (the peer's graph building
taken off), the same with graph building on both sides, peak memory.

"""
KEY = ("case", "forces", "who", "malloc_tuned", "model", "precision", "structures")
COLUMNS = {
    "case": lambda r: f"{r['case']}, {r['forces']} forces",
    "code": lambda r: f"{r['who']}{'' if r['malloc_tuned'] else ', default malloc'}",
    "model, dtype": lambda r: f"{r['model']}, {r['precision']}",
    "s/step (min to max)": lambda r: f"{r['step_s']:.3f} ({min(r['step_s_all']):.3f} to {max(r['step_s_all']):.3f})",
    "atoms/s (padded)": lambda r: f"{r['atoms_per_s']:.1f}{_optional(r, 'padded_atoms_per_s', ' ({:.1f})')}",
    "structures/s": lambda r: f"{r['structures_per_s']:.2f}",
    "GFLOP/step": lambda r: _optional(r, "gflop", "{:.0f}"),
    "GFLOP/s": lambda r: _optional(r, "gflop_per_s", "{:.0f}"),
    "of GEMM peak": lambda r: _optional(r, "gemm_fraction", "{:.0%}"),
    "compile s": lambda r: _optional(r, "compile_s", "{:.0f}"),
    "peak GiB": lambda r: ", ".join(f"{v:.2f} {k}" for k, v in r["peak_gib"].items()),
    "time": lambda r: _ratio(r, "time"),
    "with graphs": lambda r: _ratio(r, "time_with_graphs"),
    "memory": lambda r: _ratio(r, "memory"),
    "machine": lambda r: _machine(r),
    "versions": lambda r: ", ".join(f"{n} {r['versions'][n]}" for n in ("jaxlib", "torch") if n in r["versions"]),
    "date": lambda r: r["run"][:10],
    "commit": lambda r: _commit(r),
    "command": lambda r: f"`{r['command']}`",
}


def read_lines(files: list[Path]) -> list[dict]:
    """The newest line of each case, code, setting and machine, in the order of first appearance."""
    newest = {}
    for file in files:
        for record in map(json.loads, file.read_text().splitlines()):
            key = (*(record[name] for name in KEY), _machine(record))
            if key not in newest or record["run"] >= newest[key]["run"]:
                newest[key] = record
    return list(newest.values())


def table(records: list[dict]) -> str:
    """A Markdown table with one row per record."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[str(cell(record)) for cell in COLUMNS.values()] for record in records]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _optional(record: dict, name: str, form: str) -> str:
    return form.format(record[name]) if name in record else ""


def _ratio(record: dict, name: str) -> str:
    return f"{record['ratios'][name]:.2f}" if "ratios" in record else ""


def _machine(record: dict) -> str:
    device, machine = record["device"], record["machine"]
    kind = device["kind"] if isinstance(device, dict) else device
    accelerator = "" if kind == "cpu" else f"{kind}, "
    return f"{accelerator}{machine['cpu']}, {machine['cores']} cores"


def _commit(record: dict) -> str:
    if not record.get("commit"):
        return ""
    return record["commit"][:10] + (" + changes" if record.get("dirty") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.write_text(HEAD + table(read_lines(args.files)))


if __name__ == "__main__":
    main()

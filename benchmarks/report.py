"""Lines of the benchmarks -> the tables in RESULTS.md: `python -m benchmarks.report FILE ...`.

Read are lines of `train_throughput`, `profile_step`, `inference_throughput`, `feed_rate`, `data_pipeline`,
`csi_throughput`, `dynamics` and `kernels`; a file may hold several kinds, or be what `gpu_session` wrote.
The newest line of each case on each machine is shown; older ones stay in the JSON files.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.profile_step import bound

OUT = Path(__file__).with_name("RESULTS.md")
HEAD = """# Measurements

Written by `python -m benchmarks.report`; what the columns mean is in the module that each command names.
"""
NO_ACCELERATOR = """
**No figure here was measured on a GPU or TPU.** One command measures them all on a GPU:
`python -m benchmarks.gpu_session`; `benchmarks/gpu_session/README.md` says what two tries on an H200 host found.
"""
TRAIN_NOTE = """Peak memory is that of the whole process. Ratios are ours / peer, below 1 in our favour: time of the
step (the peer's graph building taken off), the same with graph building on both sides, processor time
(graph building included for the peer), peak memory. Processor time suffers least where another job took
the cores, as the range of a row's seconds shows."""
PROFILE_NOTE = """Traced in the running step, where operations of different parts partly run side by side; bounds are
those of one large matmul and one large copy on the same machine."""
TRAIN_COLUMNS = {
    "case": lambda r: f"{r['case']}, {r['forces']} forces",
    "code": lambda r: r["who"] + ", default malloc" * (not r["malloc_tuned"]) + _remat(r),
    "model, dtype": lambda r: f"{r['model']}, {r['precision']}{_kernels(r)}",
    "s/step (min to max)": lambda r: f"{r['step_s']:.3f} ({min(r['step_s_all']):.3f} to {max(r['step_s_all']):.3f})",
    "CPU s": lambda r: _optional(r, "cpu_s", "{:.2f}"),
    "atoms/s (padded)": lambda r: f"{r['atoms_per_s']:.1f}{_optional(r, 'padded_atoms_per_s', ' ({:.1f})')}",
    "structures/s": lambda r: f"{r['structures_per_s']:.2f}",
    "GFLOP/step": lambda r: _optional(r, "gflop", "{:.0f}"),
    "GFLOP/s": lambda r: _optional(r, "gflop_per_s", "{:.0f}"),
    "of GEMM peak": lambda r: _optional(r, "gemm_fraction", "{:.0%}"),
    "compile s": lambda r: _optional(r, "compile_s", "{:.0f}"),
    "peak GiB": lambda r: _peak(r),
    "time": lambda r: _ratio(r, "time"),
    "with graphs": lambda r: _ratio(r, "time_with_graphs"),
    "CPU time": lambda r: _ratio(r, "cpu"),
    "memory": lambda r: _ratio(r, "memory"),
}
ORIGIN_COLUMNS = {
    "machine": lambda r: _machine(r),
    "versions": lambda r: ", ".join(f"{n} {r['versions'][n]}" for n in ("jaxlib", "torch") if n in r["versions"]),
    "date": lambda r: r["run"][:10],
    "commit": lambda r: _commit(r),
    "command": lambda r: f"`{r['command']}`",
}
INFERENCE_COLUMNS = {
    "case": lambda r: f"{r['case']}, {r['forces']} forces",
    "model, dtype": lambda r: f"{r['model']}, {r['precision']}",
    "s (min to max)": lambda r: f"{r['step_s']:.3f} ({min(r['step_s_all']):.3f} to {max(r['step_s_all']):.3f})",
    "structures/s": lambda r: f"{r['structures_per_s']:.2f}",
    "with graphs": lambda r: f"{r['structures_per_s_with_graphs']:.2f}",
    "atoms/s": lambda r: f"{r['atoms_per_s']:.1f}",
    "GFLOP": lambda r: f"{r['gflop']:.0f}",
    "compile s": lambda r: f"{r['compile_s']:.0f}",
    "temporary GiB": lambda r: f"{r['temporary_gib']:.2f}",
    "peak GiB": lambda r: _peak(r),
}
KERNEL_COLUMNS = {
    "kernel": lambda r: r["kernel"] + (", INTERPRETED" if r["interpreted"] else ""),
    "case": lambda r: f"{r['case']}: {r['n']} x {r['c']} {r['dtype']}, {r['pass']}",
    "kernel s": lambda r: f"{r['kernel_s']:.5f}",
    "XLA s": lambda r: f"{r['xla_s']:.5f}",
    "ratio": lambda r: "" if r["interpreted"] else f"{r['ratio']:.2f}",
    "largest difference": lambda r: f"{r['largest_difference']:.1e}",
}
COMPILATION_COLUMNS = {
    "kernel": lambda r: r["kernel"],
    "case": lambda r: f"{r['case']}: {r['n']} x {r['c']} {r['dtype']}, {r['pass']}",
    "side": lambda r: r["side"],
    "chip": lambda r: r["topology"],
    "GFLOP": lambda r: f"{r['gflop']:.1f}",
    "GB accessed": lambda r: f"{r['gbyte']:.3f}",
    "temporary MiB": lambda r: f"{r['temporary_mib']:.0f}",
    "CPU s to compile": lambda r: f"{r['compile_cpu_s']:.1f}",
}
PROFILE_COLUMNS = {
    "case": lambda r: f"{r['case']}, {r['forces']} forces, {r['model']}, {r['precision']}",
    "part": lambda r: r["part"],
    "forward + backward, ms": lambda r: " + ".join(f"{1e3 * s:.0f}" for s in r["times"]),
    "GFLOP": lambda r: f"{r['flops'] / 1e9:.1f}",
    "GB": lambda r: f"{r['bytes'] / 1e9:.2f}",
    "bound, ms": lambda r: "{:.0f}, {}".format(1e3 * bound(r, r["limits"])[0], bound(r, r["limits"])[1]),
}
FEED_COLUMNS = {
    "data": lambda r: r["case"],
    "batch": lambda r: f"{r['batch_edges']} edges" if r["batch_edges"] else f"{r['batch_size']} structures",
    "workers": lambda r: r["workers"],
    "batches/s": lambda r: f"{r['batches_per_s']:.1f}",
    "structures/s": lambda r: f"{r['structures_per_s']:.0f}",
    "edges/s": lambda r: f"{r['edges_per_s']:.2e}",
    "MiB per batch": lambda r: f"{r['batch_mib']:.2f}",
}
FIGURE_COLUMNS = {
    "what": lambda r: r["what"],
    "figures": lambda r: ", ".join(f"{name} {_figure(value)}" for name, value in r["figures"].items()),
}


class Kind(NamedTuple):
    """How the lines of one benchmark become a table."""

    title: str
    note: str
    key: tuple[str, ...]  # what distinguishes cases
    columns: dict[str, Callable]


UNUSED = (False, "auto")  # a record that does not say whether something was used was made without it
KINDS = {
    "train_throughput": Kind(
        "Training steps",
        TRAIN_NOTE,
        ("case", "forces", "who", "malloc_tuned", "model", "precision", "kernels", "remat", "structures"),
        TRAIN_COLUMNS,
    ),
    "profile_step": Kind(
        "Parts of a training step",
        PROFILE_NOTE,
        ("case", "forces", "model", "precision", "structures", "part"),
        PROFILE_COLUMNS,
    ),
    "inference_throughput": Kind(
        "Prediction",
        "Forward passes with random weights; graphs are made on one core of the host.",
        ("case", "forces", "model", "precision", "structures"),
        INFERENCE_COLUMNS,
    ),
    "feed_rate": Kind(
        "Loader",
        "Batches that reach the training process, with 0 (a thread) or more worker processes.",
        ("case", "batch_size", "batch_edges", "workers"),
        FEED_COLUMNS,
    ),
    "data_pipeline": Kind("Data", "Structures per second, unless the name says otherwise.", ("what",), FIGURE_COLUMNS),
    "csi_throughput": Kind(
        "Chemical Similarity Index", "Random rows, unless a data set is named.", ("what",), FIGURE_COLUMNS
    ),
    "dynamics": Kind("Energy conservation", "One trajectory each, in float64.", ("what",), FIGURE_COLUMNS),
    "kernels": Kind(
        "Kernels beside XLA",
        "Where a kernel was interpreted its time says nothing.",
        ("kernel", "n", "c", "dtype", "pass", "interpreted"),
        KERNEL_COLUMNS,
    ),
    "kernel_compilation": Kind(
        "Kernels compiled for chips that are not there",
        "What the compiler says of one chip's program; nothing was run.",
        ("kernel", "n", "c", "dtype", "pass", "side", "topology"),
        COMPILATION_COLUMNS,
    ),
}


def read_lines(files: list[Path]) -> dict[str, list[dict]]:
    """Of each benchmark the newest line of each case and machine, in the order of first appearance.

    Lines of benchmarks that have no table (`program_size`, `equiformer_forward`) are counted on stderr.
    """
    newest: dict[str, dict] = {kind: {} for kind in KINDS}
    for file in files:
        records = [(record.get("benchmark", "train_throughput"), record) for record in _records(file)]
        without = sum(kind not in KINDS for kind, _ in records)
        if without:
            print(f"{file}: {without} lines are of benchmarks without a table", file=sys.stderr)
        for kind, record in records:
            if kind not in KINDS:
                continue
            said = {name: value for name in KINDS[kind].key if (value := record.get(name)) not in (None, *UNUSED)}
            key = (*(said.get(name, False) for name in KINDS[kind].key), _machine(record))
            if key not in newest[kind] or record["run"] >= newest[kind][key]["run"]:
                newest[kind][key] = record
    return {kind: list(lines.values()) for kind, lines in newest.items()}


def _records(file: Path) -> list[dict]:
    """The lines of a JSONL file, or of all items of a gpu_session (.json)."""
    if file.suffix == ".json":
        items = json.loads(file.read_text())["items"].values()
        lines = [line for item in items for line in item.get("lines", [])]
    else:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for line in lines for row in (_parts(line) if "parts" in line else [line])]


def _parts(record: dict) -> list[dict]:
    """A profile as one record for each part, the whole step first."""
    parts = record["parts"]
    whole = {name: sum(part[name] for part in parts.values()) for name in ("bytes", "flops")}
    rows = [record | {"part": "whole step", "times": [record["step_s"]]} | whole]
    for name, part in parts.items():
        rows.append(record | {"part": name, "times": [part["forward_s"], part["backward_s"]]} | part)
    host = {"part": "input, one core of the host", "times": [record["input_s"]], "bytes": 0, "flops": 0}
    return [*rows, record | host]


def section(kind: Kind, records: list[dict]) -> str:
    """A heading and a Markdown table with one row per record."""
    columns = kind.columns | ORIGIN_COLUMNS
    rows = [list(columns), ["---"] * len(columns)]
    rows += [[str(cell(record)) for cell in columns.values()] for record in records]
    _mark_repeats(rows, len(kind.columns))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"\n## {kind.title}\n\n{kind.note}\n\n{table}"


def _mark_repeats(rows: list[list[str]], first: int):
    """Ditto marks for a row's origin where it is that of the row before."""
    origins = [row[first:] for row in rows]
    for row, own, before in zip(rows[1:], origins[1:], origins, strict=False):
        if own == before:
            row[first:] = ['"'] * len(own)


def _figure(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _peak(record: dict) -> str:
    return ", ".join(f"{value:.2f} {key}" for key, value in record["peak_gib"].items())


def _optional(record: dict, name: str, form: str) -> str:
    return form.format(record[name]) if name in record else ""


def _kernels(record: dict) -> str:
    named = record.get("kernels", "auto")
    return "" if named == "auto" else f", {named}"


def _remat(record: dict) -> str:
    if not record.get("remat"):
        return ""
    return ", --remat" if record["who"] == "jaxatoms" else ", beside --remat"


def _ratio(record: dict, name: str) -> str:
    return f"{record['ratios'][name]:.2f}" if "ratios" in record else ""


def _device(record: dict) -> str:
    return record["device"]["kind"] if isinstance(record["device"], dict) else record["device"]


def _machine(record: dict) -> str:
    kind, machine = _device(record), record["machine"]
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
    lines = read_lines(args.files)
    everywhere = [_device(record) for found in lines.values() for record in found]
    head = HEAD + NO_ACCELERATOR * all(kind == "cpu" for kind in everywhere)
    args.out.write_text(head + "".join(section(KINDS[kind], found) for kind, found in lines.items() if found))


if __name__ == "__main__":
    main()

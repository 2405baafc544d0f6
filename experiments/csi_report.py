"""A comparison's rows -> table, JSON, bar charts in the style of Figures 3 and 5, and the advice in words."""

import csv
import json
from pathlib import Path

import numpy as np

from jaxatoms.types import InputError


def write_csv(path: Path, rows: list[dict]):
    """The reference's columns first, then ours."""
    columns = [name for name in rows[0] if name != "resampled"]
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def write_json(path: Path, record: dict):
    """Everything, resampled scores included."""
    path.write_text(json.dumps(record, indent=1) + "\n")


def plot(path: Path, rows: list[dict]):
    """One panel per task, one bar per upstream set, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks, upstream = (list(dict.fromkeys(r[k] for r in rows)) for k in ("Downstream", "Upstream"))
    n_column = min(4, len(tasks))
    n_row = -(-len(tasks) // n_column)
    figure, axes = pyplot.subplots(n_row, n_column, figsize=(3.2 * n_column, 2.8 * n_row), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        own = {r["Upstream"]: r for r in rows if r["Downstream"] == task}
        values = np.array([own[u]["CSI Score"] for u in upstream])
        ends = np.array([[own[u]["low"] for u in upstream], [own[u]["high"] for u in upstream]])
        errors = np.maximum([values - ends[0], ends[1] - values], 0)
        axis.bar(range(len(upstream)), values, yerr=errors, capsize=3, color=[f"C{i}" for i in range(len(upstream))])
        axis.set_xticks(range(len(upstream)), upstream, rotation=30, ha="right", fontsize=8)
        axis.set_title(task, fontsize=9)
        axis.set_ylabel("CSI (lower = closer)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def print_ranking(rows: list[dict], ranking: dict[str, list[dict]]):
    """The table per task and one line of advice with how sure it is."""
    by_pair = {(r["Upstream"], r["Downstream"]): r for r in rows}
    for task, order in ranking.items():
        r = by_pair[order[0]["upstream"], task]
        print(f"\n{task}  ({r['downstream structures']:,} structures, {r['downstream atoms']:,} atoms)")
        for entry in order:
            row = by_pair[entry["upstream"], task]
            sizes = f"{row['upstream structures']:,} structures, effective rank {row['upstream effective rank']:.1f}"
            interval = f"[{row['low']:.4g}, {row['high']:.4g}]"
            print(f"  {entry['upstream']:24s} CSI {row['CSI Score']:10.4g}  {interval:22s} {sizes}")
        print(f"  pretrain on {order[0]['upstream']}{_how_sure(order)}")


def _how_sure(order: list[dict]) -> str:
    if len(order) == 1:
        return ": it was the only candidate"
    sure = order[0]["probability_best"]
    word = "clear" if sure >= 0.95 else "likely" if sure >= 0.75 else "not settled by this sample"
    return f": closest in {sure:.0%} of resamples ({word}; next: {order[1]['upstream']})"

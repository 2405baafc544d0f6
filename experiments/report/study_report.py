"""A study's results -> Markdown, a bar chart per task, and the story in words."""

from pathlib import Path

import numpy as np

from jaxatoms.io import write_json, write_text
from jaxatoms.plots import drawing


def write(folder: Path, name: str, results: dict):
    """Results as name.json, name.md and name.png."""
    write_json(folder / f"{name}.json", results)
    write_text(folder / f"{name}.md", as_markdown(results))
    plot(folder / f"{name}.png", results)


def as_markdown(results: dict) -> str:
    """One table of test errors (mean and sample standard deviation over seeds), one of CSI; columns are tasks."""
    tasks = results["tasks"]
    first = next(iter(tasks.values()))
    lines = ["| pretrained on | " + " | ".join(f"{n} ({t['unit']})" for n, t in tasks.items()) + " |",
             "|---|" + "---|" * len(tasks)]  # fmt: skip
    for label in first["mae"]:
        cells = [_cell(t["mae"][label]) for t in tasks.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("| (mean of the labels) | " + " | ".join(f"{t['mean_baseline']:.4g}" for t in tasks.values()) + " |")
    if "csi" not in first:
        return "\n".join(lines) + "\n"
    lines += ["", "| CSI to | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for label in first["csi"]:
        lines.append(f"| {label} | " + " | ".join(f"{t['csi'][label]:.4g}" for t in tasks.values()) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread}"


def tell(results: dict) -> str:
    """What came out, in words: the ranking, the errors, whether the pick was right."""
    lines = []
    for name, task in results["tasks"].items():
        mae = {label: float(np.mean(v)) for label, v in task["mae"].items()}
        order = sorted(task.get("csi", {}), key=lambda label: task["csi"][label])
        ranks = ": CSI ranks " + " < ".join(f"{u} ({task['csi'][u]:.3g})" for u in order) if order else ""
        lines.append(f"\n{name}{ranks}")
        for label in sorted(mae, key=mae.get):
            error = f"{_measure(task)} {_cell(task['mae'][label])} {task['unit']}"
            lines.append(f"  pretrained on {label:12s} test {error}")
        constant = "predicting the mean" if _measure(task) == "MAE" else "naming one class"
        lines.append(f"  {constant:23s} test {_measure(task)} {task['mean_baseline']:.4g} {task['unit']}")
        if not order:
            continue
        winner = min(order, key=lambda label: mae[label])
        verdict = "and it was the best single choice" if winner == order[0] else f"but {winner} did better"
        lines.append(f"  CSI picked {order[0]}, {verdict}")
    rank = results["spearman"]
    if rank:
        first = next(iter(results["tasks"].values()))
        n_run = rank["tasks"] * len(next(iter(first["mae"].values())))
        interval = f"[{rank['low']:.2f}, {rank['high']:.2f}], mean of {rank['tasks']} tasks of {len(first['csi'])} sets"
        interval = interval if n_run > 1 else "one task, one seed: no interval"
        lines.append(f"\nSpearman correlation of CSI and MAE: {rank['value']:.2f} ({interval})")
    return "\n".join(lines)


def _measure(task: dict) -> str:
    return task.get("measure", "MAE")


def verdict(results: dict) -> str:
    """Two sentences for the first task: whether the selection was right, and how sure that is.

    Empty where nothing was selected: no CSI, or a single set.
    """
    name, task = next(iter(results["tasks"].items()))
    order = sorted(task.get("csi", {}), key=lambda label: task["csi"][label])
    if len(order) < 2:
        return ""
    mae = {label: float(np.mean(values)) for label, values in task["mae"].items()}
    best, *others = sorted(order, key=lambda label: mae[label])
    figures = f"{mae[best]:.4g} {task['unit']} against {', '.join(f'{mae[o]:.4g} ({o})' for o in others)}"
    if best == order[0]:
        first = f"CSI picked {best} for {name}, which led to the lowest test error of the single sets: {figures}."
    else:
        first = f"CSI picked {order[0]} for {name}, but {best} led to the lowest test error: {figures}."
    n_seed = len(task["mae"][best])
    if n_seed == 1:
        return f"{first} These are single runs, and other seeds differ by several percent (--seeds 3 shows them)."
    spread = float(np.sqrt(np.mean([np.var(task["mae"][label], ddof=1) for label in order])))
    error = spread * (2 / n_seed) ** 0.5
    lead = mae[others[0]] - mae[best]
    sure = "more" if lead > 2 * error else "no more"
    return f"{first} The lead of {lead:.3g} is {sure} than twice its standard error of {error:.2g} over {n_seed} seeds."


def plot(path: Path, results: dict):
    """One panel per task: test errors by pretraining, the closest set first; dots are seeds, a line is their mean."""
    tasks = results["tasks"]
    with drawing(path, len(tasks), panel=(3.4, 2.9), columns=3, dpi=110) as (_, axes):
        for axis, (name, task) in zip(axes, tasks.items(), strict=True):
            _draw_task(axis, name, task)


def _draw_task(axis, name: str, task: dict):
    ranked = sorted(task.get("csi", {}), key=lambda label: task["csi"][label])
    labels = ranked + [label for label in task["mae"] if label not in ranked]
    for i, label in enumerate(labels):
        values = task["mae"][label]
        color = "C0" if label in ranked else "0.45"  # what CSI does not rank: the mixture, no pretraining
        axis.plot([i] * len(values), values, ".", color=color, markersize=6, alpha=0.7)
        axis.plot([i - 0.3, i + 0.3], [np.mean(values)] * 2, color=color, linewidth=2)
    if ranked and len(ranked) < len(labels):
        axis.axvline(len(ranked) - 0.5, color="0.8", linewidth=1)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    axis.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_title(name, fontsize=9)
    axis.set_ylabel(f"test {_measure(task)} ({task['unit']})", fontsize=8)
    if ranked:
        axis.set_xlabel("pretrained on: closest first, then not ranked", fontsize=7)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y")

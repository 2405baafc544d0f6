"""The paper's figures from run files: bars of the test error (1, 4), of CSI (3, 5 to 8) and class coverage (9)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.paper.names import UPSTREAM, short_count
from experiments.paper.published import RowKey, columns_of, published, rows_of
from experiments.report.csi_records import Bar, Comparison, bars, class_counts, find_comparisons
from experiments.report.grouping import make_cells
from experiments.report.results import find_results
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.plots import drawing, spread_bars
from jaxatoms.types import InputError

MOLECULAR = ("rMD17", "MD22", "SPICE", "QM9")
MATERIALS = ("QMOF", "MatBench phonons")
PARTIAL = " *"  # marks a bar of a partial budget or a partial test


@dataclasses.dataclass(frozen=True)
class CsiFigure:
    """Which comparisons a CSI figure shows; docs/reference/csi.md, Published figures."""

    title: str
    tasks: tuple[str, ...] = MOLECULAR
    aggregation: str = "flat"
    sampling: str = "balanced"
    extractor: str = "equiformer_v2"
    other_tasks: bool = True  # also tasks that the paper does not have

    def takes(self, comparison: Comparison, extractor: str) -> bool:
        """Whether a comparison belongs here; `extractor` as the option of experiments.tables."""
        wanted = {"auto": self.extractor, "any": ""}.get(extractor, extractor)
        made = comparison.distance, comparison.aggregation, comparison.sampling
        return made == (FRECHET.name, self.aggregation, self.sampling) and comparison.extractor.startswith(wanted)


CSI_FIGURES = {
    "3": CsiFigure("Figure 3: CSI, per atom, class-balanced"),
    "5": CsiFigure("Figure 5: CSI out of domain", tasks=MATERIALS, other_tasks=False),
    "6": CsiFigure("Figure 6: CSI of structure means", aggregation="mean"),
    "7": CsiFigure("Figure 7: CSI, random sampling", sampling="random"),
    "8": CsiFigure("Figure 8: CSI with a GemNet-OC extractor", extractor="gemnet_oc"),
}
FIGURES = ("1", *CSI_FIGURES, "4", "9")


def draw(figure: str, runs: Path, out: Path, weights: str = "last_ema", extractor: str = "auto") -> Path:
    """figure<N>.png in `out`; what is missing is written into its place.

    Args:
      figure: one of FIGURES.
      runs: folder searched.
      weights: of the test errors.
      extractor: "auto" (the figure's own), "any", or the start of a name such as "gemnet_oc".

    Raises:
      InputError: no such figure, or no such folder.
    """
    if not runs.is_dir():
        raise InputError(f"--runs {runs} is no folder; give the folder that holds the run folders")
    path = out / f"figure{figure}.png"
    if figure in CSI_FIGURES:
        panels, title = csi_panels(CSI_FIGURES[figure], find_comparisons(runs), extractor)
        save_panels(path, title, panels, "CSI (lower = closer)")
    elif figure in ("1", "4"):
        panels = error_panels(figure, runs, weights)
        partial = any(label.endswith(PARTIAL) for panel in panels.values() for label in panel)
        title = f"Figure {figure}: test error of {weights}"
        title += f" ({PARTIAL.strip()} see the notes of experiments.tables --table 1)" if partial else ""
        save_panels(path, title, panels, None)
    elif figure == "9":
        save_panels(path, "Figure 9: classes among 10,000 structures", coverage_panels(runs), "classes")
    else:
        raise InputError(f"no figure {figure!r}; known are {', '.join(FIGURES)}")
    return path


# A panel: {label of a bar: its value, or None where it is missing}.
Panels = dict[str, dict[str, Bar | None]]


def csi_panels(figure: CsiFigure, comparisons: list[Comparison], extractor: str = "auto") -> tuple[Panels, str]:
    """(one panel per task, title with the networks used)."""
    own = [c for c in comparisons if figure.takes(c, extractor)]
    found = bars(own)
    tasks = [*figure.tasks, *(t for t in found if figure.other_tasks and t not in MOLECULAR + MATERIALS)]
    order = list(UPSTREAM.values())
    order += [u for u in dict.fromkeys(u for t in tasks for u in found.get(t, {})) if u not in order]
    panels: Panels = {task: _csi_panel(found.get(task, {}), order) for task in tasks}
    networks = sorted({c.extractor.partition(":")[0] for c in own})
    return panels, f"{figure.title} ({', '.join(networks) or _why_none(figure, comparisons)})"


def _csi_panel(found: Mapping[str, Mapping[str, Bar]], order: list[str]) -> dict[str, Bar | None]:
    """The bars of a task, sets in `order`; a set has several where its scores are not repetitions of each other."""
    missing: dict[str, Bar | None] = {"": None}
    return {u + apart: bar for u in order for apart, bar in sorted((found.get(u) or missing).items())}


def _why_none(figure: CsiFigure, comparisons: list[Comparison]) -> str:
    near = {c.extractor.partition(":")[0] for c in comparisons if figure.takes(c, "any")}
    return f"none with {figure.extractor}; --extractor {sorted(near)[0]} would show what there is" if near else "none"


def error_panels(figure: str, runs: Path, weights: str) -> Panels:
    """Per task, the paper's bars beside ours."""
    entries = published(f"fig{figure}")
    cells, _ = make_cells(find_results(runs).results, weights)
    panels: Panels = {}
    for column in columns_of(entries):
        panel = panels[f"{column.dataset} ({column.unit})"] = {}
        for row in rows_of(entries):
            label = f"{row.upstream}, {short_count(row.budget)}" + (" JMP" if "JMP" in row.backbone else "")
            value = next((e.value for e in entries if (e.row, e.column) == (row, column)), None)
            panel[f"{label} (paper)"] = None if value is None else Bar(value, value, value)
            cell = cells.get((our_row(row), column))
            mark = PARTIAL if cell is not None and cell.notes else ""
            panel[label + mark] = None if cell is None else Bar(cell.mean, cell.mean - cell.std, cell.mean + cell.std)
    return panels


def our_row(row: RowKey) -> RowKey:
    """The row under which our own runs are filed: 'ANI-1x (2M)' alone is ANI-1x, JMP-S is our fine-tuning of it."""
    upstream = row.upstream if " + " in row.upstream else row.upstream.partition(" (2M)")[0]
    return row._replace(upstream=upstream, backbone=row.backbone.replace("JMP-S (", "JMP-S* ("))


def coverage_panels(runs: Path) -> Panels:
    """Per upstream set, classes reached by each sampling; the paper's and those of stored features."""
    counts = class_counts(runs)
    panels: Panels = {}
    for name in UPSTREAM.values():
        panel: dict[str, Bar | None] = {}
        for entry in published("fig9"):
            how = entry.note.partition(";")[0].removesuffix(" sampling").removeprefix("class-")
            if entry.row.upstream == name:
                panel[f"{how} (paper)"] = Bar(*[entry.value] * 3)
                if entry.row.n is not None:
                    panel[how] = _coverage(counts, name, how, entry.row.n)
        panels[name] = panel
    return panels


def _coverage(counts: Mapping, name: str, how: str, n: int) -> Bar | None:
    classes, structures = counts.get((name, how), (0, 0))
    return Bar(*[float(classes)] * 3) if structures == n else None


# --- drawing ------------------------------------------------------------------------------------------


def save_panels(path: Path, title: str, panels: Panels, ylabel: str | None):
    """A row of bar charts."""
    with drawing(path, len(panels), panel=(3.4, 3.4), columns=4, dpi=150) as (figure, axes):
        for axis, (name, panel) in zip(axes, panels.items(), strict=True):
            _draw_panel(axis, name, panel)
            axis.set_ylabel(ylabel or "MAE", fontsize=8)
            spread_bars(axis, [bar.value for bar in panel.values() if bar is not None])
        figure.suptitle(title, fontsize=10)


def _draw_panel(axis, name: str, panel: Mapping[str, Bar | None]):
    colors = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(_plain(label) for label in panel))}
    for i, (label, bar) in enumerate(panel.items()):
        if bar is None:
            axis.text(i, 0.02, "missing", rotation=90, ha="center", va="bottom", fontsize=7, color="gray",
                      transform=axis.get_xaxis_transform())
            continue
        ends = np.maximum([[bar.value - bar.low], [bar.high - bar.value]], 0)
        hatch = "//" if label.endswith("(paper)") else None
        axis.bar(i, bar.value, yerr=ends if ends.any() else None, capsize=3, color=colors[_plain(label)],
                 hatch=hatch, alpha=0.5 if hatch else 1.0)
    axis.set_xticks(range(len(panel)), panel, rotation=40, ha="right", fontsize=7)
    axis.set_xlim(-0.6, len(panel) - 0.4)
    axis.set_title(name, fontsize=9)


def _plain(label: str) -> str:
    return label.removesuffix(" (paper)")

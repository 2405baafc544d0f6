"""csi.json files below a folder -> scores per upstream set and task, by how they were made."""

import dataclasses
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.paper.names import DOWNSTREAM, base_name, upstream_label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One csi.json."""

    path: Path
    aggregation: str
    sampling: str
    extractor: str  # "gemnet_oc:<hash of its weights>", or "unknown"
    rows: list[dict]


class Bar(NamedTuple):
    """A score and the ends of its interval: over seeds where there are several, else the resampled one."""

    value: float
    low: float
    high: float


def find_comparisons(root: Path) -> list[Comparison]:
    """Every csi.json below `root`; files that are none are passed over."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in ("checkpoints", "tensorboard", "data"))
        if "csi.json" in files:
            found.append(_comparison(Path(folder) / "csi.json"))
    return [c for c in found if c is not None]


def _comparison(path: Path) -> Comparison | None:
    try:
        record = json.loads(path.read_text())
        config = record["config"]
        return Comparison(
            path=path,
            aggregation=config["aggregation"],
            sampling=config["sampling"],
            extractor=record.get("extractor") or _extractor(path.parent / "features"),
            rows=record["rows"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _extractor(folder: Path) -> str:
    """The network named in the first feature file."""
    for path in sorted(folder.glob("*.npz")):
        info = feature_info(path)
        if info.get("extractor"):
            return str(info["extractor"])
    return "unknown"


def feature_info(path: Path) -> dict:
    """How a feature file was made; {} where it does not say."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive["info"]))
    except (OSError, ValueError, KeyError):
        return {}


def bars(comparisons: list[Comparison]) -> dict[str, dict[str, Bar]]:
    """{task: {upstream set: score}} under the paper's names."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for comparison in comparisons:
        for row in comparison.rows:
            groups[task_label(row["Downstream"]), upstream_label(row["Upstream"])].append(row)
    out: dict[str, dict[str, Bar]] = defaultdict(dict)
    for (task, upstream), rows in groups.items():
        out[task][upstream] = _bar(rows)
    return dict(out)


def _bar(rows: list[dict]) -> Bar:
    scores = np.array([row["CSI Score"] for row in rows])
    if len(rows) == 1:
        return Bar(float(scores[0]), rows[0]["low"], rows[0]["high"])
    mean, std = float(scores.mean()), float(scores.std())
    return Bar(mean, mean - std, mean + std)


def task_label(downstream: str) -> str:
    """The paper's name of a task, without target or fold: QM9, MatBench phonons."""
    name = base_name(downstream)
    return DOWNSTREAM.get(name, (name, ""))[0].partition(" fold")[0]


def class_counts(root: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """{(upstream set, sampling): (classes, structures)} of feature files that keep their rows."""
    out = {}
    for path in sorted(root.rglob("*.npz")):
        info = feature_info(path)
        if "sampling" in info:
            count = _classes(path)
            if count:
                out[upstream_label(str(info["dataset"])), str(info["sampling"])] = count, int(info["n_structure"])
    return out


def _classes(path: Path) -> int:
    with np.load(path, allow_pickle=False) as archive:
        return len(np.unique(archive["class"])) if "class" in archive else 0

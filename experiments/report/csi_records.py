"""csi.json files below a folder -> scores per upstream set and task, by how they were made."""

import dataclasses
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.paper.names import DOWNSTREAM, base_name, upstream_label
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.csi.features import feature_info
from jaxatoms.io import open_npz


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One csi.json."""

    path: Path
    aggregation: str
    sampling: str
    extractor: str  # "gemnet_oc:<hash of its weights>", or "unknown"
    distance: str  # "frechet", the index, in files of before there were others
    config: dict
    data: dict[str, str]  # fingerprints of the sets by name, where rows of an older file do not hold them
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
            distance=record.get("distance", FRECHET.name),
            config=config,
            data=_fingerprints(path.parent / "features"),
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


def _fingerprints(folder: Path) -> dict[str, str]:
    """{name without path: fingerprint} of the feature files beside a comparison."""
    infos = [feature_info(path) for path in sorted(folder.glob("*.npz"))]
    return {base_name(str(i["dataset"])): str(i["fingerprint"]) for i in infos if "dataset" in i and "fingerprint" in i}


# How a score was made, beside its pair of sets: scores that differ in any of it are not repetitions of each other.
_SETTINGS = ("n", "downstream_sampling", "edge_dropout", "repeat", "estimate", "raw_weights")
Bars = dict[str, dict[str, dict[str, Bar]]]


def bars(comparisons: list[Comparison]) -> Bars:
    """{task: {upstream set: {what tells its bars apart: score}}} under the paper's names.

    Scores enter one bar where they differ in the seed alone: one extractor, one n, the same data. What tells bars of a
    task apart is empty where its scores agree in everything else, and begins with a comma otherwise.
    """
    tasks: dict[str, list[tuple[str, dict, dict, object]]] = defaultdict(list)
    for comparison in comparisons:
        for row in comparison.rows:
            task, upstream = task_label(row["Downstream"]), upstream_label(row["Upstream"])
            tasks[task].append((upstream, _made(comparison, row), row, comparison.config.get("seed")))
    return {task: _bars_of_task(found) for task, found in tasks.items()}


def _made(comparison: Comparison, row: dict) -> dict:
    """How a score was made; data without a known fingerprint equal none but those of their own file."""
    made = {"extractor": comparison.extractor} | {k: comparison.config.get(k) for k in _SETTINGS}
    for role, name in (("upstream", row["Upstream"]), ("downstream", row["Downstream"])):
        fingerprint = row.get(f"{role} fingerprint") or comparison.data.get(base_name(name))
        made |= {role: fingerprint or f"of {comparison.path.parent.name}", f"{role} n": row.get(f"{role} structures")}
    return made


def _bars_of_task(found: list[tuple[str, dict, dict, object]]) -> dict[str, dict[str, Bar]]:
    """Bars by upstream set; what differs within the task (of a set's own data: within the set) is in their names."""
    groups: dict[str, dict[str, dict[object, dict]]] = defaultdict(lambda: defaultdict(dict))
    for upstream, made, row, seed in found:
        of_set, of_task = [m for u, m, *_ in found if u == upstream], [m for _, m, *_ in found]
        differs = [k for k in made if len({m[k] for m in (of_set if k.startswith("upstream") else of_task)}) > 1]
        groups[upstream]["".join(f", {_words(k, made[k])}" for k in differs)][seed] = row  # a seed counts once
    return {u: {name: _bar(list(rows.values())) for name, rows in own.items()} for u, own in groups.items()}


def _words(what: str, value: object) -> str:
    """ "n 400", "gemnet_oc:1f00ab", "upstream 4c11de": one difference, short."""
    if what == "extractor":
        kind, _, digest = str(value).rpartition(":")
        return f"{kind}:{digest[:6]}"
    return f"{what} {str(value)[:6] if what in ('upstream', 'downstream') and 'of ' not in str(value) else value}"


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
    with open_npz(path, "is not a readable features file", "remove it and extract it again") as archive:
        return len(np.unique(archive["class"])) if "class" in archive else 0

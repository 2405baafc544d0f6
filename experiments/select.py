"""Choose the structures of an upstream set that, together, lie closest to a task.

    python -m experiments.select --upstream ani1x --downstream rmd17:aspirin --n 1000 --checkpoint runs/mixed \\
        --out subset.npz
    python -m experiments.pretrain --upstream ani1x --subset subset.npz --epochs 5

Minimises the Frechet distance in the leading directions, and prints it beside random and class-balanced subsets of
the same size, for the full features too.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments import cli
from experiments.extraction import Extracted, Request, extract_for
from experiments.extractors import load_extractor
from experiments.runtime import prepare_process
from jaxatoms.csi.features import FeatureSet
from jaxatoms.csi.moments import Moments, moments_of_rows
from jaxatoms.csi.sampling import sample
from jaxatoms.csi.score import csi_matrix
from jaxatoms.csi.selection import prepare_candidates, select_structures
from jaxatoms.data.subset import parse_count
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """What to choose from, for which task."""

    upstream: str
    """Data set whose train split is chosen from."""
    downstream: str
    """The task."""
    checkpoint: str
    """The network whose node features are compared: RUN (its best-validation checkpoint), RUN@last or a step folder."""
    n: str
    """Structures to choose."""
    candidates: str = "100000"
    """Random candidates, at most; `all` takes the whole train split."""
    task_n: str = "10000"
    """Structures of the task, at most."""
    directions: int = 32
    """Leading directions in which the distance is minimised."""
    steps: int = 100
    """Frank-Wolfe steps."""
    seed: int = 0
    out: str = "subset.npz"
    batch_edges: int = 4096
    data_root: str | None = None
    cache_dir: str | None = None
    quiet: bool = False


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.select`."""
    config = cli.parse(SelectConfig, argv, description=__doc__, prog="python -m experiments.select")
    prepare_process()
    n = parse_count(config.n)
    if n == "all":
        raise InputError("--n all selects nothing; give a number")
    upstream, downstream = _extract(config)
    rows, classes = upstream.features, upstream.features.class_of_structure()
    task = _moments(downstream.features)
    candidates = prepare_candidates(rows.features, rows.structure, _moments(rows), task, config.directions)
    chosen = select_structures(candidates, n, config.steps, config.seed)
    random = candidates.ids[sample("random", classes, n, config.seed)]
    balanced = candidates.ids[np.unique(sample("balanced", classes, n, config.seed))]
    report = {
        "selected": full_distance(rows, chosen.structure, task),
        "random": full_distance(rows, random, task),
        "balanced": full_distance(rows, balanced, task),
        "all candidates": full_distance(rows, candidates.ids, task),
    }
    save_subset(Path(config.out), chosen.structure, upstream, config, report)
    print(f"CSI of {n:,} of {len(candidates.ids):,} candidates of {config.upstream} to {config.downstream}:")
    for label, value in report.items():
        print(f"  {label:16s}{value:10.4g}")
    print(f"-> {config.out}; train on it with: experiments.pretrain --upstream {config.upstream} --subset {config.out}")
    return 0


def _extract(config: SelectConfig) -> tuple[Extracted, Extracted]:
    extractor = load_extractor(config.checkpoint)
    return tuple(
        extract_for(config, Request(dataset=name, n=n, seed=config.seed, clamp=True), extractor, keep=True)
        for name, n in ((config.upstream, config.candidates), (config.downstream, config.task_n))
    )


def _moments(data: FeatureSet) -> Moments:
    return moments_of_rows(data.features)


def full_distance(data: FeatureSet, structures: np.ndarray, task: Moments) -> float:
    """CSI, all directions, of the rows of some structures."""
    return float(csi_matrix([moments_of_rows(data.features[np.isin(data.structure, structures)])], [task])[0, 0])


def save_subset(path: Path, records: np.ndarray, upstream: Extracted, config: SelectConfig, report: dict):
    """`records` of the data set, with its fingerprint and how they were chosen; whole or not at all."""
    info = {"config": dataclasses.asdict(config), "csi": report, "extractor": upstream.info["extractor"]}
    draft = path.with_name(f".{path.stem}.tmp.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"records": np.sort(records), "fingerprint": np.array(upstream.info["fingerprint"])}
        np.savez(draft, **arrays, info=np.array(json.dumps(info)))
        draft.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None


if __name__ == "__main__":
    raise SystemExit(main())

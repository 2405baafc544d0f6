"""Choose structures of an upstream set to pretrain on: closest to a task, or by how hard a network finds them.

    python -m experiments.select --upstream ani1x --downstream rmd17:aspirin --n 1000 --checkpoint runs/mixed \\
        --out subset.npz
    python -m experiments.extract --losses --dataset ani1x --checkpoint runs/mixed --n all --out losses.npz
    python -m experiments.select --upstream ani1x --method difficulty --losses losses.npz --difficulty high --n 1000
    python -m experiments.pretrain --upstream ani1x --subset subset.npz --epochs 5

--method csi minimises the Frechet distance in the leading directions, and prints it beside random and class-balanced
subsets of the same size, for the full features too.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from jaxatoms.csi.features import FeatureSet
from jaxatoms.csi.moments import Moments, moments_of_rows
from jaxatoms.csi.sampling import DIFFICULTIES, sample, sample_difficulty
from jaxatoms.csi.score import csi_matrix
from jaxatoms.csi.selection import prepare_candidates, select_structures
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.subset import parse_count
from jaxatoms.features.difficulty import load_losses
from jaxatoms.features.extraction import Extracted, Request, Sample, extract_for, sample_for
from jaxatoms.features.extractors import load_extractor
from jaxatoms.io import save_npz
from jaxatoms.tools import cli
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.types import InputError

N_DIRECTIONS, N_STEPS, N_CANDIDATES = 32, 100, "100000"  # defaults of options


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """What to choose from, and by what."""

    upstream: str
    """Structures are chosen from the train split of this data set."""
    n: str
    """This many structures are chosen."""
    method: str = "csi"
    """csi chooses those closest to a task, and difficulty chooses by the losses of a network."""
    downstream: str | None = None
    """csi: this names the task."""
    checkpoint: str | None = None
    """csi: node features of this network are compared: RUN (its best-validation checkpoint), RUN@last or a step
    folder."""
    candidates: str | None = None
    """csi: at most this many random candidates are considered (100000 by default); `all` takes the whole train
    split."""
    task_n: str | None = None
    """csi: at most this many structures of the task are used; the default is 10000."""
    directions: int | None = None
    """csi: the distance is minimised in this many leading directions; the default is 32, or all where there are
    fewer."""
    steps: int | None = None
    """csi: the Frank-Wolfe method makes this many steps; the default is 100."""
    batch_edges: int | None = None
    """csi: a batch has this many edge slots; the default is 4096."""
    losses: str | None = None
    """difficulty: losses are read from this file of experiments.extract --losses."""
    difficulty: str | None = None
    """difficulty: low takes the smallest losses, high the largest, mid draws from the middle third, and mixed takes a
    third of each."""
    seed: int = 0
    """The seed determines which candidates, structures of the task and random choices are drawn."""
    out: str = "subset.npz"
    """The chosen records are written into this .npz file, which experiments.pretrain --subset reads."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    quiet: bool = False
    """Do not print the progress of the extraction."""

    def __post_init__(self):
        cli.check_suffix(self, "out", ".npz")
        cli.check_choices(self, {"method": tuple(_OPTIONS)})
        cli.check_positive(self, "directions", "steps", "batch_edges")
        if parse_count(self.n) == "all":
            raise InputError("--n all selects nothing; give a number")
        for method, options in _OPTIONS.items():
            if method != self.method:
                cli.refuse_unused(self, options, f"with --method {self.method}")
        missing = [name for name in _OPTIONS[self.method][:2] if getattr(self, name) is None]
        if missing:
            raise InputError(f"--method {self.method} needs {cli.option_of(missing[0])}")
        if self.difficulty is not None:
            cli.check_choices(self, {"difficulty": DIFFICULTIES})


# Options that belong to a method; it needs the first two.
_OPTIONS = {
    "csi": ("downstream", "checkpoint", "candidates", "task_n", "directions", "steps", "batch_edges"),
    "difficulty": ("losses", "difficulty"),
}


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.select`."""
    config = cli.parse(SelectConfig, argv, description=__doc__, prog="python -m experiments.select")
    prepare_process()
    cli.resolve_run_dir(Path(config.out).parent, "--out")  # before hours of work that could not be kept
    by_distance(config) if config.method == "csi" else by_difficulty(config)
    print(f"-> {config.out}; train on it with: experiments.pretrain --upstream {config.upstream} --subset {config.out}")
    return 0


def by_distance(config: SelectConfig) -> None:
    """The structures that, together, lie closest to the task."""
    n = int(parse_count(config.n))
    upstream, downstream = _extract(config)
    rows, task_rows = upstream.features, downstream.features
    assert rows is not None and task_rows is not None  # they were kept
    classes = rows.class_of_structure()
    task = _moments(task_rows)
    directions = config.directions or min(N_DIRECTIONS, rows.features.shape[1])
    candidates = prepare_candidates(rows.features, rows.structure, _moments(rows), task, directions)
    chosen = select_structures(candidates, n, config.steps or N_STEPS, config.seed)
    random, balanced = (candidates.ids[sample(how, classes, n, config.seed)] for how in ("random", "balanced_no_rep"))
    report = {
        "selected": full_distance(rows, chosen.structure, task),
        "random": full_distance(rows, random, task),
        "balanced": full_distance(rows, balanced, task),
        "all candidates": full_distance(rows, candidates.ids, task),
    }
    more = {"csi": report, "extractor": upstream.info["extractor"]}
    save_subset(Path(config.out), chosen.structure, upstream.info["fingerprint"], config, more)
    print(f"CSI of {n:,} of {len(candidates.ids):,} candidates of {config.upstream} to {config.downstream}:")
    for label, value in report.items():
        print(f"  {label:16s}{value:10.4g}")


def by_difficulty(config: SelectConfig) -> None:
    """The structures whose losses a network finds low, high, in the middle, or some of each."""
    n, kind = int(parse_count(config.n)), str(config.difficulty)
    _, store = open_upstream(config.upstream, config.data_root, config.cache_dir, must_validate=False)
    records, losses, info = load_losses(Path(str(config.losses)), store)
    known = np.isfinite(losses)
    records, losses = records[known], losses[known]
    chosen = sample_difficulty(losses, n, kind, config.seed)
    more = {"losses": info, "mean loss": float(losses[chosen].mean()), "n_unlabelled": int((~known).sum())}
    save_subset(Path(config.out), records[chosen], store.fingerprint, config, more)
    without = f" ({(~known).sum():,} more lack a label)" if not known.all() else ""
    print(f"{n:,} of {len(losses):,} structures of {config.upstream} of {kind} difficulty{without}:")
    print(f"  mean loss {losses[chosen].mean():.4g}, of all {losses.mean():.4g}")


def _extract(config: SelectConfig) -> tuple[Extracted, Extracted]:
    """Features of the candidates and of the task; what cannot be done with them is refused before the work.

    Raises:
      InputError: more directions than features, more structures than candidates, or as `sample_for` and `extract_for`.
    """
    extractor = load_extractor(str(config.checkpoint))
    if config.directions is not None and config.directions > extractor.width:
        raise InputError(f"--directions {config.directions}: {config.checkpoint} has {extractor.width} features; "
                         "choose at most that many")  # fmt: skip
    sets = ((config.upstream, config.candidates or N_CANDIDATES), (str(config.downstream), config.task_n or "10000"))
    requests = (Request(dataset=name, n=n, seed=config.seed, clamp=True) for name, n in sets)
    samples = [sample_for(config, request, extractor) for request in requests]  # both, before either is extracted
    check_candidates(config, samples[0])
    upstream, downstream = (extract_for(config, sample, extractor, keep=True) for sample in samples)
    return upstream, downstream


def check_candidates(config: SelectConfig, sample: Sample) -> None:
    """Refuse to choose more structures than there are candidates.

    Raises:
      InputError: naming both numbers, and the option that adds candidates where the train split has more.
    """
    n_candidate = len(sample.records)
    if int(parse_count(config.n)) > n_candidate:
        asked = parse_count(config.candidates or N_CANDIDATES)
        more = asked != "all" and int(asked) < sample.info["n_available"]
        remedy = "raise --candidates, or lower --n" if more else "its train split has no more, so lower --n"
        raise InputError(f"--n {config.n}: there are {n_candidate} candidates of {config.upstream}; {remedy}")


def _moments(data: FeatureSet) -> Moments:
    return moments_of_rows(data.features)


def full_distance(data: FeatureSet, structures: np.ndarray, task: Moments) -> float:
    """CSI, all directions, of the rows of some structures."""
    return float(csi_matrix([moments_of_rows(data.features[np.isin(data.structure, structures)])], [task])[0, 0])


def save_subset(path: Path, records: np.ndarray, fingerprint: str, config: SelectConfig, more: dict):
    """`records` of the data set, with its fingerprint and how they were chosen; whole or not at all."""
    info = {"config": dataclasses.asdict(config)} | more
    arrays = {"records": np.sort(records), "fingerprint": np.array(fingerprint), "info": np.array(json.dumps(info))}
    save_npz(path, arrays)


if __name__ == "__main__":
    raise SystemExit(main())

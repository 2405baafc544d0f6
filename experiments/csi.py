"""Which upstream data set is closest to my task? Chemical Similarity Index of every pair; lower is better aligned.

    python -m experiments.csi --upstream ani1x oc20 --downstream rmd17:aspirin qmof --checkpoint runs/mixed

Any entry may be a file of features (experiments.extract, or `features [rows, d]`, `structure [rows]` of any model).
"""

import dataclasses
import hashlib
from pathlib import Path

from experiments.report import csi_report
from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.csi.distances.registry import find_distance
from jaxatoms.csi.names import short_names
from jaxatoms.data.subset import parse_count
from jaxatoms.features.extraction import (
    BATCH_EDGES,
    N_STRUCTURES,
    Extracted,
    Request,
    extract_for,
    load_extracted,
    reusable,
    sample_for,
)
from jaxatoms.features.extractors import Extractor, load_extractor
from jaxatoms.features.scores import rank, score_pairs
from jaxatoms.io import write_json
from jaxatoms.tools import cli, lock
from jaxatoms.tools.provenance import provenance
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsiConfig:
    """Settings of a comparison; the defaults are the paper's."""

    upstream: tuple[str, ...]
    """These are the candidate data sets to pretrain on, or .npz files of features."""
    downstream: tuple[str, ...]
    """These are the tasks, or .npz files of features."""
    checkpoint: str | None = None
    """Node features of this network are compared: RUN (its best-validation checkpoint), RUN@last, a step folder or a
    PyTorch file. It is not needed for files of features."""
    features: tuple[str, ...] = ()
    """These .npz files may be named by their stem in --upstream and --downstream."""
    n: str | None = None
    """This many structures of each data set are compared (10000 by default); a set of at most that many is taken whole,
    each structure once."""
    sampling: str | None = None
    """Upstream data sets are sampled by this strategy: balanced (the default), balanced_no_rep, random, stratified or
    uniform."""
    downstream_sampling: str | None = None
    """Downstream data sets are sampled by this strategy; the default is random."""
    repeat: bool = False
    """Draw --n structures from a smaller upstream set too, some of them several times, as the reference's balanced
    sampler does."""
    aggregation: str | None = None
    """Features are kept per atom (flat: the method), or reduced over the atoms of a structure (mean, sum or max); the
    default is flat, or what files of moments hold."""
    seed: int | None = None
    """The seed determines which structures are drawn, their blocks and the resamples; the default is 0. Files keep
    their draw, and without rows their blocks."""
    edge_dropout: float = 0.0
    """Each directed edge of the upstream graphs is dropped with this probability; 0.1 reproduces the reference."""
    blocks: int | None = None
    """Structures are divided at random into this many blocks, which are resampled for the intervals; the default is 32,
    and fewer in smaller sets."""
    resamples: int = 200
    """Intervals are computed from this many resamples."""
    level: float = 0.95
    """Intervals cover the value with this probability."""
    distance: str = FRECHET.name
    """Two sets of features are compared by this distance: frechet (the index), its parts mean and covariance,
    mmd_linear, mmd or energy; docs/csi.md says what each needs and costs."""
    estimate: str | None = None
    """This value is printed and ranked by: corrected (less its excess for the sample's size; the default where the
    distance has one), plain (the published procedure) or extrapolated (a fit to infinite samples, for small ones)."""
    raw_weights: bool = False
    """Use the raw weights of the network and not their moving average."""
    batch_edges: int | None = None
    """A batch has this many edge slots; the default is 4096."""
    out: str = "runs/csi"
    """csi.csv, csi.json, csi.png and the extracted features are written into this folder; features are used again where
    nothing changed."""
    store: bool = False
    """Keep every feature row, not only moments; a distance that needs rows does so anyway."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    quiet: bool = False
    """Do not print the progress of the extraction."""

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise InputError(f"--level must lie between 0 and 1, got {self.level}")
        for name in ("blocks", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 4:
                raise InputError(f"--{name} must be at least 4, got {value}")
        distance = find_distance(self.distance)
        if self.estimate is not None:
            cli.check_choices(self, {"estimate": tuple(csi_report.COLUMNS)})
            if self.estimate not in distance.estimates:
                raise InputError(f"--estimate {self.estimate} has no effect with --distance {self.distance}, which "
                                 f"knows {' and '.join(distance.estimates)} alone; leave it out")  # fmt: skip
        if self.takes_all:
            cli.refuse_unused(self, ("sampling", "downstream_sampling", "repeat"), "where --n is all")

    @property
    def takes_all(self) -> bool:
        """Whether no data set is sampled."""
        return self.n is not None and parse_count(self.n) == "all"

    @property
    def estimate_used(self) -> str:
        """--estimate, or the distance's own."""
        return self.estimate or find_distance(self.distance).default_estimate

    @property
    def keeps_rows(self) -> bool:
        """Whether feature rows are kept, and not only their moments."""
        return self.store or find_distance(self.distance).needs == "rows"


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.csi`."""
    config = cli.parse(CsiConfig, argv, description=__doc__, prog="python -m experiments.csi")
    prepare_process()
    out = cli.resolve_run_dir(config.out, "--out")
    with lock.hold(out):
        return run(config, out)


def run(config: CsiConfig, out: Path) -> int:
    """Extract, score, rank, write."""
    upstream, downstream = gather(config, out)
    sets = [*upstream.values(), *downstream.values()]
    check_alike(sets)
    distance, estimate = find_distance(config.distance), config.estimate_used
    rows = score_pairs(upstream, downstream, distance, estimate, config)
    ranking = rank(rows, distance, estimate)
    csi_report.write_csv(out / "csi.csv", rows)
    record = {
        "rows": rows,
        "ranking": ranking,
        "distance": distance.name,
        "estimate": estimate,
        "extractor": sets[0].info["extractor"],
        "config": dataclasses.asdict(config) | used(config, upstream, sets[0].info["aggregation"]),
        "sets": {role: {label: data.info for label, data in side.items()}
                 for role, side in (("upstream", upstream), ("downstream", downstream))},
        "provenance": provenance(),
    }  # fmt: skip
    write_json(out / "csi.json", record)
    csi_report.plot(out / "csi.png", rows, distance, estimate)
    if not config.quiet:
        csi_report.print_ranking(rows, ranking, distance, estimate, config.level)
    print(f"-> {out}/csi.csv, csi.json, csi.png")
    return 0


def used(config: CsiConfig, upstream: dict[str, Extracted], aggregation: str) -> dict:
    """What options without a fixed default came to; None where nothing used them."""
    files = _files(config)
    up, down = (any(name not in files for name in names) for names in (config.upstream, config.downstream))
    sampled = {e.info["sampling"] for e in upstream.values()} - {"all", "given"}
    sampled |= {config.sampling or "balanced"} if up and not config.takes_all else set()
    return {
        "aggregation": aggregation,
        "sampling": "mixed" if len(sampled) > 1 else next(iter(sampled), None),
        "downstream_sampling": config.downstream_sampling or "random" if down and not config.takes_all else None,
        "n": config.n or N_STRUCTURES if up or down else None,
        "batch_edges": config.batch_edges or BATCH_EDGES if up or down else None,
        "seed": config.seed or 0,
        "estimate": config.estimate_used,
    }


def gather(config: CsiConfig, out: Path) -> tuple[dict[str, Extracted], dict[str, Extracted]]:
    """Features of every upstream and downstream set, extracted or read.

    Raises:
      InputError: a set named twice, an option that has no effect on these sets, or whatever reading them raises.
    """
    files = _files(config)
    check_options(config, files)
    read = {name: load_extracted(path, config.aggregation, config.blocks, config.seed) for name, path in files.items()}
    check_holds_rows(find_distance(config.distance), {files[name]: data for name, data in read.items()})
    extractor = None if _extracts(config, files) == [] else load_extractor(str(config.checkpoint), config.raw_weights)
    sides: list[dict[str, Extracted]] = []
    for role, names in (("upstream", config.upstream), ("downstream", config.downstream)):
        side: dict[str, Extracted] = {}
        short = short_names(names)
        for name in names:
            label = files[name].stem if name in files else short[name]
            if label in side:
                raise InputError(f"{label} is named twice in --{role}; name every set once")
            side[label] = read[name] if name in files else _extracted(name, role, config, extractor, out)
        sides.append(side)
    return sides[0], sides[1]


def check_holds_rows(distance: Distance, read: dict[Path, Extracted]) -> None:
    """Refuse files without what a distance needs.

    Raises:
      InputError: naming the first file that holds moments alone where rows are needed.
    """
    for path, data in read.items():
        if distance.needs == "rows" and data.features is None:
            raise InputError(f"{path} holds moments alone, and --distance {distance.name} needs the rows; extract it "
                             "with --store, which keeps them")  # fmt: skip


def _files(config: CsiConfig) -> dict[str, Path]:
    """The sets that are files of features: {name: path}.

    Raises:
      InputError: two of --features have one name, or no set has it.
    """
    by_stem: dict[str, Path] = {}
    for path in map(Path, config.features):
        if path.stem in by_stem:
            raise InputError(f"--features {by_stem[path.stem]} and {path} have one name; rename one")
        by_stem[path.stem] = path
    names = [*config.upstream, *config.downstream]
    for stem, path in by_stem.items():
        if stem not in names:
            raise InputError(f"--features {path} has no effect, for --upstream and --downstream do not name {stem}")
    given = {name: Path(name) for name in names if name.endswith(".npz") and "@" not in name}
    return given | {name: by_stem[name] for name in names if name in by_stem}


def _extracts(config: CsiConfig, files: dict[str, Path]) -> list[str]:
    """The sets that a network has to see."""
    return [name for name in (*config.upstream, *config.downstream) if name not in files]


def check_options(config: CsiConfig, files: dict[str, Path]) -> None:
    """Refuse options that have no effect on these sets.

    Raises:
      InputError: naming the first of them; or a data set without --checkpoint.
    """
    sets = _extracts(config, files)
    if not sets:
        cli.refuse_unused(config, _EXTRACTING, "where every set is a file of features")
    elif config.checkpoint is None:
        raise InputError(f"{sets[0]} needs --checkpoint, the network that extracts its features")
    if not set(config.upstream) & set(sets):
        cli.refuse_unused(config, _UPSTREAM, "where every upstream set is a file of features")
    if not set(config.downstream) & set(sets):
        cli.refuse_unused(config, ("downstream_sampling",), "where every downstream set is a file of features")


_EXTRACTING = ("checkpoint", "raw_weights", "n", "batch_edges", "store", "data_root", "cache_dir")
_UPSTREAM = ("sampling", "repeat", "edge_dropout")


def _extracted(name: str, role: str, config: CsiConfig, extractor: Extractor | None, out: Path) -> Extracted:
    """Extract a set, or reuse what an earlier run made from the same inputs."""
    assert extractor is not None
    up = role == "upstream"
    request = Request(
        dataset=name,
        n=config.n or N_STRUCTURES,
        sampling=(config.sampling or "balanced") if up else config.downstream_sampling or "random",
        seed=config.seed or 0,
        aggregation=config.aggregation or "flat",
        edge_dropout=config.edge_dropout if up else 0.0,
        n_blocks=config.blocks,
        clamp=True,
        repeat=config.repeat and up,
    )
    path = out / "features" / f"{role}-{_file_name(name)}.npz"
    sample = sample_for(config, request, extractor)
    found = reusable(path, sample, config.keeps_rows, config.quiet)
    return extract_for(config, sample, extractor, config.keeps_rows, path) if found is None else found


def _file_name(name: str) -> str:
    """A data set's name as a file name; of two paths that end alike each has its own."""
    base, _, path = name.partition("@")
    tail = f"-{Path(path).stem}-{hashlib.sha256(path.encode()).hexdigest()[:6]}" if path else ""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in base + tail)


def check_alike(sets: list[Extracted]):
    """Refuse a table that mixes networks, widths or aggregations.

    Raises:
      InputError: naming the two sets that differ.
    """
    first = sets[0]
    for other in sets[1:]:
        names = f"{first.info['dataset']} and {other.info['dataset']}"
        widths = first.blocks.mean.shape[-1], other.blocks.mean.shape[-1]
        if widths[0] != widths[1]:
            raise InputError(f"{names} have {widths[0]} and {widths[1]} features; extract both with one network")
        for key in ("extractor", "aggregation"):
            if first.info[key] != other.info[key]:
                raise InputError(f"{names} differ in {key} ({first.info[key]}, {other.info[key]}); extract both alike")


if __name__ == "__main__":
    raise SystemExit(main())

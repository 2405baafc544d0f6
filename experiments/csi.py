"""Which upstream data set is closest to my task? Chemical Similarity Index of every pair; lower is better aligned.

    python -m experiments.csi --upstream ani1x oc20 --downstream rmd17:aspirin qmof --checkpoint runs/mixed

Any entry may be a file of features (experiments.extract, or `features [rows, d]`, `structure [rows]` of any model).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import cli, csi_report, lock
from experiments.extraction import Extracted, Request, extract_for, load_extracted, save_extracted
from experiments.extractors import Extractor, load_extractor
from experiments.provenance import provenance
from experiments.runtime import prepare_process
from jaxatoms.csi.score import csi_terms
from jaxatoms.csi.uncertainty import bootstrap_interval, effective_rank, weighted_merges
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsiConfig:
    """Settings of a comparison; the defaults are the paper's."""

    upstream: tuple[str, ...]
    """Candidate data sets to pretrain on, or .npz files of features."""
    downstream: tuple[str, ...]
    """Tasks, or .npz files of features."""
    checkpoint: str | None = None
    """The network whose node features are compared; not needed for files."""
    features: tuple[str, ...] = ()
    """.npz files that --upstream and --downstream may name by their stem."""
    n: str = "10000"
    """Structures per data set; a smaller set is taken whole (the table says how many)."""
    sampling: str = "balanced"
    """Of the upstream sets: balanced, balanced_no_rep, random, stratified or uniform."""
    downstream_sampling: str = "random"
    aggregation: str = "flat"
    """flat (one row per atom: the method), mean, sum or max over the atoms of a structure."""
    seed: int = 0
    edge_dropout: float = 0.0
    """Of the upstream graphs; 0.1 reproduces the reference."""
    blocks: int = 32
    """Random groups of structures, resampled for the intervals."""
    resamples: int = 200
    level: float = 0.95
    """Coverage of the intervals."""
    raw_weights: bool = False
    batch_edges: int = 4096
    out: str = "runs/csi"
    """Folder for csi.csv, csi.json, csi.png and the extracted features (reused where nothing changed)."""
    store: bool = False
    """Keep every feature row, not only moments."""
    data_root: str | None = None
    cache_dir: str | None = None
    quiet: bool = False

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise InputError(f"--level must lie between 0 and 1, got {self.level}")
        for name in ("blocks", "resamples"):
            if getattr(self, name) < 4:
                raise InputError(f"--{name} must be at least 4, got {getattr(self, name)}")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.csi`."""
    config = cli.parse(CsiConfig, argv, description=__doc__, prog="python -m experiments.csi")
    prepare_process()
    out = cli.resolve_run_dir(config.out)
    with lock.hold(out):
        return run(config, out)


def run(config: CsiConfig, out: Path) -> int:
    """Extract, score, rank, write."""
    upstream, downstream = gather(config, out)
    check_alike([*upstream.values(), *downstream.values()])
    rows = score_pairs(upstream, downstream, config)
    ranking = rank(rows)
    csi_report.write_csv(out / "csi.csv", rows)
    extractor = next(iter(upstream.values())).info["extractor"]
    record = {
        "rows": rows,
        "ranking": ranking,
        "extractor": extractor,
        "config": dataclasses.asdict(config),
        "provenance": provenance(),
    }
    csi_report.write_json(out / "csi.json", record)
    csi_report.plot(out / "csi.png", rows)
    if not config.quiet:
        csi_report.print_ranking(rows, ranking)
    print(f"-> {out}/csi.csv, csi.json, csi.png")
    return 0


def gather(config: CsiConfig, out: Path) -> tuple[dict[str, Extracted], dict[str, Extracted]]:
    """Features of every upstream and downstream set, extracted or read."""
    files = {Path(path).stem: Path(path) for path in config.features}
    extractor: Extractor | None = None
    sides: list[dict[str, Extracted]] = []
    for role, names in (("upstream", config.upstream), ("downstream", config.downstream)):
        side: dict[str, Extracted] = {}
        short = short_names(names)
        for name in names:
            path = files.get(name) or (Path(name) if name.endswith(".npz") and "@" not in name else None)
            if path is None and extractor is None:
                if config.checkpoint is None:
                    raise InputError(f"{name} needs --checkpoint, the network that extracts its features")
                extractor = load_extractor(config.checkpoint, config.raw_weights)
            label = short[name] if path is None else path.stem
            if label in side:
                raise InputError(f"{label} is named twice in --{role}; name every set once")
            side[label] = _extracted(name, role, config, extractor, out) if path is None else load_extracted(path)
        sides.append(side)
    return sides[0], sides[1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> what tables call it: without its path, unless two would then be called the same."""
    short = {n: Path(n[5:]).stem if n.startswith("file:") else n.partition("@")[0] for n in names}
    labels = list(short.values())
    return {n: label if labels.count(label) == 1 else n for n, label in short.items()}


def _extracted(name: str, role: str, config: CsiConfig, extractor: Extractor, out: Path) -> Extracted:
    """Extract a set, or reuse what an earlier run with the same settings left."""
    up = role == "upstream"
    request = Request(
        dataset=name,
        n=config.n,
        sampling=config.sampling if up else config.downstream_sampling,
        seed=config.seed,
        aggregation=config.aggregation,
        edge_dropout=config.edge_dropout if up else 0.0,
        n_blocks=config.blocks,
        clamp=True,
    )
    path = out / "features" / f"{role}-{_file_name(name)}.npz"
    if path.exists():
        found = load_extracted(path)
        wanted = dataclasses.asdict(request) | {"extractor": extractor.identity}
        if all(found.info.get(k) == v for k, v in wanted.items()) and (found.features is not None or not config.store):
            return found
    data = extract_for(config, request, extractor, config.store)
    save_extracted(path, data)
    return data


def _file_name(name: str) -> str:
    """A data set's name as a file name; paths keep their last part."""
    base, _, path = name.partition("@")
    tail = f"-{Path(path).stem}" if path else ""
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


def score_pairs(upstream: dict[str, Extracted], downstream: dict[str, Extracted], config: CsiConfig) -> list[dict]:
    """One record per pair: score, its parts, interval, resampled scores, sizes."""
    up, down = ([_whole(e) for e in side.values()] for side in (upstream, downstream))
    terms = csi_terms(up, down)
    ranks = {name: float(effective_rank(m)) for name, m in zip([*upstream, *downstream], [*up, *down], strict=True)}
    rows = []
    for i, (u, a) in enumerate(upstream.items()):
        for j, (d, b) in enumerate(downstream.items()):
            interval = bootstrap_interval(a.blocks, b.blocks, config.resamples, config.level, config.seed)
            rows.append({
                "Upstream": u,
                "Downstream": d,
                "Sampling": a.info["sampling"],
                "Seed": a.info["seed"],
                "CSI Score": float(terms.mean[i, j] + terms.covariance[i, j]),
                "low": interval.low,
                "high": interval.high,
                "mean part": float(terms.mean[i, j]),
                "covariance part": float(terms.covariance[i, j]),
                "small-sample excess": interval.bias,
                **_sizes("upstream", a, ranks[u]),
                **_sizes("downstream", b, ranks[d]),
                "resampled": (interval.samples - interval.bias).tolist(),
            })
    return rows


def _whole(data: Extracted):
    merged = weighted_merges(data.blocks, np.ones((1, len(data.blocks.count))))
    return type(merged)(*(part[0] for part in merged))


def _sizes(role: str, data: Extracted, rank: float) -> dict:
    return {
        f"{role} structures": data.info["n_structure"],
        f"{role} atoms": data.info["n_atom"],
        f"{role} effective rank": rank,
    }


def rank(rows: list[dict]) -> dict[str, list[dict]]:
    """Per task, upstream sets from best to worst, each with the share of resamples in which it is the best."""
    out = {}
    for task in dict.fromkeys(row["Downstream"] for row in rows):
        own = sorted((r for r in rows if r["Downstream"] == task), key=lambda r: r["CSI Score"])
        winner = np.argmin([r["resampled"] for r in own], axis=0)
        out[task] = [
            {"upstream": r["Upstream"], "csi": r["CSI Score"], "probability_best": float(np.mean(winner == i))}
            for i, r in enumerate(own)
        ]
    return out


if __name__ == "__main__":
    raise SystemExit(main())

"""The data sets by name: list, info, download, prepare, check.

    python -m experiments.data list
    python -m experiments.data download qm9:U_0 --data-root /data
    python -m experiments.data prepare ani1x --data-root /data
    python -m experiments.data info ani1x --data-root /data --out ani1x.png
    python -m experiments.data check oc20@/data/oc20
"""

import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxatoms.data import download, statistics
from jaxatoms.data.convert import available_cores
from jaxatoms.data.downstream import ForceData, ScalarData, downstream
from jaxatoms.data.labels import label_hint, missing_labels
from jaxatoms.data.physics import physics_findings
from jaxatoms.data.references import LinearReference
from jaxatoms.data.registry import DATASETS, DatasetSpec, find_spec
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.tools import cli
from jaxatoms.types import InputError

COMMANDS = ("list", "info", "download", "prepare", "check")
_FEW, _MANY = 100, 1000  # records of a downstream set, groups of an upstream one, that show its constants
DOWNSTREAM = ("rmd17", "md22", "spice", "qm9", "qmof", "matbench")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set, and where it lies."""

    name: str
    """This names the data set, as for --upstream; it may also be the word after the command."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    workers: int = 0
    """This many processes convert; 0 takes one per core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoConfig(DataConfig):
    """Statistics of a data set."""

    out: str | None = None
    """The plots are written into this PNG file; the default is NAME.png in the current folder."""
    all_records: bool = False
    """Look at every record instead of 200,000 at random."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadConfig(DataConfig):
    """Original files of a data set."""

    part: str = ""
    """This selects another part than the paper's: oc20 has 200K, 20M, val_id and mapping; oc22 has mapping; omat24 has
    val."""
    from_file: str | None = None
    """This copy, which is here already, is taken instead of a download."""


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.data`."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        raise InputError(f"unknown command '{command}'; use {', '.join(COMMANDS)}")
    if command == "list":
        print_list()
        return 0
    if rest and not rest[0].startswith("-"):
        rest = ["--name", *rest]
    kind: Any = {"info": InfoConfig, "check": InfoConfig, "download": DownloadConfig}.get(command, DataConfig)
    config = cli.parse(kind, rest, description=__doc__, prog=f"python -m experiments.data {command}")
    run: Any = {"info": info, "download": fetch, "prepare": prepare, "check": check}[command]
    return run(config)


def print_list() -> None:
    """A line per family: names, original size, licence."""
    rows: dict[str, list[DatasetSpec]] = {}
    for spec in DATASETS.values():
        rows.setdefault(spec.family, []).append(spec)
    print(f"{'name':42s} {'download':>10s}  {'licence':32s} targets")
    for family, specs in rows.items():
        variants = [spec.name.partition(":")[2] for spec in specs]
        shown = family if variants == [""] else f"{family}:{{{variants[0]}, ... {len(variants)}}}"
        size, licence = "-", "part of the package" if family == "demo" else "your own"
        if (source := specs[0].remote) is not None:
            size, licence = f"{source.parts[''].size / 1e9:.1f} GB", source.licence
        targets = "one scalar" if specs[0].target else "energy, forces"
        print(f"{shown:42s} {size:>10s}  {licence:32s} {targets}")


def fetch(config: DownloadConfig) -> int:
    """Download and unpack the original files."""
    spec = find_spec(config.name)
    source = spec.remote
    if source is None:
        raise InputError(f"'{spec.name}' is not downloaded; it is part of the package or a file of your own")
    if config.part not in source.parts:
        parts = ", ".join(part for part in source.parts if part) or "none"
        raise InputError(f"'{spec.name}' has no part '{config.part}'; parts are: {parts}")
    root = config.data_root or os.environ.get("JAXATOMS_DATA")
    if not root:
        raise InputError(f"no place to put '{spec.name}'; pass --data-root or set JAXATOMS_DATA")
    folder, file = Path(root).expanduser() / spec.family, source.parts[config.part]
    folder = folder / config.part if spec.family == "omat24" and config.part else folder
    own = Path(config.from_file).expanduser() if config.from_file else None
    path, known = download.fetch(file, folder, own, _Progress(file.name))
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {'hash verified' if known else 'hash recorded on first use'}")
    download.unpack(file, folder)
    if not config.part:
        print(f"licence: {source.licence}; DOI {source.doi or '-'}")
        print(f"next: python -m experiments.data prepare {spec.name} --data-root {root}")
    return 0


class _Progress:
    """A line on a terminal, at most four times a second."""

    def __init__(self, name: str):
        self.name, self.last = name, 0.0

    def __call__(self, done: int, total: int | None) -> None:
        if not sys.stderr.isatty() or (time.monotonic() - self.last < 0.25 and done != total):
            return
        self.last = time.monotonic()
        share = f" of {total / 1e9:.2f} GB, {done / total:.1%}" if total else " GB"
        end = "\n" if done == total else ""
        print(f"\r{self.name}: {done / 1e9:.2f}{share} ", end=end, file=sys.stderr, flush=True)


def prepare(config: DataConfig) -> int:
    """Convert a data set into its store."""
    began = time.perf_counter()
    _, store = _open(config)
    seconds = time.perf_counter() - began
    print(f"{store.path}: {len(store)} structures, {store.manifest['n_node']} atoms, {seconds:.1f} s")
    return 0


def _open(config: DataConfig) -> tuple[DatasetSpec, Store]:
    def notify(done: int, total: int) -> None:
        end = "\n" if done == total else "\r"
        print(f"converted {done} of {total} pieces", end=end, file=sys.stderr, flush=True)

    return open_dataset(config.name, config.data_root, config.cache_dir, config.workers or available_cores(), notify)


@dataclasses.dataclass
class Report:
    """A data set with what was measured and what is published of it."""

    spec: DatasetSpec
    store: Store
    facts: ForceData | ScalarData | None
    found: statistics.Statistics
    findings: list[statistics.Finding]


def report(config: InfoConfig) -> Report:
    """Open, measure and compare a data set."""
    spec, store = _open(config)
    facts = downstream(spec.name) if spec.family in DOWNSTREAM else None
    target = _target(store, facts)
    reference = None if isinstance(facts, ScalarData) else _reference(store)
    found = statistics.describe(store, reference, target, None if config.all_records else statistics.SAMPLE)
    needs_forces = target is None and spec.family not in ("file", "demo")
    checks = statistics.findings(found, needs_forces, spec.family in ("oc20", "oc22"))
    # Fewer groups do not have the spread of the whole set: an excerpt's energies depend on which molecules it holds.
    enough = (store.manifest["n_group"] or len(store)) >= _MANY
    checks += _unlabelled(store, target is None) + physics_findings(store)
    return Report(spec, store, facts, found, checks + _compared(spec, facts, found, enough))


def _unlabelled(store: Store, is_needed: bool) -> list[statistics.Finding]:
    """A label that no record has, with the keys that look like it."""
    missing, hint = missing_labels(store), label_hint(store)
    if not is_needed or not missing or (len(missing) == 1 and not hint):
        return []
    text = f"no record has {' or '.join(missing)}"
    scalars = [name for name in store.extra_columns if name.startswith("target_")]
    more = hint or (f"scalars are {', '.join(scalars)}" if scalars else "")
    return [statistics.Finding("warning", "labels", f"{text}; {more}" if more else text)]


def _reference(store: Store) -> LinearReference | None:
    """Fitted on all records (of many, on a sample): an excerpt's train split would leave elements undetermined."""
    if np.isnan(store.energy).all():
        return None
    n = len(store)
    few = np.random.RandomState(0).choice(n, min(n, statistics.SAMPLE), replace=False)
    with warnings.catch_warnings():
        # One molecule's composition fixes no reference energies; the residuals shown are right all the same.
        warnings.simplefilter("ignore")
        reference = LinearReference.fit(store, np.sort(few))
    numbers = [int(z) for z in store.manifest["elements"]]
    return reference if reference.seen[numbers].all() else LinearReference.fit(store, np.arange(n))


def _target(store: Store, facts) -> np.ndarray | None:
    """[n] the scalar target after its atom references."""
    if not isinstance(facts, ScalarData):
        return None
    values = np.array(store.column(facts.column))
    for first in range(0, len(store) if facts.references else 0, 8192):
        chunk = np.arange(first, min(first + 8192, len(store)))
        batch = store.take(chunk)
        values[chunk] -= facts.reference(batch.atomic_numbers, batch.n_node)
    return values


def _compared(spec: DatasetSpec, facts, found: statistics.Statistics, enough: bool) -> list:
    """Measured beside published constants."""
    n = getattr(facts, "n_published", None)
    counted = [statistics.Finding("ok" if found.n_record == n else "warning", "structures",
                                  f"{found.n_record} (published {n})")] if n else []  # fmt: skip
    if isinstance(facts, ScalarData):
        pairs = [
            ("target std", found.target.std, facts.std, facts.unit, 0.05),
        ]
        counted += _mean_of_target(facts, found)
    elif isinstance(facts, ForceData):
        is_formation = spec.family == "spice"  # the published mean is of total energies, which are not the target
        pairs = [
            ("energy mean", found.energy.mean, None if is_formation else facts.energy_mean, "eV", 1e-4),
            ("energy std", found.energy.std, None if is_formation else facts.energy_std, "eV", 0.05),
            ("force std", found.forces.std, facts.force_std, "eV/A", 0.02),
        ]
    else:
        pairs = [
            ("energy mean", found.energy.mean, spec.raw_energy_mean, "eV", 0.05),
            ("energy std", found.energy.std, spec.raw_energy_std, "eV", 0.05),
            ("energy std after references", found.residual.std, spec.energy_std, "eV", 0.05),
            ("force std", found.forces.std, spec.force_std, "eV/A", 0.05),
        ]
    enough = found.n_record >= _FEW if isinstance(facts, ForceData | ScalarData) else enough
    return counted + [finding for pair in pairs if (finding := statistics.compare(*pair, enough))]


def _mean_of_target(facts: ScalarData, found: statistics.Statistics) -> list[statistics.Finding]:
    # The five printed digits of QM9's atom references move the mean of U_0 by a quarter of its std.
    if facts.mean is None or not facts.std:
        return []
    text = f"{found.target.mean:.6g} {facts.unit} (published {facts.mean:.6g})"
    near = abs(found.target.mean - facts.mean) < 0.3 * facts.std
    is_whole = found.n_record >= (facts.n_published or 0) / 2  # an excerpt may hold the smallest molecules alone
    return [statistics.Finding("ok" if near else "error" if is_whole else "warning", "target mean", text)]


def info(config: InfoConfig) -> int:
    """Print what a user checks first and draw it."""
    from experiments.report.data_plots import draw

    result = report(config)
    print_report(result)
    slug = config.name.partition("@")[0].replace(":", "-").replace("/", "-")
    out = Path(config.out or f"{slug}.png")
    draw(result, out)
    print(f"plots: {out}")
    return 0


def check(config: InfoConfig) -> int:
    """Verify a store and run the conversion checklist; 1 when something is wrong."""
    result = report(config)
    result.store.verify()
    print(f"ok       checksums of {len(result.store.manifest['columns'])} columns")
    print_findings(result.findings)
    return int(any(finding.level == "error" for finding in result.findings))


def print_report(result: Report) -> None:
    """The statistics as text."""
    found = result.found
    elements = {int(z): int(found.elements[z]) for z in np.flatnonzero(found.elements)}
    print(f"{result.spec.name}: {found.n_record} structures, statistics of {found.n_looked_at}")
    print(f"store        {result.store.path}")
    print(f"atoms        {found.n_node.mean:.1f} per structure, {found.n_node.low:.0f} to {found.n_node.high:.0f}")
    print(f"elements     {len(elements)}: {_element_line(elements)}")
    rows = [("energy", found.energy, "eV"), ("after refs", found.residual, "eV"), ("forces", found.forces, "eV/A"),
            ("target", found.target, getattr(result.facts, "unit", ""))]  # fmt: skip
    for label, moments, unit in rows:
        if moments.count:
            print(f"{label:12s} mean {moments.mean:.6g}, std {moments.std:.6g}, "
                  f"{moments.low:.6g} to {moments.high:.6g} {unit}")  # fmt: skip
    print(f"periodic     {found.n_periodic} of {found.n_looked_at}; fixed atoms {found.fixed_share:.1%}")
    print_findings(result.findings)


def print_findings(found: list[statistics.Finding]) -> None:
    """A line per check."""
    for finding in found:
        print(f"{finding.level:8s} {finding.what}: {finding.found}")


def _element_line(elements: dict[int, int]) -> str:
    from ase.data import chemical_symbols

    common = sorted(elements.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{chemical_symbols[z] if z < len(chemical_symbols) else z} {n}" for z, n in common[:12])
    return shown + (", ..." if len(common) > 12 else "")


if __name__ == "__main__":
    raise SystemExit(main())

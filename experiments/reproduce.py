"""Reproduce one published row from data to table, in steps that are skipped once done.

    python -m experiments.reproduce --check
    python -m experiments.reproduce --table 1 --row ani1x --dry-run
    python -m experiments.reproduce --table 1 --row ani1x --out runs/paper
    python -m experiments.reproduce --table 1 --row ani1x --scale 1e-3 --model gemnet_oc_tiny \\
        --upstream ani1x@/data/ani1x.h5 --downstream rmd17:aspirin@/data/rmd17_aspirin.npz

Pretraining, CSI of the candidates, and fine-tuning with its test; then the table. Rows that share a pretraining run
share its folder. `--row all` takes every row of the table. `--check` compares every published row with the sizes of the
training sets that it names, and needs no data.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.paper.cost import Cost
from experiments.paper.names import DOWNSTREAM, UPSTREAM, base_name, short_count
from experiments.paper.published import Column
from experiments.paper.rows import (
    TABLES,
    PaperRow,
    find_row,
    finetune_cost,
    finetune_steps,
    paper_rows,
    pretrain_cost,
    shortfalls,
    slug,
    structures_to_train,
)
from experiments.report.grouping import make_cells
from experiments.report.results import find_results
from experiments.report.tables import write_table
from jaxatoms.runs.chain import Step, is_done, print_chain, run_chain
from jaxatoms.tools import cli
from jaxatoms.types import InputError

CSI_STRUCTURES, MIN_CSI_STRUCTURES = 10_000, 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Which row, and where it departs from the paper."""

    table: str | None = None
    """This names the table: 1 to 5, or fig4."""
    row: str | None = None
    """This is the key of a row, such as ani1x, mixed_balanced or (in Table 2) ani1x-1M; `all` takes every row. A wrong
    key lists the right ones."""
    scale: float = 1.0
    """N and the number of fine-tuning steps are multiplied by this factor; 1e-3 takes minutes."""
    model: str | None = None
    """This preset or JSON file replaces the paper's network."""
    upstream: tuple[str, ...] = ()
    """Data sets come from here: ani1x@PATH, or ani1x=demo:organic to put another in its place."""
    downstream: tuple[str, ...] = ()
    """These tasks are run, in the same form; the default is those of the table."""
    seeds: tuple[int, ...] = (0,)
    """Pretraining and fine-tuning run with each of these seeds; MatBench tasks take two of their own for each (0 and 1
    for seed 0)."""
    extractor: str | None = None
    """CSI uses this network: a checkpoint (RUN means its best-validation one), or none. The default is the row's own
    network."""
    jmp: str | None = None
    """This public JMP checkpoint (jmp-s.pt) is used by the jmp rows."""
    out: str = "runs/paper"
    """All runs are written into this folder."""
    pretrain_options: str = ""
    """These options are added to experiments.pretrain, in one string: --pretrain-options="--precision tf32"."""
    finetune_options: str = ""
    """These options are added to experiments.finetune, in one string."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    dry_run: bool = False
    """Print the steps and their cost, and run nothing."""
    check: bool = False
    """Compare every published row with the sizes of its training sets; this runs nothing and reads no data."""

    def __post_init__(self):
        if not self.check and (self.table is None or self.row is None):
            raise InputError("give --table and --row, or --check")
        if not 0 < self.scale <= 1:
            raise InputError(f"--scale must be above 0 and at most 1, got {self.scale}")
        if not self.seeds:
            raise InputError("--seeds needs one seed at least")

    def count(self, n: int) -> int:
        """A number of structures or steps, scaled."""
        return max(1, round(n * self.scale))

    def places(self) -> tuple[str, ...]:
        """The options that say where data lie."""
        given = (("--data-root", self.data_root), ("--cache-dir", self.cache_dir))
        return tuple(word for option, value in given if value is not None for word in (option, value))


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.reproduce`."""
    config = cli.parse(ReproduceConfig, argv, description=__doc__, prog="python -m experiments.reproduce")
    if config.check:
        return check_rows()
    rows = paper_rows(config.table) if config.row == "all" else [find_row(config.table, config.row)]
    refuse_short_rows(rows, config)
    steps = list({step.name: step for row in rows for step in make_steps(row, config)}.values())
    if config.dry_run:
        print_chain(steps, Path(config.out))
        for row in rows:
            print(f"\n{row.key}: {row_cost(row, config).text()}{clamp_words(row, config)}")
            print("expected " + ", ".join(f"{e.column.dataset} {e.value:g} {e.column.unit}" for e in row.expected))
        return 0
    out = cli.resolve_run_dir(config.out, "--out")
    run_chain(steps, out)
    report(rows, config, out)
    return 0


# --- sizes --------------------------------------------------------------------------------------------


def check_rows() -> int:
    """`--check`: one line per published row; the exit code is 1 where a training set holds less than its row names."""
    short = 0
    for table in TABLES:
        for row in paper_rows(table):
            config = ReproduceConfig(table=table, row=row.key)
            missing = shortfalls(row, n_of(row, config))
            short += bool(missing)
            words = "a public checkpoint" if row.is_jmp else f"{n_of(row, config):,} structures x {row.row.epochs}"
            verdict = f"cannot run: {'; '.join(missing)}" if missing else f"{words}{clamp_words(row, config)}"
            print(f"table {table} {row.key}: {verdict}")
    return int(short > 0)


def refuse_short_rows(rows: list[PaperRow], config: ReproduceConfig) -> None:
    """Refuse a row that would find out after hours of conversion that its data are too few.

    Raises:
      InputError: naming the row and the set.
    """
    for row in rows:
        missing = [] if is_replaced(row, config) else shortfalls(row, n_of(row, config))
        if missing:
            raise InputError(f"row {row.key} asks for {missing[0]}; lower --scale or name other data with --upstream")


def n_of(row: PaperRow, config: ReproduceConfig) -> int:
    """N of a row's pretraining: as printed, times --scale, and no more than the set holds unless it is replaced."""
    n = config.count(row.row.n or 0)
    return n if is_replaced(row, config) else structures_to_train(row, n)


def is_replaced(row: PaperRow, config: ReproduceConfig) -> bool:
    """Whether --upstream puts other data, whose size is not known here, in the place of a row's."""
    return bool(replacements(config.upstream, UPSTREAM).keys() & set(row.upstream))


def clamp_words(row: PaperRow, config: ReproduceConfig) -> str:
    """Why a row trains on fewer structures than it prints; empty where it does not."""
    asked, n = config.count(row.row.n or 0), n_of(row, config)
    if n == asked or row.is_jmp:
        return ""
    return f" (N = {asked:,} is printed; {row.upstream[0]}'s split has no more, and the authors' code clamps N to it)"


# --- the chain ----------------------------------------------------------------------------------------


def make_steps(row: PaperRow, config: ReproduceConfig) -> list[Step]:
    """The steps of a row, in order."""
    tasks = tasks_of(row, config)
    if row.is_jmp:
        convert = convert_step(row, config)
        inits = dict.fromkeys(config.seeds, Path(config.out) / convert.name)
        first = [convert]
    else:
        first = [pretrain_step(row, config, seed) for seed in config.seeds]
        inits = {seed: Path(config.out) / step.name for seed, step in zip(config.seeds, first, strict=True)}
    csi = [] if config.extractor == "none" else [csi_step(row, config, tasks, inits[config.seeds[0]])]
    model = config.model or row.model
    return [*first, *csi, *(finetune_step(config, run, inits[run.init_seed], model) for run in runs_of(row, config))]


class FinetuneRun(NamedTuple):
    """One fine-tuning of a row."""

    task: str  # as the paper's
    data: str  # data set to open
    init_seed: int  # of the network it starts from
    seed: int


def runs_of(row: PaperRow, config: ReproduceConfig) -> list[FinetuneRun]:
    """All fine-tuning runs of a row; a MatBench cell has two seeds (docs/reference/finetuning.md, Table cells)."""
    return [
        FinetuneRun(task, data, seed, own)
        for seed in config.seeds
        for task, data in tasks_of(row, config).items()
        for own in ((2 * seed, 2 * seed + 1) if task.startswith("matbench:") else (seed,))
    ]


def pretrain_step(row: PaperRow, config: ReproduceConfig, seed: int) -> Step:
    """Pretraining under the row's budget."""
    places = replacements(config.upstream, UPSTREAM)
    model, n = config.model or row.model, n_of(row, config)
    kind = f"{'+'.join(row.upstream)}-{row.mix}" if len(row.upstream) > 1 else row.upstream[0]
    name = f"pretrain/{slug(kind)}-n{n}-e{row.row.epochs}-{slug(Path(model).stem)}-s{seed}"
    folder = Path(config.out) / name
    words = ["--upstream", ",".join(places.get(u, u) for u in row.upstream), "--n", str(n),
             "--epochs", str(row.row.epochs), "--model", model, "--seed", str(seed)]  # fmt: skip
    if len(row.upstream) > 1:
        words += ["--mix", row.mix]
    words += [*shlex.split(config.pretrain_options), "--run-dir", str(folder)]
    return training_step(name, "experiments.pretrain", words, folder, "summary.json", config)


def convert_step(row: PaperRow, config: ReproduceConfig) -> Step:
    """Conversion of a public checkpoint.

    Raises:
      InputError: no --jmp.
    """
    if config.jmp is None and not config.dry_run:
        raise InputError(f"row {row.key} starts from a public checkpoint; give it as --jmp jmp-s.pt or jmp-l.pt")
    file = config.jmp or f"jmp-{'l' if row.model.endswith('_l') else 's'}.pt"
    name = f"pretrain/{slug(Path(file).stem)}"
    folder = Path(config.out) / name
    argv = ("experiments.convert", "--torch", file, "--quiet", "--out", str(folder))
    return Step(name, argv, proof=folder / "checkpoints" / "best")


def finetune_step(config: ReproduceConfig, run: FinetuneRun, init: Path, model: str) -> Step:
    """Fine-tuning on one task, with its test; a checkpoint of another size than the row's is refused by it."""
    name = f"finetune/{init.name}/{slug(run.task)}-s{run.seed}"
    folder = Path(config.out) / name
    words = ["--downstream", run.data, "--init", str(init), "--model", model, "--seed", str(run.seed)]
    if config.scale < 1:
        words += ["--max-steps", str(config.count(finetune_steps(run.task)))]
    else:
        words += ["--test-samples", "all"]
    words += [*shlex.split(config.finetune_options), "--run-dir", str(folder)]
    return training_step(name, "experiments.finetune", words, folder, "test.json", config)


def training_step(
    name: str, module: str, words: list[str], folder: Path, proof: str, config: ReproduceConfig
) -> Step:
    """A resumable step of one of the training commands."""
    argv, begun = (module, *words), folder / "config.json"
    return Step(name, argv, folder / proof, begun=begun, resume=("--resume",), places=config.places())


def csi_step(row: PaperRow, config: ReproduceConfig, tasks: Mapping[str, str], network: Path) -> Step:
    """CSI of the candidates: the paper's four, or just those that --upstream names."""
    places = replacements(config.upstream, UPSTREAM)
    candidates = list(places.values()) if places else list(UPSTREAM)
    checkpoint = config.extractor or str(network)
    name = f"csi/{row.table}-{slug(Path(checkpoint).name)}"
    folder = Path(config.out) / name
    n = max(MIN_CSI_STRUCTURES, config.count(CSI_STRUCTURES))
    once = [t for t in tasks if not t.startswith("matbench:") or t.endswith("/0")]
    argv = ["experiments.csi", "--upstream", *candidates, "--downstream", *(tasks[t] for t in once),
            "--checkpoint", checkpoint, "--n", str(n), "--out", str(folder)]  # fmt: skip
    return Step(name, tuple(argv), proof=folder / "csi.json", places=config.places())


def tasks_of(row: PaperRow, config: ReproduceConfig) -> dict[str, str]:
    """{paper's task: data set to open}, all of the table or those that --downstream names."""
    given = replacements(config.downstream, DOWNSTREAM)
    foreign = [name for name in given if name not in row.downstream]
    if foreign:
        known = ", ".join(row.downstream)
        raise InputError(f"--downstream {foreign[0]} is no task of table {row.table}; its tasks are {known}")
    return given or {name: name for name in row.downstream}


def replacements(words: tuple[str, ...], known: Mapping[str, object]) -> dict[str, str]:
    """{known name: data set to open} of NAME, NAME@PATH and NAME=OTHER.

    Raises:
      InputError: a name that is not known.
    """
    out = {}
    for word in words:
        left, sign, right = word.partition("=") if "@" not in word.partition("=")[0] else (word, "", "")
        name = base_name(left)
        if name not in known:
            raise InputError(f"{name!r} is not one of {', '.join(known)}; write NAME, NAME@PATH or NAME=OTHER")
        out[name] = right if sign else left
    return out


# --- what comes out -----------------------------------------------------------------------------------


def row_cost(row: PaperRow, config: ReproduceConfig) -> Cost:
    """All steps of a row; JMP rows cost their fine-tuning only."""
    model = config.model or row.model
    parts = [finetune_cost(r.task, config.count(finetune_steps(r.task)), model) for r in runs_of(row, config)]
    if not row.is_jmp:
        parts += [pretrain_cost(row, n_of(row, config), model)] * len(config.seeds)
    return sum(parts[1:], parts[0])


def report(rows: list[PaperRow], config: ReproduceConfig, out: Path) -> None:
    """The rows' numbers beside the paper's, and the whole table from everything below `out`."""
    for row in rows:
        settings = [f"here times {config.scale:g}", config.model, *config.upstream, *config.downstream]
        print(f"\n{row.key}: C {short_count(row.row.budget)} in the paper, {' '.join(filter(None, settings))}"
              f"{clamp_words(row, config)}")
        folders = {s.name: t for s, t in _finetune_steps(row, config) if is_done(s)}
        for line in row_lines(row, folders, out):
            print(line)
    if config.table != "fig4":
        _, paths = write_table(config.table, find_results(out), cli.resolve_run_dir(out / "tables", "--out"))
        print("-> " + ", ".join(map(str, paths)))


def _finetune_steps(row: PaperRow, config: ReproduceConfig) -> list[tuple[Step, str]]:
    steps = [s for s in make_steps(row, config) if s.name.startswith("finetune/")]
    return list(zip(steps, [run.task for run in runs_of(row, config)], strict=True))


def row_lines(row: PaperRow, folders: Mapping[str, str], out: Path) -> list[str]:
    """One line per task: ours, then the paper's number."""
    results = [r for r in find_results(out).results if r.folder in folders]
    # Filed under the paper's task, whatever data stand in for it.
    named = [
        dataclasses.replace(r, row=row.row, column=Column(*DOWNSTREAM[folders[r.folder]], r.column.unit))
        for r in results
    ]
    cells, _ = make_cells(named)
    stand_ins = {n.column.dataset: r.column.dataset for n, r in zip(named, results, strict=True)}
    lines = []
    for (_, column), cell in cells.items():
        paper = next((e.value for e in row.expected if e.column == column), None)
        beside = "" if paper is None else f", paper {paper:g}"
        if stand_ins.get(column.dataset, column.dataset) != column.dataset:
            beside += f" (ours on {stand_ins[column.dataset]})"
        notes = "".join(f"; {note}" for note in cell.notes)
        lines.append(f"  {column.dataset:24s} {cell.text()} {column.unit}{beside}{notes}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

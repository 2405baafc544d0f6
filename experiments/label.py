"""Energies and forces of structures from an ASE calculator or a checkpoint, written as a data set.

    python -m experiments.label --structures in.extxyz --with ase.calculators.emt:EMT --out out.extxyz
    python -m experiments.label --structures in.xyz --with tblite.ase:TBLite --out out.h5 --workers 8
    python -m experiments.label --structures in.extxyz --with runs/ani1x --out out.extxyz

Reads anything ASE reads and writes extended XYZ (energies in eV, forces in eV/A, stress in eV/A^3 where there is one)
or the layout of ANI-1x (.h5). A structure whose calculation fails is never written; the same command continues where a
killed one ended.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import ase
import tyro

from jaxatoms.data.readers.ase_file import read_atoms
from jaxatoms.data.readers.checks import MIN_ATOMS, fail, require_file
from jaxatoms.labels.calculations import Outcome, batches, label_all
from jaxatoms.labels.files import AniDraft, FramesDraft, check_molecules
from jaxatoms.labels.methods import CalculatorMethod, CheckpointMethod, find_method
from jaxatoms.tools import cli, lock
from jaxatoms.tools.drafts import FailuresDraft, Journal, part_of, stamp
from jaxatoms.types import InputError

XYZ, ANI = (".extxyz", ".xyz"), ".h5"
BATCH_SECONDS, BATCH_MOST = 2.0, 1024  # what a kill loses at most, beside what is being calculated


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What to label, and with which method."""

    structures: str
    """Structures are read from this file, in any format that ASE reads: .extxyz (also .xz, .gz), .traj, .db and
    others."""
    with_: Annotated[str, tyro.conf.arg(name="with")]
    """Labels are those of this ASE calculator, named as module:factory (ase.calculators.emt:EMT), or of this
    checkpoint: RUN (its best-validation one), RUN@last, a converted folder or a step folder."""
    out: str
    """Results are written into this file, which appears when it is whole: .extxyz or .xyz, or .h5 for molecules in the
    layout of ANI-1x."""
    options: str = "{}"
    """The factory of the calculator takes these keyword arguments, a JSON object such as '{"method": "GFN2-xTB"}'."""
    task: str | None = None
    """This names the task whose head is used; it is needed when the checkpoint has several."""
    workers: int = 1
    """This many processes calculate, each with a calculator of its own; a checkpoint uses one."""
    on_failure: str = "stop"
    """A structure whose calculation fails ends the command (stop), or is left out and named in OUT.failures.json
    (skip)."""
    quiet: bool = False
    """Do not print the progress."""

    def __post_init__(self):
        cli.check_positive(self, "workers")
        cli.check_choices(self, {"on_failure": ("stop", "skip")})
        cli.check_suffix(self, "out", *XYZ, ANI)
        if Path(self.out).absolute() == Path(self.structures).absolute():
            raise InputError(f"--out is --structures ({self.out}); choose another --out")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.label`."""
    config = cli.parse(LabelConfig, argv, description=__doc__, prog="python -m experiments.label")
    out = Path(config.out).absolute()
    with lock.hold(out.parent, part_of(out, "lock").name):
        return run(config)


def run(config: LabelConfig) -> int:
    """Label, batch by batch."""
    source = require_file(config.structures)
    method = choose_method(config)
    n_small = check_molecules(source) if Path(config.out).suffix == ANI else 0
    failures, journal = open_outputs(config, source, method.record())
    if journal.done and not config.quiet:
        print(f"continuing after {journal.done:,} structures")
    with contextlib.closing(label_all(method, _structures(source, journal.done), config.workers)) as outcomes:
        for batch in batches(outcomes, BATCH_SECONDS, BATCH_MOST):
            commit(config, journal, batch)
            if not config.quiet:
                print(f"{journal.done:,} structures", end="\r", flush=True)
    failed = failures.read()
    check_any(source, journal, failed)
    journal.finish()
    failures.part.unlink()
    print(describe(config, journal.done, len(failed), n_small))
    return 0


def choose_method(config: LabelConfig) -> CalculatorMethod | CheckpointMethod:
    """The calculator or the checkpoint.

    Raises:
      InputError: there is none of that name, or options that it does not have.
    """
    method = find_method(config.with_, config.options, config.task)
    if isinstance(method, CheckpointMethod):
        cli.refuse_unused(config, ["options", "workers"], "with a checkpoint")
        from jaxatoms.tools.runtime import prepare_process  # here: it loads JAX

        prepare_process()
    else:
        cli.refuse_unused(config, ["task"], "with a calculator")
    return method


def open_outputs(config: LabelConfig, source: Path, record: dict[str, str]) -> tuple[FailuresDraft, Journal]:
    """The drafts of the outputs, cut where they are known to be whole.

    Raises:
      InputError: they were begun with other settings, or cannot be written.
    """
    out = Path(config.out)
    draft = AniDraft(out, record) if out.suffix == ANI else FramesDraft(out, record)
    failures = FailuresDraft(out.with_name(f"{out.name}.failures.json"), {"structures": config.structures, **record})
    settings = {"--structures": stamp(source), **record}
    return failures, Journal(out, {"failures": failures, "out": draft}, settings)  # the main output gets its name last


def commit(config: LabelConfig, journal: Journal, batch: list[Outcome]) -> None:
    """Keep a batch, up to its first failure where that ends the command.

    Raises:
      InputError: a calculation failed and --on-failure is stop, or the disk refuses.
    """
    done = batch
    if config.on_failure == "stop":
        done = list(itertools.takewhile(lambda outcome: outcome.results is not None, batch))
    good = [outcome for outcome in done if outcome.results is not None]
    failed = {outcome.index: outcome.reason for outcome in done if outcome.results is None}
    if done:
        journal.commit(len(done), {"failures": failed, "out": good})
    if len(done) < len(batch):
        bad = batch[len(done)]
        remedy = "with --on-failure skip the same command goes on without it"
        fail(config.structures, f"structure {bad.index}", f"the calculation failed ({bad.reason})", remedy)


def check_any(source: Path, journal: Journal, failed: list[dict]) -> None:
    """Refuse a file of which nothing was labelled, and forget the attempt.

    Raises:
      InputError: with the first reason.
    """
    if journal.done == 0:
        fail(source, "", "holds no structure", "check the file")
    if journal.done == len(failed):
        journal.path.unlink()
        first = f"structure {failed[0]['structure']}: {failed[0]['reason']}"
        fail(source, "", f"every calculation failed, the first with {first}", "check the calculator and its options")


def describe(config: LabelConfig, n: int, n_failed: int, n_small: int) -> str:
    """One line about what was written, and one about each kind of structure that is missing."""
    units = "Hartree, Hartree/A" if Path(config.out).suffix == ANI else "eV, eV/A"
    lines = [f"{n - n_failed:,} structures -> {config.out} (energies and forces in {units})"]
    if n_failed:
        lines.append(f"{n_failed:,} structures were left out, their calculation failed -> {config.out}.failures.json")
    if n_small:
        lines.append(f"{n_small:,} structures of the input have fewer than {MIN_ATOMS} atoms; ani1x@ leaves them out")
    return "\n".join(lines)


def _structures(source: Path, first: int) -> Iterator[tuple[int, ase.Atoms]]:
    for i, (atoms, _) in enumerate(read_atoms(source, first=first), start=first):
        yield i, atoms


if __name__ == "__main__":
    raise SystemExit(main())

"""`make demo`: select, pretrain, fine-tune and compare on the data that ships with the package.

    python -m experiments.demo [options of experiments.study]

Three candidate upstream sets, their mixture and a start from scratch compete for one task under a small equal budget.
Everything printed at the end is computed in this run.
"""

import functools
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.report import study_report
from jaxatoms.runs import study
from jaxatoms.runs.chain import Step, run_chain, start_process
from jaxatoms.tools import cli
from jaxatoms.types import InputError

SETTINGS = {
    "--upstream": ["demo:organic", "demo:reaction", "demo:oxide"],
    "--downstream": ["demo:aspirin"],
    "--model": ["gemnet_oc_nano"],
    "--n": ["240"],
    "--epochs": ["8"],
    "--cutoff": ["6"],  # the oxides' default of 12 A and 30 neighbours would take several times as long
    "--max-neighbors": ["16"],
    "--pretrain-lr": ["4e-3"],
    "--pretrain-shapes": ["1"],
    "--finetune-steps": ["120"],
    "--finetune-lr": ["4e-3"],
    "--n-train": ["100"],
    "--n-val": ["50"],
    "--forces": ["direct"],  # gradient forces are better and take longer to compile
    "--test-samples": ["200"],
    "--csi-n": ["150"],
    "--jobs": ["2"],
}
START = """Three small sets of structures ({upstream}) compete for one task, forces of {downstream}.
CSI says which lies closest; then a small network ({model}) is pretrained on each, on all three together and on none,
with the same number of steps, and fine-tuned on {n_train} labels. It takes about four minutes on two cores, less when
it is run again."""
START_OF_ANOTHER = """The sets {upstream} compete for {downstream}: a small network ({model}) is pretrained on each, and
fine-tuned on {n_train} labels."""


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Run the study with the demo's settings; later options win."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--out" not in given:
        given += ["--out", tempfile.mkdtemp(prefix="jaxatoms-demo-")]
    settings = [word for name, values in SETTINGS.items() if name not in given for word in (name, *values)]
    config = cli.parse(study.StudyConfig, settings + given, description=__doc__, prog="python -m experiments.demo")
    out = cli.resolve_run_dir(config.out, "--out")
    labels = {name: ", ".join(map(study.label_of, getattr(config, name))) for name in ("upstream", "downstream")}
    start = START if set(given[::2]) <= {"--out", "--jobs"} else START_OF_ANOTHER
    print(start.format(**labels, model=config.model, n_train=config.n_train), flush=True)
    _run(config, out)
    results, name = study.collect(config, out), study.result_name(config)
    study_report.write(out, name, results)
    print(study_report.tell(results))
    print(f"\n{study_report.verdict(results)}".rstrip())
    print(f"picture: {out / name}.png\ntables and runs: {out}")
    return 0


def _run(config: study.StudyConfig, out: Path):
    """The commands of the study behind one line of progress; what the commands say goes to log.txt."""
    steps, console = study.make_steps(config, out), Console()
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (out / "log.txt").open("a") as log, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(steps))

        def ended(step: Step) -> None:
            progress.update(task, advance=1, description=step.name.replace(" seed 0", ""))
            if not console.is_terminal:
                console.print(f"  {int(progress.tasks[0].completed)}/{len(steps)} {step.name}", highlight=False)

        start = functools.partial(start_process, output=log)
        try:
            run_chain(steps, out, jobs=config.jobs, start=start, say=lambda _: None, ended=ended)
        except InputError as error:
            raise InputError(f"{error} (what the commands said is in {out / 'log.txt'})") from None


if __name__ == "__main__":
    raise SystemExit(main())

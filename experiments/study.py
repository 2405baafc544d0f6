"""Does the closest upstream set win? Select, pretrain, fine-tune and compare, under one budget for every candidate.

    python -m experiments.study --upstream organic=ani1x@A.h5 catalysts=oc20@DIR --downstream rmd17:aspirin@B.npz \\
        --n 1000 --epochs 4 --finetune-steps 2000 --seeds 3 --out runs/study

A chain of resumable steps: a run for every upstream set, for their balanced mixture and from scratch, each fine-tuned
on every task; CSI with the mixture as extractor. Writes results.json and results.md.

`--control scales` asks what of this is not learnt: the same networks without a pretraining step, only with their scale
factors fitted on each set (and, as `scales-own`, on the task), then the same fine-tuning. Writes results-scales.json
and results-scales.md beside the others.
"""

from experiments.report import study_report
from jaxatoms.runs.chain import run_chain
from jaxatoms.runs.study import StudyConfig, collect, make_steps, result_name
from jaxatoms.tools import cli


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.study`."""
    config = cli.parse(StudyConfig, argv, description=__doc__, prog="python -m experiments.study")
    out, name = cli.resolve_run_dir(config.out, "--out"), result_name(config)
    run_chain(make_steps(config, out), out, jobs=config.jobs)
    results = collect(config, out)
    study_report.write(out, name, results)
    print(study_report.tell(results))
    print(f"-> {out}/{name}.md, {name}.json, {name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Fine-tune a pretrained GemNet-OC or EquiformerV2 on a downstream data set, and report the error on its test split.

    python -m experiments.finetune --downstream rmd17:aspirin --init runs/ani1x --run-dir runs/ft

The recipe of each data set is the paper's; `--budget small` keeps everything but the number of steps.
"""

from jaxatoms.runs.finetune_config import RESUMABLE, FinetuneConfig
from jaxatoms.runs.finetuning import finetune
from jaxatoms.runs.session import check_run_dir
from jaxatoms.tools import cli, lock
from jaxatoms.tools.runtime import prepare_process


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.finetune`."""
    config = cli.parse(FinetuneConfig, argv, description=__doc__, prog="python -m experiments.finetune")
    prepare_process()
    run_dir = cli.resolve_run_dir(config.run_dir)
    with lock.hold(run_dir):
        finetune(config, run_dir, check_run_dir(run_dir, config, RESUMABLE))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

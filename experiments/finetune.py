"""Fine-tune a pretrained GemNet-OC or EquiformerV2 on a downstream data set, and report the error on its test split.

    python -m experiments.finetune --downstream rmd17:aspirin --init runs/ani1x --run-dir runs/ft

The recipe of each data set is the paper's; `--budget small` keeps everything but the number of steps.
"""

from jaxatoms.runs import fleet
from jaxatoms.runs.finetune import finetune
from jaxatoms.runs.finetune_config import RESUMABLE, FinetuneConfig
from jaxatoms.runs.session import check_run_dir
from jaxatoms.tools import cli
from jaxatoms.tools.runtime import prepare_process


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.finetune`."""
    config = cli.parse(FinetuneConfig, argv, description=__doc__, prog="python -m experiments.finetune")
    fleet.join(config.coordinator, config.num_processes, config.process_id)
    prepare_process()
    run_dir = cli.resolve_run_dir(config.run_dir)
    with fleet.one_run(run_dir):
        resumed = check_run_dir(run_dir, config, RESUMABLE)
        fleet.wait_for_all("run folder checked")
        finetune(config, run_dir, resumed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

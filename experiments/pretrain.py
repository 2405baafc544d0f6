"""Pretrain GemNet-OC on one or several upstream data sets under a budget C = N x E.

    python -m experiments.pretrain --upstream ani1x --n 2e6 --epochs 5 --run-dir runs/ani1x
    python -m experiments.pretrain --upstream ani1x,oc22 --mix 2:1 --n 3e6 --run-dir runs/mixed
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from jaxatoms.ops import dispatch
from jaxatoms.runs import fleet
from jaxatoms.runs.compile_for import report_for
from jaxatoms.runs.plan import print_plan
from jaxatoms.runs.pretrain_config import RESUMABLE, PretrainConfig
from jaxatoms.runs.pretraining import prepare, pretrain
from jaxatoms.runs.session import check_run_dir
from jaxatoms.tools import cli
from jaxatoms.tools.runtime import check_kernels, prepare_process
from jaxatoms.types import InputError


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.pretrain`."""
    config = cli.parse(PretrainConfig, argv, description=__doc__, prog="python -m experiments.pretrain")
    fleet.join(config.coordinator, config.num_processes, config.process_id)
    prepare_process()
    if config.compile_for is not None:
        with _kernels(config.kernels):
            report_for(config, sys.stdout)
        return 0
    check_kernels(config.kernels)
    if config.plan:
        with _kernels(config.kernels):
            print_plan(prepare(dataclasses.replace(config, devices=1, steps_per_call=1), None), sys.stdout)
        return 0
    run_dir = cli.resolve_run_dir(config.run_dir)
    with fleet.one_run(run_dir):
        resumed = check_run_dir(run_dir, config, RESUMABLE)
        fleet.wait_for_all("run folder checked")
        with _kernels(config.kernels):
            pretrain(config, run_dir, resumed)
    return 0


@contextlib.contextmanager
def _kernels(implementation: str) -> Iterator[None]:
    """Programs traced in the block use these kernels; what they cannot compute is one line."""
    try:
        with dispatch.using_kernels(implementation):
            yield
    except dispatch.Unsupported as error:
        raise InputError(f"--kernels {implementation}: {error}; leave it out here") from error


if __name__ == "__main__":
    raise SystemExit(main())

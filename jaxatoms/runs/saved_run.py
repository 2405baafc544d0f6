"""The settings of a run that was made before, for the commands that judge it."""

import json
from pathlib import Path

from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint_files import resolve_checkpoint
from jaxatoms.types import InputError


def read_run(
    run_dir: Path, *, data_root: str | None = None, cache_dir: str | None = None, tested: bool = False
) -> FinetuneConfig | PretrainConfig:
    """The run's settings, with other data folders where they are given.

    Args:
      tested: whether its test split will be looked at.

    Raises:
      InputError: no training run, or one whose test split must not be looked at yet.
    """
    places = {"data_root": data_root, "cache_dir": cache_dir}
    try:
        record = json.loads((run_dir / "config.json").read_text())
        kind = PretrainConfig if "upstream" in record else FinetuneConfig
        settings = kind(**cli.up_to_date(kind, record) | {k: place for k, place in places.items() if place is not None})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{run_dir} is no folder of experiments.finetune or experiments.pretrain ({error})"
        ) from None
    summary = run_dir / "summary.json"
    finished = summary.exists() and json.loads(summary.read_text())["finished"]
    if tested and not finished:
        raise InputError(f"{run_dir} has not finished training; resume it before asking for the test split")
    return settings


def resolved_init(settings: FinetuneConfig) -> Path | None:
    """The checkpoint of a run, where the record of a replayed set stands; None where none is needed."""
    return None if settings.replay is None else resolve_checkpoint(settings.init)

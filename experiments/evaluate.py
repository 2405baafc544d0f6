"""Errors of a fine-tuning run on a split of its data, in the paper's units.

    python -m experiments.evaluate --run runs/ft --split test --samples all

Reports the last and the best averaged weights; writes <split>.json and, of both, <split>_parity_<weights>.png and
<split>_errors_<weights>.png into the run folder.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
from flax import nnx

from experiments import cli, evaluation
from experiments.finetune import FinetuneConfig, open_data
from experiments.runtime import prepare_process
from jaxatoms.data.subset import parse_count
from jaxatoms.models import registry
from jaxatoms.models.precision import Precision
from jaxatoms.training.checkpoint import read_meta, resolve_checkpoint, restore
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which run, and on what."""

    run: str
    """Folder of a run of experiments.finetune."""
    split: str = "test"
    """train, val or test."""
    samples: str = "all"
    """Structures (random, seed 0), or `all`."""
    batch_edges: int = 4096
    data_root: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        parse_count(self.samples)
        if self.split not in ("train", "val", "test"):
            raise InputError(f"--split must be train, val or test, got {self.split!r}")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.evaluate`."""
    config = cli.parse(EvaluateConfig, argv, description=__doc__, prog="python -m experiments.evaluate")
    prepare_process()
    run_dir = Path(config.run)
    run_config = read_run(run_dir, config)
    model_config = registry.config_from_record(read_meta(resolve_checkpoint(run_dir / "checkpoints" / "last"))["model"])
    corpus, split = open_data(run_config, model_config)
    whole = getattr(split, config.split)
    records = evaluation.draw(whole, parse_count(config.samples))
    models = {f"{name}_ema": load(run_dir / "checkpoints" / name) for name in ("last", "best")}
    apply = jax.jit(models["last_ema"].apply)  # both have one architecture: compiled once
    forwards = {name: functools.partial(apply, m.params, m.constants) for name, m in models.items()}
    result = evaluation.assess(run_dir, config.split, records, len(whole), forwards, corpus, [], config.batch_edges)
    print(evaluation.describe(result))
    print(f"-> {run_dir}/{config.split}.json and {config.split}_*.png")
    return 0


def read_run(run_dir: Path, config: EvaluateConfig) -> FinetuneConfig:
    """The run's settings, with this command's data folders where they are given.

    Raises:
      InputError: not a fine-tuning run, or one whose test split must not be looked at yet.
    """
    try:
        record = json.loads((run_dir / "config.json").read_text())
        places = {k: getattr(config, k) for k in ("data_root", "cache_dir")}
        settings = FinetuneConfig(**record | {k: place for k, place in places.items() if place is not None})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{run_dir} is no folder of experiments.finetune ({error})") from None
    summary = run_dir / "summary.json"
    finished = summary.exists() and json.loads(summary.read_text())["finished"]
    if config.split == "test" and not finished:
        raise InputError(f"{run_dir} has not finished training; resume it before asking for the test split")
    return settings


def load(checkpoint: Path) -> registry.PureModel:
    """The averaged weights of a checkpoint as a pure model."""
    folder = resolve_checkpoint(checkpoint)
    meta = read_meta(folder)
    registry.check_layout(meta, str(folder))
    policy = Precision(matmul=meta["precision"])
    model = registry.split_model(nnx.eval_shape(lambda: registry.build_recorded(meta, policy)))
    arrays, _ = restore(folder, {"ema": model.params, "constants": model.constants})
    return model._replace(params=arrays["ema"], constants=arrays["constants"])


if __name__ == "__main__":
    raise SystemExit(main())

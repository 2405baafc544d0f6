"""Errors of a fine-tuning or pretraining run on a split of its data.

    python -m experiments.evaluate --run runs/ft --split test --samples all

Reports the last and the best averaged weights on the structures that the run itself set apart, and writes
<split>.json into the run folder, or into samples_<n> below it where errors on more structures lie there already. Of a
fine-tuning run errors are in the paper's units, and <split>_parity_<weights>.png and <split>_errors_<weights>.png lie
beside them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxatoms.data.corpus import Samples, samples_of
from jaxatoms.data.passes import plan_pass
from jaxatoms.data.subset import parse_count
from jaxatoms.data.tasks import make_corpus
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import read_checkpoint_meta
from jaxatoms.inference.model import restore_model
from jaxatoms.io import finite, write_json
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.runs.energy_zero import shift_of, with_shift
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_data import corpus_of, open_parts
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.runs.pretraining import loss_scales_of, physical, prepare_data
from jaxatoms.runs.saved_run import read_run, resolved_init
from jaxatoms.tools import cli
from jaxatoms.tools.provenance import provenance
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.training import loop
from jaxatoms.training.losses.pretraining import pretraining_terms
from jaxatoms.training.step import make_eval_step
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which run, and on what."""

    run: str
    """This is the folder of a run of experiments.finetune or experiments.pretrain."""
    split: str = "test"
    """Errors are computed on this part of the run's split: train, val or test."""
    samples: str = "all"
    """This many structures (random, seed 0) are evaluated; `all` takes every one."""
    batch_edges: int = 4096
    """A batch has this many edge slots."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""

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
    places = dict(data_root=config.data_root, cache_dir=config.cache_dir)
    settings = read_run(run_dir, **places, tested=config.split == "test")
    evaluate_run = evaluate_pretraining if isinstance(settings, PretrainConfig) else evaluate_finetuning
    evaluate_run(run_dir, settings, config)
    return 0


def evaluate_finetuning(run_dir: Path, settings: FinetuneConfig, config: EvaluateConfig):
    """Errors in the paper's units, with plots."""
    models, model_config = averaged_weights(run_dir)
    metas = {f"{name}_ema": read_checkpoint_meta(run_dir / "checkpoints" / name) for name in kept(run_dir)}
    steps = {name: meta.step for name, meta in metas.items()}
    parts = open_parts(settings, model_config, resolved_init(settings), run_dir / "data")
    apply = jax.jit(models["last_ema"].apply)  # both have one architecture: compiled once
    corpus, shapes = corpus_of(parts, model_config), []
    for i, part in enumerate(parts):
        whole = getattr(part.split, config.split)
        records = evaluation.draw(whole, parse_count(config.samples))
        forwards = {name: with_shift(apply, m.params, m.constants, shift_of(part.task, metas[name].tasks[i].reference))
                    for name, m in models.items()}  # fmt: skip
        name = evaluation.result_name(config.split, i)
        own = len(evaluation.draw(whole, parse_count(settings.test_samples))) if config.split == "test" else 0
        folder = folder_of(run_dir, name, len(records), steps, own)
        result = evaluation.assess(
            folder, config.split, records, len(whole), forwards, corpus, i, shapes, config.batch_edges, steps
        )
        print(evaluation.describe(result))
        print(f"-> {folder}/{name} and plots beside it")


def evaluate_pretraining(run_dir: Path, settings: PretrainConfig, config: EvaluateConfig):
    """MAEs of energies and forces of every task, in meV and meV/A."""
    data = prepare_data(settings, run_dir, resumed=True)
    parts = [getattr(d, config.split) for d in data]
    chosen = [evaluation.draw(part, parse_count(config.samples)) for part in parts]
    if not sum(map(len, chosen)):
        raise InputError(f"{run_dir}: the run's split has no {config.split} structures")
    models, model_config = averaged_weights(run_dir)
    terms = pretraining_terms(loss_scales_of(settings, data), settings.force_atoms == "free")
    corpus, *_ = make_corpus(data, registry.architecture_of(model_config).graphs)
    samples = Samples(*(np.concatenate(column) for column in zip(*map(samples_of, range(len(data)), chosen))))
    stream = plan_pass(corpus, samples, config.batch_edges, [])
    step = make_eval_step(models["last_ema"].apply, terms, len(data))
    steps = {f"{name}_ema": read_checkpoint_meta(run_dir / "checkpoints" / name).step for name in kept(run_dir)}
    result: dict = {"split": config.split, "n_structure": len(samples.record), "of": sum(map(len, parts))}
    for name, model in models.items():
        result[name] = physical(loop.evaluate(model.params, model.constants, stream.batches(), step), terms, data)
    file = folder_of(run_dir, f"{config.split}.json", result["n_structure"], steps) / f"{config.split}.json"
    write_json(file, finite(result | {"steps": steps, "provenance": provenance()}))
    on = f"{result['n_structure']:,} of {result['of']:,} {config.split} structures"
    for name in models:
        print(f"{name}: MAE of {_errors_of(result[name])} on {on}")
    print(f"-> {file}")


def folder_of(run_dir: Path, name: str, n: int, steps: Mapping[str, int], own: int = 0) -> Path:
    """Where the errors on `n` structures go: into the run folder, unless those of more structures belong there.

    Tables and studies read what lies in the run folder, so that a quick look must not replace it, nor take the place of
    the run's own test.

    Args:
      steps: of the weights that are evaluated; errors of earlier ones are replaced, however many their structures.
      own: structures of the run's own test, where that is what is evaluated.
    """
    before = json.loads((run_dir / name).read_text()) if (run_dir / name).is_file() else {"n_structure": 0}
    stale = before.get("steps", steps) != steps
    if n >= max(own, 0 if stale else before["n_structure"]):
        return run_dir
    folder = run_dir / f"samples_{n}"
    folder.mkdir(exist_ok=True)
    return folder


def _errors_of(found: Mapping[str, float]) -> str:
    """Forces and energies, as far as they are labelled."""
    names = {"forces": ("force_mae_mev_per_angstrom", "meV/A"), "energies": ("energy_mae_mev", "meV")}
    errors = [f"{label} {found[name]:.1f} {unit}" for label, (name, unit) in names.items() if np.isfinite(found[name])]
    return ", ".join(errors) or "nothing, since nothing is labelled,"


def kept(run_dir: Path) -> list[str]:
    """The checkpoints of a run by name: "last", and "best" where a step was validated."""
    return ["last", *(["best"] if (run_dir / "checkpoints" / "best").exists() else [])]


def averaged_weights(run_dir: Path) -> tuple[dict[str, registry.PureModel], Config]:
    """The averaged weights of a run's last and, where there is one, best checkpoint; and their dimensions."""
    loaded = {f"{name}_ema": restore_model(str(run_dir / "checkpoints" / name)) for name in kept(run_dir)}
    models = {name: registry.split_model(model.module) for name, model in loaded.items()}
    return models, loaded["last_ema"].config


if __name__ == "__main__":
    raise SystemExit(main())

"""Leads from the settings of a fine-tuning run to the run before its first step: data, batches, model and schedule."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxatoms.data.corpus import Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream_task import family_of
from jaxatoms.data.passes import plan_pass
from jaxatoms.inference import evaluation
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs import finetune_report, fleet, start, trained_part
from jaxatoms.runs.batches import Batches, make_batches
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_data import Part, corpus_of, open_parts, save_parts
from jaxatoms.runs.finetune_record import task_record
from jaxatoms.runs.finetuning import Finetuning
from jaxatoms.runs.recipes import SMALL_STEPS, Recipe, find_recipe
from jaxatoms.runs.session import has_checkpoint, say
from jaxatoms.training import parallel
from jaxatoms.training.finetuning import FinetuneOptim
from jaxatoms.training.partial import Partition
from jaxatoms.types import InputError

SCALE_FIT_BATCHES, SCALE_FIT_STRUCTURES = 16, 320
COUNTED = 1000  # training structures over which reference energies of checkpoint and data are compared
_OF_RECIPE = ("epochs", "batch_size", "lr", "weight_decay")  # settings that override the recipe's


def prepare(config: FinetuneConfig, run_dir: Path | None) -> Finetuning:
    """Data, batches, model and schedule of a run."""
    resumed = run_dir is not None and has_checkpoint(run_dir)  # a run stopped before its first one starts anew
    resolved = run_dir / "resolved.json" if run_dir is not None and resumed else None
    init = start.find_init(config.init, config.model)
    folder = None if run_dir is None else run_dir / "data"
    origin = _recorded_origin(resolved) or init.origin
    if init.path is not None and not config.quiet and not config.resume:
        say(start.describe_origin(origin))
    parts = _opened(config, init, folder if resumed else None)
    recipe = _recipe(config, parts[0], init.model)
    smooth = _smooth(config, init.model, parts, recipe, resolved)
    init = init._replace(model=registry.with_smooth_quadruplets(init.model, smooth))
    corpus = corpus_of(parts, init.model)
    if folder is not None and not resumed and fleet.is_writer():
        save_parts(folder, parts)
    n_device = None if jax.process_count() > 1 else config.devices  # several processes use all that they have
    devices = fleet.Fleet(parallel.make_mesh(n_device), config.shard_optimizer)
    batches = make_batches(config, corpus, _samples(parts, "train"), devices, epochs=recipe.epochs,
                           batch_size=recipe.batch_size, round_up=True)  # fmt: skip
    n_val = config.val_samples or (2000 if config.budget == "small" else 10_000)
    val_samples = _samples(parts, "val", n_val)
    eval_shapes: list = []
    val = list(plan_pass(corpus, val_samples, evaluation.BATCH_EDGES, eval_shapes).batches())

    def batches_to_fit() -> list:
        drawn = draw_over_tasks(val_samples, SCALE_FIT_STRUCTURES, config.seed)
        plan = plan_pass(corpus, drawn, evaluation.BATCH_EDGES, eval_shapes)
        return [jax.device_put(batch) for batch in itertools.islice(plan.batches(), SCALE_FIT_BATCHES)]

    model, model_config, head = _make_model(config, recipe, parts, batches_to_fit, init.path, init.model)
    partition = trained_part.partition_of(config.train, config.freeze, model.params, model_config)
    if not config.quiet:
        say(trained_part.describe(partition, model.params, config.train))
    if partition is not None:
        model = _in_parts(model, partition, config.seed)
    total = config.max_steps or (SMALL_STEPS if config.budget == "small" else batches.total_steps)
    total = min(total, batches.total_steps)
    run = Finetuning(
        config=config,
        recipe=recipe,
        parts=parts,
        batches=batches,
        val=val,
        eval_shapes=eval_shapes,
        model=model,
        model_config=model_config,
        head=head,
        optim=_make_optim(recipe, batches, total),
        steps_per_epoch=batches.total_steps // recipe.epochs,
        total_steps=total,
        devices=devices,
        origin=origin,
        partition=partition,
    )
    return run.recomputed_if_asked(resolved)


def _opened(config: FinetuneConfig, init: start.Init, saved: Path | None) -> list[Part]:
    """The data sets, of which the network holds every element; says their reference energies."""
    with fleet.writer_first("data prepared"):
        parts = open_parts(config, init.model, init.path, saved)
    for part in parts:
        start.check_elements(part.task.store, init.model, part.name)
        if saved is None and not config.quiet and part.task.energies is not None:
            counts = part.task.store.element_counts(part.split.train[:COUNTED])
            say(finetune_report.reference_table(part.task.energies, counts, start.references_of(init.path)))
    return parts


def _in_parts(model: registry.PureModel, partition: Partition, seed: int) -> registry.PureModel:
    """The model as a function of what is trained of it; the rest is among its constants."""
    trained, frozen = partition.split(model.params, seed)
    return model._replace(
        params=trained,
        constants={"model": model.constants, "frozen": frozen},
        apply=partition.applied(model.apply),
        node_features=partition.applied(model.node_features),
    )


def _recipe(config: FinetuneConfig, part: Part, model: Config) -> Recipe:
    """The recipe of the first data set with what the backbone and the settings change of it."""
    given = {k: getattr(config, k) for k in _OF_RECIPE if getattr(config, k) is not None}
    own = registry.architecture_of(model).finetuning.changes(family_of(part.name))
    return dataclasses.replace(find_recipe(part.name, part.task.facts), **own | given)


def _smooth(config: FinetuneConfig, model: Config, parts: list[Part], recipe: Recipe, resolved: Path | None) -> str:
    """The choice of --smooth-quadruplets, where "auto" is "yes" for new potentials of files with gradient forces.

    Data sets of the paper keep its function, checkpoints keep theirs, and a run that is resumed keeps its own.
    """
    if config.smooth_quadruplets != "auto" or config.init != "scratch" or not hasattr(model, "smooth_quadruplets"):
        return config.smooth_quadruplets
    if resolved is not None and resolved.exists():
        return "yes" if json.loads(resolved.read_text())["model"].get("smooth_quadruplets") else "no"
    own = all(family_of(part.name) == "file" for part in parts)
    head = start.head_of(parts[0].task.facts, direct=_direct(config, recipe))
    return "yes" if own and head.kind == "gradient" else "auto"


def _direct(config: FinetuneConfig, recipe: Recipe) -> bool | None:
    """Whether a head predicts forces; None: as the data set says."""
    return recipe.direct_forces if config.forces == "auto" else config.forces == "direct"


def _recorded_origin(resolved: Path | None) -> dict | None:
    """What a run that is resumed noted when it started; the folder of --init may hold another run by now."""
    if resolved is None or not resolved.exists():
        return None
    record = json.loads(resolved.read_text())
    return record.get("origin") or {"upstream": record["upstream"]}  # an older run noted no more


def _make_optim(recipe: Recipe, batches: Batches, total: int) -> FinetuneOptim:
    """The schedule of a run of `total` steps; one cut short has its cosine and warm-up shortened."""
    whole = batches.total_steps
    per_epoch = whole // recipe.epochs
    return FinetuneOptim(
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_epochs * per_epoch * total // whole,
        cosine_steps=min((recipe.cosine_epochs or recipe.epochs) * per_epoch, total),
        final_lr=recipe.final_lr,
    )


def _samples(parts: list[Part], split: str, n: int | None = None) -> Samples:
    """The structures of one part of the split of every data set; at most `n` of each."""
    records = [getattr(part.split, split) for part in parts]
    drawn = records if n is None else [evaluation.draw(own, n) for own in records]
    each = [samples_of(i, own) for i, own in enumerate(drawn)]
    return Samples(*(np.concatenate(column) for column in zip(*each, strict=True)))


def _make_model(config: FinetuneConfig, recipe: Recipe, parts: list[Part], batches_to_fit: Callable[[], list],
                path: Path | None, dimensions: Config):
    """(model, dimensions, head): pretrained, or fresh; with scale factors fitted on `batches_to_fit()` where fresh.

    Raises:
      InputError: --refit-scales for a network that has no scale factors, or a checkpoint that does not fit.
    """
    task, precision = parts[0].task, Precision(matmul=config.precision)
    kept = {i: part.kept for i, part in enumerate(parts) if part.kept is not None}
    head = start.head_of(task.facts, recipe.dropout, _direct(config, recipe))
    head = dataclasses.replace(head, heads=len(parts), kept=len(kept))
    own = registry.architecture_of(dimensions)
    dimensions = own.finetuning.dimensions(dimensions, head)
    if config.init_mode == "reference":
        family, cutoff = family_of(parts[0].name), task.graph.cutoff
        dimensions = own.finetuning.as_released(dimensions, family, cutoff)
    module = registry.build_finetuned(dimensions, head, nnx.Rngs(config.seed), precision)
    if path is not None:
        notify = (lambda _: None) if config.quiet else say
        model = start.transfer(registry.split_model(module), path, config.init_mode, notify)
        units = {i: parts[i].task.std for i in kept}
        model = start.with_kept_heads(model, path, kept, units)
        if config.init_mode == "ema":
            model = start.with_fitting_head(model, path, head, task_record(parts[0], head, None), notify)
        nnx.update(module, model.params, model.constants)
    if config.refit_scales and own.scale_factors is None:
        raise InputError(f"{config.init} has no scale factors; leave --refit-scales out")
    if own.scale_factors is not None and (path is None or config.refit_scales):
        own.scale_factors.fit(module, batches_to_fit(), lambda _: None)
    return registry.split_model(module), dimensions, head

"""Fine-tuning on a downstream data set: data, batches, model, schedule, step, and the test at the end."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.data import loader, packing, shards
from jaxatoms.data.classes import compositions
from jaxatoms.data.corpus import Corpus, Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_task import (
    DownstreamTask,
    constants_record,
    family_of,
    open_downstream,
    with_constants,
)
from jaxatoms.data.passes import Pass, plan_pass
from jaxatoms.data.references import LinearReference
from jaxatoms.data.run_data import load_run_constants, load_run_split, save_run_data
from jaxatoms.data.splits import Split
from jaxatoms.data.subset import parse_count
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs import finetune_report, fleet, start
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.recipes import SMALL_STEPS, Recipe, find_recipe
from jaxatoms.runs.run import TrainingRun, continue_with, train_run
from jaxatoms.runs.session import has_checkpoint, say
from jaxatoms.training import finetuning, parallel
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.finetuning import FinetuneOptim, Plateau
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses.energy import absolute_error, cross_entropy
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.forces import norm_by_atom
from jaxatoms.training.losses.terms import Terms
from jaxatoms.training.step import make_train_step
from jaxatoms.types import InputError

ENERGY_PROBE = 512  # training structures that fix the zero of a potential's energy
SCALE_FIT_BATCHES, SCALE_FIT_STRUCTURES = 16, 320
_OF_RECIPE = ("epochs", "batch_size", "lr", "weight_decay")  # settings that override the recipe's


@dataclasses.dataclass(kw_only=True)
class Finetuning(TrainingRun):
    """A fine-tuning run before its first step; `plateau`, `reference` and `forward` change while it goes on."""

    command: ClassVar[str] = "experiments.finetune"
    recipe: Recipe
    task: DownstreamTask
    split: Split
    eval_shapes: list  # budgets of validation batches; the test's take them where they can
    head: HeadSpec
    origin: dict  # see `start.origin_record`
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    reference: LinearReference | None = None  # zero of the energy of a potential, as last fitted
    forward: Callable[..., Any] | None = None  # the model, jitted: validation and test share its compiled shapes

    @property
    def upstream(self) -> str:
        """What the model was pretrained on, or scratch."""
        return self.origin["upstream"]

    @property
    def corpus(self) -> Corpus:
        """The task with the graphs that the model reads."""
        return Corpus((self.task,), self.architecture.graphs)

    @property
    def terms(self) -> Terms:
        """The loss: of forces, classes or a scalar. The energy of a potential is not learnt."""
        if isinstance(self.task.facts, ForceData):
            return (norm_by_atom(self.recipe.force_coefficient),)
        n_class, weights = self.head.n_class, self.task.facts.class_weights
        return (cross_entropy(weights) if n_class else absolute_error(),)

    @property
    def dropout_seed(self) -> int | None:
        return self.config.seed if self.head.dropout else super().dropout_seed

    @property
    def accumulate(self) -> int:
        return self.config.accumulate

    @property
    def validate_every(self) -> int:
        return max(self.steps_per_epoch, self.total_steps // 10 if self.config.budget == "small" else 1)

    def module(self, config: Config) -> nnx.Module:
        policy = Precision(matmul=self.config.precision)
        return registry.build_finetuned(config, self.head, nnx.Rngs(self.config.seed), policy)

    def optimizer(self):
        """The recipe's optimiser, of the head alone where the backbone is frozen."""
        params, frozen = self.model.params, self.config.freeze_backbone
        trained = jax.tree_util.tree_map_with_path(
            lambda path, _: not frozen or str(getattr(path[0], "key", path[0])).startswith("out_"), params
        )
        rates = jax.tree.map(lambda _: 1.0, params)
        if self.recipe.layer_rates:
            rates = self.architecture.rate_multipliers(params, self.model_config)
        divisors = self.architecture.gradient_divisors(params, self.model_config)
        return finetuning.make_finetune_optimizer(self.optim, rates, divisors, trained)

    def make_step(self, apply, mesh=None, shardings=None):
        return make_train_step(
            apply,
            self.optimizer(),
            self.terms,
            ema_decay=self.config.ema_decay,
            dropout_seed=self.dropout_seed,
            mesh=mesh,
            shardings=shardings,
            accumulate=self.config.accumulate,
        )

    def step_arguments(self) -> dict[str, Any]:
        return {"plateau": jnp.float32(self.plateau.factor)}

    def make_evaluator(self, apply):
        forward, probe = jax.jit(apply), energy_probe(self)
        sums = jax.jit(functools.partial(error_sums, n_class=self.head.n_class))
        self.forward = forward

        def errors(params, constants, batch):
            return sums(forward(params, constants, batch), batch)

        def validated(params, constants) -> dict[str, float]:
            if probe is not None:
                self.reference = fit_energy_zero(self, probe, functools.partial(forward, params, constants))
            return validation_metrics(evaluate(params, constants, self.val, errors), self.task)

        return validated

    def learning_rate(self, step: int) -> float:
        """Of the head."""
        return float(self.optim.lr * self.plateau.factor * finetuning.rate_factor(self.optim, step, 1.0))

    def recall(self, meta: CheckpointMeta):
        """The plateau, and the zero of the energy that a run stopped with, until its next validation."""
        self.plateau = Plateau(**meta.plateau)
        self.reference = meta.tasks[0].reference if meta.tasks[0].energy_zero == "fitted" else None

    def after_validation(self, step: int, metrics: dict):
        if step > self.optim.cosine_steps:
            self.plateau = self.plateau.after(metrics["loss"], self.recipe.patience)

    def checkpoint_meta(self) -> CheckpointMeta:
        return CheckpointMeta(
            model=registry.model_record(self.model_config),
            head=self.head,
            precision=self.config.precision,
            tasks=(task_record(self, self.reference),),
            upstream=self.upstream,
            origin=self.origin,
            config=dataclasses.asdict(self.config),
            plateau=self.plateau._asdict(),
        )

    def resolved(self) -> dict:
        return {
            "model": registry.model_record(self.model_config),
            "head": dataclasses.asdict(self.head),
            "recipe": dataclasses.asdict(self.recipe),
            "optimizer": dataclasses.asdict(self.optim),
            "total_steps": self.total_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "budgets": [dataclasses.asdict(b) for b in self.batches.budgets],
            "facts": dataclasses.asdict(self.task.facts),
            "upstream": self.upstream,
            "origin": self.origin,
        }

    def summary(self, done: int) -> dict:
        return {
            "samples_seen": done * self.recipe.batch_size * self.config.accumulate,
            "downstream": self.config.downstream,
            "upstream": self.upstream,
            "origin": self.origin,
            "init": self.config.init,
            "split": {name: len(part) for name, part in self.split._asdict().items()},
            "head": dataclasses.asdict(self.head),
            "validation_mean_baseline": finetune_report.mean_baseline(self.val, self.task),
        }


def finetune(config: FinetuneConfig, run_dir: Path, resumed: bool):
    """A whole fine-tuning run with its test, and its closing words."""
    run = prepare(config, run_dir)
    trained = train_run(run, run_dir, resumed)
    if trained.done < run.total_steps:
        print(continue_with(run, run_dir, trained.done))
        return
    if trained.summary is not None or _lacks_test(run, run_dir):
        test_run(run, run_dir, trained.params, trained.constants)
    test, summary = (json.loads((run_dir / name).read_text()) for name in ("test.json", "summary.json"))
    print(evaluation.describe(test))
    print(f"\n{finetune_report.comparison(summary, test['last_ema'])}\nrun folder: {run_dir}")


def _lacks_test(run: Finetuning, run_dir: Path) -> bool:
    """Whether a resumed run that had ended has no test, or one of another size."""
    found, test = run_dir / "test.json", evaluation.draw(run.split.test, parse_count(run.config.test_samples))
    if found.is_file() and json.loads(found.read_text())["n_structure"] >= len(test):
        say(f"the run has made all its {run.total_steps} steps and its test: there is nothing to do")
        return False
    say(f"the run has made all its {run.total_steps} steps: only the test remains")
    return True


def prepare(config: FinetuneConfig, run_dir: Path | None) -> Finetuning:
    """Data, batches, model and schedule of a run."""
    resolved = run_dir / "resolved.json" if run_dir is not None and config.resume else None
    init = start.find_init(config.init, config.model)
    init = init._replace(model=registry.with_smooth_quadruplets(init.model, config.smooth_quadruplets))
    folder = None if run_dir is None else run_dir / "data"
    resumed = run_dir is not None and has_checkpoint(run_dir)
    origin = _recorded_origin(resolved) or init.origin
    if init.path is not None and not config.quiet and not config.resume:
        say(start.describe_origin(origin))
    task, split = open_data(config, init.model, folder if resumed else None)
    corpus = Corpus((task,), registry.architecture_of(init.model).graphs)
    start.check_elements(task.store, init.model, config.downstream)
    recipe = _recipe(config, task, init.model)
    if folder is not None and not resumed:
        save_run_data(folder, split, task.store, constants_record(task))
    devices = fleet.Fleet(parallel.make_mesh(config.devices), config.shard_optimizer)
    batches = _make_batches(config, recipe, corpus, samples_of(0, split.train), devices)
    n_val = config.val_samples or (2000 if config.budget == "small" else 10_000)
    val_samples = samples_of(0, evaluation.draw(split.val, n_val))
    eval_shapes: list = []
    val = list(plan_pass(corpus, val_samples, evaluation.BATCH_EDGES, eval_shapes).batches())

    def batches_to_fit() -> list:
        drawn = draw_over_tasks(val_samples, SCALE_FIT_STRUCTURES, config.seed)
        plan = plan_pass(corpus, drawn, evaluation.BATCH_EDGES, eval_shapes)
        return [jax.device_put(batch) for batch in itertools.islice(plan.batches(), SCALE_FIT_BATCHES)]

    model, model_config, head = _make_model(config, recipe, task, batches_to_fit, init.path, init.model)
    total = config.max_steps or (SMALL_STEPS if config.budget == "small" else batches.total_steps)
    total = min(total, batches.total_steps)
    run = Finetuning(
        config=config,
        recipe=recipe,
        task=task,
        split=split,
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
    )
    return run.recomputed_if_asked(resolved)


def _recipe(config: FinetuneConfig, task: DownstreamTask, model: Config) -> Recipe:
    """The data set's recipe with what the backbone and the settings change of it."""
    given = {k: getattr(config, k) for k in _OF_RECIPE if getattr(config, k) is not None}
    own = registry.architecture_of(model).finetuning.changes(family_of(config.downstream))
    return dataclasses.replace(find_recipe(config.downstream, task.facts), **own | given)


def _recorded_origin(resolved: Path | None) -> dict | None:
    """What a run that is resumed noted when it started; the folder of --init may hold another run by now."""
    if resolved is None or not resolved.exists():
        return None
    record = json.loads(resolved.read_text())
    return record.get("origin") or {"upstream": record["upstream"]}  # an older run noted no more


def _make_optim(recipe: Recipe, batches: loader.TrainBatches | shards.ShardedBatches, total: int) -> FinetuneOptim:
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


def open_data(
    config: FinetuneConfig, model: Config, saved: Path | None = None
) -> tuple[DownstreamTask, Split]:
    """The data set and split that a run's settings name, with the cutoff and neighbours that its model is given.

    Args:
      saved: folder of the run's own split and constants (`run_data`), which are taken where it is given.

    Raises:
      InputError: anything wrong with them, or data that have changed since the run began.
    """
    sizes = None if config.n_train is None or config.n_val is None else (config.n_train, config.n_val)
    own = registry.architecture_of(model)
    cutoff, max_neighbors = own.finetuning.graphs.get(family_of(config.downstream), (None, None))
    task, split = open_downstream(
        config.downstream,
        config.data_root,
        config.cache_dir,
        target=config.target,
        rule=config.split,
        sizes=sizes,
        cutoff=config.cutoff or cutoff,
        max_neighbors=config.max_neighbors or max_neighbors,
        split=None if saved is None else functools.partial(load_run_split, saved),
    )
    constants = None if saved is None else load_run_constants(saved)
    task = task if constants is None else with_constants(task, constants)
    if len(split.test) == 0:
        raise InputError(f"{config.downstream}: the split leaves no test structures; give more, or another --split")
    return task, split


def _make_batches(config: FinetuneConfig, recipe: Recipe, corpus, samples: Samples, devices: fleet.Fleet):
    """The run's batches, in parts where several devices or several batches make one update."""
    sizes = loader.measure(corpus, samples, 0.0, config.seed)
    batch_size = recipe.batch_size * config.accumulate
    steps = -(-len(samples.record) // batch_size) * recipe.epochs
    largest = loader.largest_structure(corpus, samples)
    shapes = config.batch_shapes or packing.shapes_worth_compiling(steps)
    budgets = packing.fixed_budgets(sizes, batch_size, largest, steps, config.seed, shapes)
    whole = loader.TrainBatches(
        corpus=corpus,
        samples=samples,
        budgets=budgets,
        epochs=recipe.epochs,
        seed=config.seed,
        edge_dropout=0.0,
        batch_size=batch_size,
        round_up=True,
    )
    edges = shards.expected_edges(sizes, corpus.n_node(samples))
    return devices.share(whole, sizes, edges, batch_edges=None, shapes=shapes, headroom=config.part_headroom,
                         accumulate=config.accumulate, alike=1)  # fmt: skip


def _make_model(config: FinetuneConfig, recipe: Recipe, task: DownstreamTask, batches_to_fit: Callable[[], list],
                path: Path | None, dimensions: Config):
    """(model, dimensions, head): pretrained, or fresh; with scale factors fitted on `batches_to_fit()` where fresh.

    Raises:
      InputError: --refit-scales for a network that has no scale factors, or a checkpoint that does not fit.
    """
    direct = recipe.direct_forces if config.forces == "auto" else config.forces == "direct"
    head, precision = start.head_of(task.facts, recipe.dropout, direct), Precision(matmul=config.precision)
    own = registry.architecture_of(dimensions)
    dimensions = own.finetuning.dimensions(dimensions, head)
    if config.init_mode == "reference":
        family, cutoff = family_of(config.downstream), task.graph.cutoff
        dimensions = own.finetuning.as_released(dimensions, family, cutoff)
    module = registry.build_finetuned(dimensions, head, nnx.Rngs(config.seed), precision)
    if path is not None:
        notify = (lambda _: None) if config.quiet else say
        model = start.transfer(registry.split_model(module), path, config.init_mode, notify)
        nnx.update(module, model.params, model.constants)
    if config.refit_scales and own.scale_factors is None:
        raise InputError(f"{config.init} has no scale factors; leave --refit-scales out")
    if own.scale_factors is not None and (path is None or config.refit_scales):
        own.scale_factors.fit(module, batches_to_fit(), lambda _: None)
    return registry.split_model(module), dimensions, head


def validation_metrics(sums: dict, task: DownstreamTask) -> dict[str, float]:
    """The data set's metric in the paper's unit, and "loss" (what best means)."""
    if "class_count" in sums:
        recall = float(np.mean(sums["class_right"] / np.maximum(sums["class_count"], 1)))
        return {"loss": 1 - recall, "balanced_accuracy": recall}
    if isinstance(task.facts, ForceData):
        mae = float(sums["force_error"].sum() / max(sums["force_count"].sum(), 1)) * task.facts.force_std
        return {"loss": mae, "force_mae_mev_per_angstrom": 1000 * mae}
    mae = float(sums["energy_error"].sum() / max(sums["energy_count"].sum(), 1)) * task.std
    return {"loss": mae, "mae": mae * evaluation.unit_of(task.facts)[1]}


def task_record(run: Finetuning, reference: LinearReference | None) -> TaskRecord:
    """What prediction needs of the head.

    Gradient forces fix the unit of the energy: it is that of the forces times A, not the data set's energy_std. Its
    zero, which forces say nothing about, is `reference`, fitted to training energies; None where there are none.
    """
    facts, task, kind = run.task.facts, run.task, run.head.kind
    seen = task.store.elements(run.split.train)
    given = getattr(facts, "references", {})
    coeff = np.array([float(given.get(z, 0.0)) if own else 0.0 for z, own in enumerate(seen)])
    record = TaskRecord(
        name=run.config.downstream,
        energy_std=task.std,
        energy_mean=task.mean,
        force_std=getattr(facts, "force_std", None),
        reference=LinearReference(coeff, seen),
        cutoff=facts.graph.cutoff,
        max_neighbors=facts.graph.max_neighbors,
        conditional=facts.graph.conditional,
        target=getattr(facts, "column", "forces"),
        labels={"gradient": ("energy", "forces"), "direct": ("forces",), "scalar": ("energy",)}[kind],
    )
    if kind != "gradient":
        return record
    assert record.force_std is not None
    record = dataclasses.replace(record, energy_std=record.force_std, energy_mean=0.0, energy_zero="unknown")
    if reference is None:
        return record
    return dataclasses.replace(record, reference=dataclasses.replace(reference, seen=seen), energy_zero="fitted")


def energy_probe(run: Finetuning) -> Pass | None:
    """The training structures whose energies fix the zero of a potential's: all compositions alike, at most 512."""
    store, train = run.task.store, run.split.train
    train = train[np.isfinite(store.energy[train])]
    if run.head.kind != "gradient" or len(train) == 0:
        return None
    _, composition = np.unique(compositions(store, train), return_inverse=True)
    drawn = draw_over_tasks(Samples(composition.astype(np.int32), train), ENERGY_PROBE, run.config.seed)
    return plan_pass(run.corpus, samples_of(0, np.sort(drawn.record)), evaluation.BATCH_EDGES, run.eval_shapes)


def fit_energy_zero(run: Finetuning, probe: Pass, predict: Callable) -> LinearReference:
    """Energies per element, eV, that are least squares of what the labels are above the potential.

    Args:
      probe: of `energy_probe`.
      predict: batch -> ModelOutput.

    A potential trained on forces is right up to a constant of each composition. Constants per element fit those of
    the training compositions, and say which others they fix (`LinearReference.determines`).
    """
    task, counts, rest = run.task, [], []
    assert isinstance(task.facts, ForceData)
    for group, batch in zip(probe.groups, probe.batches(), strict=True):
        records = probe.samples.record[group]
        energy = np.asarray(predict(batch).energy, np.float64)[: len(records)] * task.facts.force_std
        counts.append(task.store.element_counts(records))
        rest.append(task.store.energy[records] - energy)
    return LinearReference.solve(np.concatenate(counts).astype(np.float64), np.concatenate(rest))


def test_run(run: Finetuning, run_dir: Path, last_params, constants) -> dict:
    """Errors on the test split of the last and of the best averaged weights; writes test.json and plots."""
    assert run.forward is not None
    best, _ = restore(run_dir / "checkpoints" / "best", {"ema": last_params})
    test = evaluation.draw(run.split.test, parse_count(run.config.test_samples))
    weights = {"last_ema": last_params, "best_ema": best["ema"]}
    forwards = {name: functools.partial(run.forward, params, constants) for name, params in weights.items()}
    return evaluation.assess(
        run_dir, "test", test, len(run.split.test), forwards, run.task, run.architecture.graphs, run.eval_shapes
    )

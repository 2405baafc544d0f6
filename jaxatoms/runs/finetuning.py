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

from jaxatoms.data.corpus import Corpus, Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream import ForceData, PropertiesData, ScalarData
from jaxatoms.data.downstream_task import (
    DownstreamTask,
    family_of,
)
from jaxatoms.data.mixture import short_names
from jaxatoms.data.passes import Pass, plan_pass
from jaxatoms.data.references import LinearReference
from jaxatoms.data.subset import parse_count
from jaxatoms.data.task_record import PropertyRecord, TaskRecord
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import CheckpointMeta, read_checkpoint_meta
from jaxatoms.io import write_json
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs import finetune_report, fleet, start, trained_part
from jaxatoms.runs.batches import Batches, make_batches, samples_seen
from jaxatoms.runs.energy_zero import (
    energy_probe,
    fit_energy_zero,
    learns_energy,
    shift_of,
    shifted,
    with_shift,
)
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.finetune_data import Part, open_parts, save_parts
from jaxatoms.runs.linear_probe import Probe
from jaxatoms.runs.recipes import SMALL_STEPS, Recipe, find_recipe
from jaxatoms.runs.run import TrainingRun, continue_with, train_run
from jaxatoms.runs.session import has_checkpoint, say
from jaxatoms.training import finetuning, parallel
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.finetuning import FinetuneOptim, Plateau
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses.energy import absolute_error, cross_entropy
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.potential import potential_terms
from jaxatoms.training.losses.properties import property_terms
from jaxatoms.training.losses.tasks import of_task
from jaxatoms.training.losses.terms import Terms, label_sums
from jaxatoms.training.partial import Partition
from jaxatoms.training.step import TrainState, make_train_step
from jaxatoms.types import InputError

BEFORE = 2000  # test structures at most on which the start of a run is judged
COUNTED = 1000  # training structures over which reference energies of checkpoint and data are compared
SCALE_FIT_BATCHES, SCALE_FIT_STRUCTURES = 16, 320
_OF_RECIPE = ("epochs", "batch_size", "lr", "weight_decay")  # settings that override the recipe's


@dataclasses.dataclass(kw_only=True)
class Finetuning(TrainingRun):
    """A fine-tuning run before its first step; `plateau`, `references` and `forward` change while it goes on."""

    command: ClassVar[str] = "experiments.finetune"
    recipe: Recipe
    parts: list[Part]
    eval_shapes: list  # budgets of validation batches; the test's take them where they can
    head: HeadSpec
    origin: dict  # see `start.origin_record`
    partition: Partition | None = None  # what is trained; None: all of it
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    # Zero of the energy of each potential, as last fitted.
    references: dict[int, LinearReference] = dataclasses.field(default_factory=dict)
    forward: Callable[..., Any] | None = None  # the model, jitted: validation and test share its compiled shapes

    @property
    def upstream(self) -> str:
        """What the model was pretrained on, or scratch."""
        return self.origin["upstream"]

    @property
    def corpus(self) -> Corpus:
        """The data sets with the graphs that the model reads."""
        return corpus_of(self.parts, self.model_config)

    @property
    def task(self) -> DownstreamTask:
        """The first data set, whose recipe is followed."""
        return self.parts[0].task

    @property
    def own(self) -> list[int]:
        """Numbers of the data sets that are learnt, and not replayed."""
        return [i for i, part in enumerate(self.parts) if part.kept is None]

    @property
    def terms(self) -> Terms:
        """The loss: of a potential, of several properties, of classes or of a scalar."""
        if isinstance(self.task.facts, ForceData):
            return potential_terms(self.task.facts.weights or {"forces": self.recipe.force_coefficient})
        if isinstance(self.task.facts, PropertiesData):
            return property_terms(self.task.facts.learnt, self.task.facts.reductions, self.task.facts.weights)
        n_class, weights = self.head.n_class, self.task.facts.class_weights
        return (cross_entropy(weights) if n_class else absolute_error(),)

    @property
    def dropout_seed(self) -> int | None:
        return self.config.seed if self.head.dropout else super().dropout_seed

    @property
    def validate_every(self) -> int:
        return max(self.steps_per_epoch, self.total_steps // 10 if self.config.budget == "small" else 1)

    def module(self, config: Config) -> nnx.Module:
        policy = Precision(matmul=self.config.precision)
        return registry.build_finetuned(config, self.head, nnx.Rngs(self.config.seed), policy)

    def optimizer(self):
        """The recipe's optimiser, of what is trained."""
        params = self._whole(self.model.params, self.model.constants)
        rates = jax.tree.map(lambda _: 1.0, params)
        if self.recipe.layer_rates:
            rates = self.architecture.rate_multipliers(params, self.model_config)
        divisors = self.architecture.gradient_divisors(params, self.model_config)
        if self.partition is not None:
            rates = self.partition.of_trained(rates)
            divisors = None if divisors is None else self.partition.of_trained(divisors)
        return finetuning.make_finetune_optimizer(self.optim, rates, divisors)

    def _whole(self, params: Any, constants: Any) -> Any:
        """The tree of all parameters, of shapes."""
        if self.partition is None:
            return jax.eval_shape(lambda: params)
        return jax.eval_shape(self.partition.merged, params, constants["frozen"])

    @property
    def n_parameters(self) -> int:
        return registry.count_params(self._whole(self.model.params, self.model.constants))

    def applied(self, apply):
        return apply if self.partition is None else self.partition.applied(apply)

    def saved(self, state, constants):
        """Of a part that is trained, whole parameters for all who read checkpoints, and what it is resumed from."""
        if self.partition is None:
            return super().saved(state, constants)
        both = {name: self._merge(getattr(state, name), constants["frozen"]) for name in ("params", "ema")}
        return {**self.to_load(state, constants), **both}

    @functools.cached_property
    def _merge(self) -> Callable:
        """(trained, frozen) -> all parameters; compiled once for all checkpoints of a run."""
        assert self.partition is not None
        merged = self.partition.merged
        return jax.jit(lambda trained, frozen: merged(trained.tree(), frozen))

    def to_load(self, state, constants):
        if self.partition is None:
            return super().to_load(state, constants)
        trained = {"params": state.params, "ema": state.ema}
        parts = {"constants": constants["model"], "frozen": constants["frozen"]}
        return {"step": state.step, "opt_state": state.opt_state, "trained": trained, **parts}

    def loaded(self, arrays):
        if self.partition is None:
            return super().loaded(arrays)
        state = TrainState(arrays["step"], **arrays["trained"], opt_state=arrays["opt_state"])
        return state, {"model": arrays["constants"], "frozen": arrays["frozen"]}

    def averaged(self, checkpoint: Path, like: Any) -> Any:
        """The averaged weights of a checkpoint of the run, as the run trains them; `like`: arrays of their shapes."""
        if self.partition is None:
            return restore(checkpoint, {"ema": like})[0]["ema"]
        return restore(checkpoint, {"trained": {"params": like, "ema": like}})[0]["trained"]["ema"]

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
            steps_per_call=self.config.steps_per_call,
        )

    def step_arguments(self) -> dict[str, Any]:
        return {"plateau": jnp.float32(self.plateau.factor)}

    def make_evaluator(self, apply):
        forward, terms, n_class = jax.jit(apply), self.terms, self.head.n_class
        probes = {i: probe for i in range(len(self.parts)) if (probe := self._energy_probe(i)) is not None}
        self.forward = forward

        @jax.jit
        def sums(out, batch, shifts):
            each = [of_task(batch, i) if len(shifts) > 1 else batch for i in range(len(shifts))]
            outs = [shifted(out, batch, shift) for shift in shifts]
            pairs = zip(outs, each, strict=True)
            return [error_sums(out, own, n_class=n_class) | label_sums(terms, out, own) for out, own in pairs]

        def validated(params, constants) -> dict[str, float]:
            predict = functools.partial(forward, params, constants)
            self.references = {i: fit_energy_zero(probe, predict) for i, probe in probes.items()}
            shifts = self.shifts
            errors = lambda params, constants, batch: sums(forward(params, constants, batch), batch, shifts)  # noqa: E731
            return self._metrics(evaluate(params, constants, self.val, errors))

        return validated

    @property
    def shifts(self) -> list[np.ndarray]:
        """What the fitted zeros add to energies that are learnt, of every data set."""
        return [shift_of(part.task, self.references.get(i)) for i, part in enumerate(self.parts)]

    def _metrics(self, sums: list[dict]) -> dict[str, float]:
        """Validation metrics; of several data sets each one's by name, and the mean loss of those that are learnt."""
        pairs = zip(sums, self.parts, strict=True)
        found = [finetune_report.validation_metrics(own, part.task, self.terms) for own, part in pairs]
        if len(found) == 1:
            return found[0]
        named = {f"{measure}/{name}": value for name, metrics in zip(self.labels, found, strict=True)
                 for measure, value in metrics.items()}  # fmt: skip
        return {"loss": float(np.mean([found[i]["loss"] for i in self.own]))} | named

    @property
    def labels(self) -> list[str]:
        """Short names of the data sets, for metrics."""
        return short_names([part.name for part in self.parts])

    def _energy_probe(self, index: int) -> Pass | None:
        """The structures whose energies fix the zero of a potential."""
        if self.head.kind != "gradient" and not self.head.energy:
            return None
        train = self.parts[index].split.train
        return energy_probe(self.corpus, index, train, self.config.seed, self.eval_shapes)

    def before_training(self, folder: Path, params, constants):
        """The errors of the start on the test splits, to be compared with those of the end.

        Heads of a pretrained network are new, so that a linear function of its features stands beside them.
        """
        assert self.forward is not None
        forwards = [with_shift(self.forward, params, constants, shift) for shift in self.shifts]
        wanted = parse_count(self.config.test_samples)
        n = BEFORE if wanted == "all" else min(int(wanted), BEFORE)
        tests = [evaluation.draw(part.split.test, n) for part in self.parts]
        found = [
            evaluation.errors(forward, self.corpus, i, test, self.eval_shapes)
            for i, (forward, test) in enumerate(zip(forwards, tests, strict=True))
        ]
        if self.config.init != "scratch":
            probe = Probe(self._invariants, (params, constants), self.corpus, self.val, self.eval_shapes)
            for i, (test, own) in enumerate(zip(tests, found, strict=True)):
                own["linear_probe"] = probe.errors(i, self.parts[i].split.train, test)
        write_json(folder / "test_before.json", found)

    def _invariants(self, params, constants, batch) -> jax.Array:
        """[n_node, d] the node features that do not turn with the structure."""
        features = self.model.node_features(params.tree(), constants, batch)
        width = self.architecture.invariant_width
        return features if width is None else features[:, : width(self.model_config)]

    def learning_rate(self, step: int) -> float:
        """Of the head."""
        return float(self.optim.lr * self.plateau.factor * finetuning.rate_factor(self.optim, step, 1.0))

    def recall(self, meta: CheckpointMeta):
        """The plateau, and the zero of the energy that a run stopped with, until its next validation."""
        self.plateau = Plateau(**meta.plateau)
        pairs = zip(meta.tasks, self.parts, strict=True)
        self.references = {i: record.reference for i, (record, part) in enumerate(pairs)
                           if record.energy_zero == "fitted" or learns_energy(part.task)}  # fmt: skip

    def after_validation(self, step: int, metrics: dict):
        if step > self.optim.cosine_steps:
            self.plateau = self.plateau.after(metrics["loss"], self.recipe.patience)

    def checkpoint_meta(self) -> CheckpointMeta:
        return CheckpointMeta(
            model=registry.model_record(self.model_config),
            head=self.head,
            precision=self.config.precision,
            tasks=tuple(task_record(p, self.head, self.references.get(i)) for i, p in enumerate(self.parts)),
            upstream=self.upstream,
            origin=self.origin,
            config=dataclasses.asdict(self.config),
            plateau=self.plateau._asdict(),
        )

    def resolved(self) -> dict:
        return {
            "model": registry.model_record(self.model_config),
            "head": self.head.to_json(),
            "recipe": dataclasses.asdict(self.recipe),
            "optimizer": dataclasses.asdict(self.optim),
            "total_steps": self.total_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "budgets": [dataclasses.asdict(b) for b in self.batches.budgets],
            "facts": dataclasses.asdict(self.task.facts),
            "other_facts": [dataclasses.asdict(part.task.facts) for part in self.parts[1:]],
            "upstream": self.upstream,
            "origin": self.origin,
        }

    def summary(self, done: int) -> dict:
        return {
            "samples_seen": samples_seen(self.batches, self.config, self.recipe.batch_size, done),
            "downstream": self.config.downstream,
            "upstream": self.upstream,
            "origin": self.origin,
            "init": self.config.init,
            "split": _sizes(self.parts[0]),
            "other_splits": {label: _sizes(p) for label, p in zip(self.labels[1:], self.parts[1:], strict=True)},
            "head": self.head.to_json(),
            "validation_mean_baselines": self._mean_baselines(),
            "data_sets": self.labels,
        }


    def _mean_baselines(self) -> dict[str, float]:
        """The errors of predicting the mean of the validation labels; none of several data sets with a mean each."""
        return finetune_report.mean_baselines(self.val, self.task) if len(self.parts) == 1 else {}


def finetune(config: FinetuneConfig, run_dir: Path, resumed: bool):
    """A whole fine-tuning run with its test, and its closing words."""
    run = prepare(config, run_dir)
    trained = train_run(run, run_dir, resumed)
    fleet.wait_for_all("checkpoints written")
    if trained.done < run.total_steps:
        print(continue_with(run, run_dir, trained.done))
        return
    if trained.summary is not None or _lacks_test(run, run_dir):
        test_run(run, run_dir, trained.params, trained.constants)
    fleet.wait_for_all("test written")
    _closing_words(run, run_dir)


def _closing_words(run: Finetuning, run_dir: Path):
    """The errors of the test, and a table of those before and after training."""
    names = [evaluation.result_name("test", i) for i in range(len(run.parts))]
    tests = [json.loads((run_dir / name).read_text()) for name in names]
    print("\n".join(map(evaluation.describe, tests)))
    summary = json.loads((run_dir / "summary.json").read_text())
    before = run_dir / "test_before.json"  # not there in runs of earlier versions
    starts = json.loads(before.read_text()) if before.exists() else [None] * len(tests)
    ends = [test["last_ema"] for test in tests]
    print(f"\n{finetune_report.comparison(summary, starts, ends)}\nrun folder: {run_dir}")


def _lacks_test(run: Finetuning, run_dir: Path) -> bool:
    """Whether a resumed run that had ended lacks a test of any data set, or has a smaller one."""
    wanted = [evaluation.draw(part.split.test, parse_count(run.config.test_samples)) for part in run.parts]
    found = [run_dir / evaluation.result_name("test", i) for i in range(len(wanted))]
    pairs = zip(found, wanted, strict=True)
    if all(file.is_file() and json.loads(file.read_text())["n_structure"] >= len(test) for file, test in pairs):
        say(f"the run has made all its {run.total_steps} steps and its test: there is nothing to do")
        return False
    say(f"the run has made all its {run.total_steps} steps: only the test remains")
    return True


def prepare(config: FinetuneConfig, run_dir: Path | None) -> Finetuning:
    """Data, batches, model and schedule of a run."""
    resolved = run_dir / "resolved.json" if run_dir is not None and config.resume else None
    init = start.find_init(config.init, config.model)
    folder = None if run_dir is None else run_dir / "data"
    resumed = run_dir is not None and has_checkpoint(run_dir)
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
        if not config.quiet and part.task.energies is not None:
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


def corpus_of(parts: list[Part], model: Config) -> Corpus:
    """The data sets with the graphs that the model reads."""
    return Corpus(tuple(part.task for part in parts), registry.architecture_of(model).graphs)


def _samples(parts: list[Part], split: str, n: int | None = None) -> Samples:
    """The structures of one part of the split of every data set; at most `n` of each."""
    records = [getattr(part.split, split) for part in parts]
    drawn = records if n is None else [evaluation.draw(own, n) for own in records]
    each = [samples_of(i, own) for i, own in enumerate(drawn)]
    return Samples(*(np.concatenate(column) for column in zip(*each, strict=True)))


def _sizes(part: Part) -> dict[str, int]:
    return {name: len(records) for name, records in part.split._asdict().items()}


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


def task_record(part: Part, head: HeadSpec, reference: LinearReference | None) -> TaskRecord:
    """What prediction needs of the head of one data set.

    Gradient forces fix the unit of the energy: it is that of the forces times A, not the data set's energy_std. Its
    zero is `reference`, fitted to training energies; None where there are none.
    """
    task, facts = part.task, part.task.facts
    seen = task.store.elements(part.split.train)
    several = isinstance(facts, PropertiesData)
    given = LinearReference(np.zeros(len(seen)), seen) if several else _given(facts, seen)
    record = TaskRecord(
        name=part.name,
        energy_std=task.std,
        energy_mean=task.mean,
        force_std=getattr(facts, "force_std", None),
        reference=given,
        cutoff=facts.graph.cutoff,
        max_neighbors=facts.graph.max_neighbors,
        conditional=facts.graph.conditional,
        target=getattr(facts, "column", "forces"),
        labels=_predicted(head),
        properties=_property_records(facts) if isinstance(facts, PropertiesData) else (),
    )
    if learns_energy(task):
        fitted = record.reference if reference is None else dataclasses.replace(record.reference, coeff=reference.coeff)
        return dataclasses.replace(record, reference=fitted)
    if head.kind != "gradient":
        return record
    assert record.force_std is not None
    record = dataclasses.replace(record, energy_std=record.force_std, energy_mean=0.0, energy_zero="unknown")
    if reference is None:
        return record
    return dataclasses.replace(record, reference=_of_trained(reference, seen), energy_zero="fitted")


def _given(facts: ForceData | ScalarData, seen: np.ndarray) -> LinearReference:
    """What each atom contributes by the data set's facts, of the elements `seen` [121]."""
    coeff = np.array([float(facts.references.get(z, 0.0)) if own else 0.0 for z, own in enumerate(seen)])
    return LinearReference(coeff, seen, None if facts.span is None else np.array(facts.span))


def _property_records(facts: PropertiesData) -> tuple[PropertyRecord, ...]:
    return tuple(
        PropertyRecord(part.column, part.reduction, float(part.mean or 0.0), float(part.std or 1.0), part.unit,
                       {int(z): float(value) for z, value in part.references.items()})
        for part in facts.parts
    )  # fmt: skip


def _of_trained(reference: LinearReference, seen: np.ndarray) -> LinearReference:
    """A fitted zero for all elements that were trained; energies with one outside the fit are not known."""
    span = reference.span
    if span is None and (seen & ~reference.seen).any():
        span = np.eye(len(seen))[reference.seen]
    return LinearReference(reference.coeff, seen, span)


def _predicted(head: HeadSpec) -> tuple[str, ...]:
    """Kinds of labels that a head predicts."""
    if head.kind == "properties":
        return ()
    if head.kind == "direct":
        return ("energy", "forces") if head.energy else ("forces",)
    return ("energy", "forces") if head.kind == "gradient" else ("energy",)


def test_run(run: Finetuning, run_dir: Path, last_params, constants):
    """Errors on the test splits of the last and of the best averaged weights; writes test.json and plots."""
    assert run.forward is not None
    checkpoint = run_dir / "checkpoints" / "best"
    records = {"last_ema": run.checkpoint_meta().tasks, "best_ema": read_checkpoint_meta(checkpoint).tasks}
    weights = {"last_ema": last_params, "best_ema": run.averaged(checkpoint, last_params)}
    folder = fleet.output_dir(run_dir)
    for i, part in enumerate(run.parts):
        forwards = {name: with_shift(run.forward, params, constants, shift_of(part.task, records[name][i].reference))
                    for name, params in weights.items()}  # fmt: skip
        test = evaluation.draw(part.split.test, parse_count(run.config.test_samples))
        evaluation.assess(folder, "test", test, len(part.split.test), forwards, run.corpus, i, run.eval_shapes)

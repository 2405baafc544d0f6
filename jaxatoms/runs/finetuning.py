"""A fine-tuning run: its loss, optimiser, step, validation and checkpoints."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.data.corpus import Corpus
from jaxatoms.data.downstream import ForceData, PropertiesData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.mixture import short_names
from jaxatoms.data.passes import Pass
from jaxatoms.data.references import LinearReference
from jaxatoms.data.subset import parse_count
from jaxatoms.inference import evaluation
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.io import finite, write_json
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs import finetune_report
from jaxatoms.runs.batches import samples_seen
from jaxatoms.runs.energy_zero import energy_probe, fit_energy_zero, learns_energy, shift_of, shifted, with_shift
from jaxatoms.runs.finetune_data import Part, corpus_of
from jaxatoms.runs.finetune_record import task_record
from jaxatoms.runs.linear_probe import Probe
from jaxatoms.runs.recipes import Recipe
from jaxatoms.runs.run import TrainingRun
from jaxatoms.training import finetuning
from jaxatoms.training.checkpoint import restore
from jaxatoms.training.finetuning import Plateau
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses.energy import absolute_error, cross_entropy
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.potential import potential_terms
from jaxatoms.training.losses.properties import property_terms
from jaxatoms.training.losses.tasks import of_task
from jaxatoms.training.losses.terms import Terms, label_sums
from jaxatoms.training.partial import Partition
from jaxatoms.training.step import TrainState, make_train_step

BEFORE = 2000  # test structures at most on which the start of a run is judged


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
        write_json(folder / "test_before.json", finite(found))

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


def _sizes(part: Part) -> dict[str, int]:
    return {name: len(records) for name, records in part.split._asdict().items()}

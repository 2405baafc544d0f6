"""Pretraining on one or several upstream data sets under a budget C = N x E: data, batches, model, schedule, step."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxatoms.data import loader, mixture, tasks
from jaxatoms.data.corpus import draw_over_tasks
from jaxatoms.data.subset import parse_count
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.models import registry
from jaxatoms.models.architecture import Config
from jaxatoms.models.common.precision import Precision
from jaxatoms.runs import fleet, start
from jaxatoms.runs.batches import make_batches, samples_seen
from jaxatoms.runs.continued import Continued
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.runs.run import TrainingRun, continue_with, train_run
from jaxatoms.runs.session import say
from jaxatoms.training import parallel
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses.pretraining import LossScales, pretraining_terms
from jaxatoms.training.losses.terms import Terms, mean_loss
from jaxatoms.training.optim import OptimConfig, make_optimizer, warmup_cosine
from jaxatoms.training.step import make_eval_step, make_train_step
from jaxatoms.types import InputError

SCALE_FIT_BATCHES = 16


@dataclasses.dataclass(kw_only=True)
class Pretraining(TrainingRun):
    """A pretraining run before its first step."""

    command: ClassVar[str] = "experiments.pretrain"
    data: list[tasks.TaskData]  # one per task
    origin: Mapping | None = None  # of a run that goes on from a checkpoint, see `start.origin_record`

    @property
    def validate_every(self) -> int:
        return max(1, round(self.config.val_every * self.steps_per_epoch))

    @property
    def loss_scales(self) -> LossScales:
        """The weights of energy and forces of every task."""
        return loss_scales_of(self.config, self.data)

    @property
    def terms(self) -> Terms:
        """The loss."""
        return pretraining_terms(self.loss_scales, self.config.force_atoms == "free")

    @property
    def n_train(self) -> int:
        """Training structures of all tasks."""
        return sum(len(d.train) for d in self.data)

    @property
    def left_out(self) -> int:
        """How many of the N x E visits of structures no step makes, since batches are whole (fixed mode only)."""
        config = self.config
        whole = self.batches.total_steps * config.batch_size * config.accumulate
        return self.n_train * config.epochs - whole if config.batch_edges is None else 0

    def module(self, config: Config) -> nnx.Module:
        return registry.make_model(config, len(self.data), self.config.seed, precision_of(self.config))

    def optimizer(self):
        divisors = self.architecture.gradient_divisors(self.model.params, self.model_config)
        return make_optimizer(self.optim, self.total_steps, divisors)

    def make_step(self, apply, mesh=None, shardings=None):
        config = self.config
        return make_train_step(
            apply,
            self.optimizer(),
            self.terms,
            ema_decay=self.optim.ema_decay,
            edge_dropout=config.edge_dropout,
            dropout_seed=self.dropout_seed,
            mesh=mesh,
            shardings=shardings,
            accumulate=config.accumulate,
            steps_per_call=config.steps_per_call,
        )

    def make_evaluator(self, apply):
        devices, val = self.devices, self.devices.grouped(self.val)
        terms, data = self.terms, self.data
        step = make_eval_step(apply, terms, len(data), devices.mesh)
        return lambda params, constants: physical(evaluate(params, constants, val, step, devices.place), terms, data)

    def learning_rate(self, step: int) -> float:
        return float(warmup_cosine(self.optim, self.total_steps)(step))

    def checkpoint_meta(self) -> CheckpointMeta:
        return CheckpointMeta(
            model=registry.model_record(self.model_config),
            precision=self.config.precision,
            tasks=tuple(tasks.task_record(d.task) for d in self.data),
            config=dataclasses.asdict(self.config),
            seed=self.config.seed,
            budget=budget_record(self),
            origin=self.origin,
        )

    def resolved(self) -> dict:
        return {
            "model": registry.model_record(self.model_config),
            "optimizer": dataclasses.asdict(self.optim),
            "total_steps": self.total_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "budgets": [dataclasses.asdict(b) for b in self.batches.budgets],
            "tasks": [tasks.task_record(d.task).to_json() for d in self.data],
            "matmul_precision": self.config.precision,
            "origin": self.origin,
        }

    def summary(self, done: int) -> dict:
        return {
            "samples_seen": samples_seen(self.batches, self.config, self.config.batch_size, done),
            "budget": budget_record(self) | {"left_out": self.left_out},
            "n_per_task": {d.task.name: len(d.train) for d in self.data},
            "upstream": self.config.upstream,
            "model": self.config.model,
            "origin": self.origin,
            "mean_baseline_force_mae_mev_per_angstrom": mean_force_baseline(self.val, self.data),
            "mean_baseline_all_atom_force_mae_mev_per_angstrom": mean_force_baseline(self.val, self.data, False),
        }


def precision_of(config: PretrainConfig) -> Precision:
    """How the run multiplies."""
    return Precision(matmul=config.precision)


def loss_scales_of(config: PretrainConfig, data: list[tasks.TaskData]) -> LossScales:
    """The weights of energy and forces of every task."""
    if config.loss_scales == "jmp":
        return LossScales(jnp.ones(len(data)), jnp.array([d.spec.jmp_force_scale for d in data]))
    return LossScales(*(jnp.array([getattr(d.spec, name) for d in data]) for name in ("energy_scale", "force_scale")))


def pretrain(config: PretrainConfig, run_dir: Path, resumed: bool):
    """A whole pretraining run, with its closing words."""
    run = prepare(config, run_dir, fit=not resumed)
    if not config.quiet and run.left_out:
        say(f"{run.left_out} of the {run.n_train * config.epochs:,} visits of structures are left out: they do not "
            "fill a batch of the last epoch")
    trained = train_run(run, run_dir, resumed)
    if trained.summary is None:
        say(f"the run has made all its {trained.done} steps: there is nothing to do\nrun folder: {run_dir}")
    elif trained.done < run.total_steps:
        print(continue_with(run, run_dir, trained.done))
    elif not config.quiet:
        _closing_words(run_dir, run, trained.summary)


def prepare(
    config: PretrainConfig, run_dir: Path | None, fit: bool = False, shapes_only: bool = False
) -> Pretraining:
    """Data, batches, model and schedule of a run.

    Args:
      fit: scale factors are fitted (or loaded).
      shapes_only: for a step that is compiled and not run: the model holds shapes instead of arrays.

    Raises:
      InputError: kernels for a network that has none, or elements that it does not know.
    """
    with fleet.writer_first("data prepared"):
        data = prepare_data(config, run_dir, resumed=not fit)
    resumed = run_dir is not None and not fit
    init = None if config.init is None or resumed else start.find_init(config.init, config.model)
    model_config = _dimensions(config, init, data, run_dir)
    model_config = registry.with_smooth_quadruplets(model_config, config.smooth_quadruplets)
    own = registry.architecture_of(model_config)
    if config.kernels not in ("auto", "xla") and not own.has_kernels:
        raise InputError(f"--kernels {config.kernels}: {own.name} has no layer with kernels; leave it out")
    for d in data:
        start.check_elements(d.task.store, model_config, d.task.name, np.concatenate([d.train, d.val]))
    corpus, train_samples, val_samples = tasks.make_corpus(data, own.graphs)
    devices = fleet.Fleet(parallel.make_mesh(config.devices), config.shard_optimizer)
    batches = make_batches(config, corpus, train_samples, devices, epochs=config.epochs,
                           batch_size=config.batch_size, edge_dropout=config.edge_dropout)  # fmt: skip
    make = lambda: registry.make_model(model_config, len(data), config.seed, precision_of(config))  # noqa: E731
    model = nnx.eval_shape(make) if shapes_only else make()
    if init is not None and not shapes_only:
        start_from(model, model_config, init, data, (lambda _: None) if config.quiet else say)
    elif fit and own.scale_factors is not None:
        drawn = draw_over_tasks(val_samples, SCALE_FIT_BATCHES * config.batch_size, config.seed)
        batches_to_fit = loader.eval_batches(corpus, drawn, min(config.batch_size, len(drawn.record)))
        set_scale_factors(config, model, model_config, batches_to_fit)
    total = batches.total_steps if config.max_steps is None else min(batches.total_steps, config.max_steps)
    run = Pretraining(
        config=config,
        data=data,
        batches=batches,
        val=loader.eval_batches(corpus, val_samples, min(config.batch_size, len(val_samples.record))),
        model=registry.split_model(model),
        model_config=model_config,
        optim=_schedule(config, total, own.ema_decay),
        total_steps=total,
        steps_per_epoch=max(1, batches.total_steps // config.epochs),
        devices=devices,
        origin=_origin(init, run_dir),
    )
    return run.recomputed_if_asked(None if run_dir is None or fit else run_dir / "resolved.json")


def _dimensions(config: PretrainConfig, init: start.Init | None, data: list[tasks.TaskData], run_dir: Path | None):
    """The network's dimensions: as named, or those of the checkpoint to go on from, with room for the elements."""
    if config.init is None:
        return registry.find_config(config.model)
    if init is None:  # resumed: what the run itself noted
        assert run_dir is not None
        return registry.config_from_record(json.loads((run_dir / "resolved.json").read_text())["model"])
    tables = registry.architecture_of(init.model).element_tables
    return init.model if tables is None else tables.enlarged(init.model, int(np.flatnonzero(_elements(data)).max()))


def _elements(data: list[tasks.TaskData]) -> np.ndarray:
    """[121] bool: elements of the training and validation structures."""
    return np.logical_or.reduce([d.task.store.elements(np.concatenate([d.train, d.val])) for d in data])


def start_from(module, config: Config, init: start.Init, data: list[tasks.TaskData], notify):
    """Fill a new model from a checkpoint, in place."""
    assert init.path is not None
    found = Continued(init.path, [d.task.name for d in data], _elements(data))
    model = found.fill(registry.split_model(module), config, notify)
    nnx.update(module, model.params, model.constants)


def _origin(init: start.Init | None, run_dir: Path | None) -> Mapping | None:
    """Where the run starts; of one that is resumed, what it noted."""
    if init is not None:
        return init.origin
    resolved = None if run_dir is None else run_dir / "resolved.json"
    return json.loads(resolved.read_text()).get("origin") if resolved is not None and resolved.exists() else None


def _schedule(config: PretrainConfig, total: int, ema_decay: float) -> OptimConfig:
    return OptimConfig(
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=min(2000, total // 10) if config.warmup_steps is None else config.warmup_steps,
        clip_norm=config.clip_norm,
        ema_decay=ema_decay if config.ema_decay is None else config.ema_decay,
    )


def prepare_data(config: PretrainConfig, run_dir: Path | None, resumed: bool) -> list[tasks.TaskData]:
    """The run's tasks; a new run saves their splits and references in its folder, one that is resumed takes them."""
    folder = run_dir and run_dir / "data"
    return mixture.prepare_mixture(
        config.upstream,
        parse_count(config.n),
        config.mix,
        config.seed,
        val_samples=config.val_samples,
        data_root=config.data_root,
        cache_dir=config.cache_dir,
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        subset=config.subset,
        split_rule=config.split,
        save_to=folder if fleet.is_writer() and not resumed else None,
        saved=folder if resumed else None,
    )


def set_scale_factors(config: PretrainConfig, model, model_config, drawn: list):
    """Fit the scale factors on batches drawn from the validation structures of all tasks, or load JMP's.

    Raises:
      InputError: shipped factors for dimensions that JMP never shipped.
    """
    factors = registry.architecture_of(model_config).scale_factors
    assert factors is not None
    if config.scales == "fit":
        notify = (lambda _: None) if config.quiet else (lambda text: print(f"\r{text} ", end="", flush=True))
        factors.fit(model, [jax.device_put(b) for b in drawn], notify)
        if not config.quiet:
            print()
    else:
        factors.load_shipped(model, model_config)


def budget_record(run: Pretraining) -> dict:
    """The whole budget N x E, whatever part of it a checkpoint has seen; fine-tuning runs record it as their origin."""
    config, samples, steps = run.config, run.n_train * run.config.epochs, run.batches.total_steps
    fixed = config.batch_size * config.accumulate if config.batch_edges is None else None
    return {
        "n": run.n_train,
        "n_per_task": {d.task.name: len(d.train) for d in run.data},
        "epochs": config.epochs,
        "samples": samples,
        "steps": steps,
        "samples_per_step": fixed or samples / steps,  # batches filled by edges: on average
    }


def physical(sums: dict, terms: Terms, data: list[tasks.TaskData]) -> dict[str, float]:
    """MAEs in meV and meV/A: of the one task, or the mean over tasks and each task's own; NaN without labels."""
    metrics = {"loss": mean_loss(terms, sums)}
    labels = {"force": "force_mae_mev_per_angstrom", "energy": "energy_mae_mev"}
    if not np.array_equal(sums["all_force_count"], sums["force_count"]):
        labels["all_force"] = "all_atom_force_mae_mev_per_angstrom"
    for name, label in labels.items():
        scales = [getattr(d.task.normalization, f"{name.removeprefix('all_')}_std") for d in data]
        values = 1000 * np.array(scales) * _means(sums[f"{name}_error"], sums[f"{name}_count"])
        metrics[label] = _mean_over_tasks(values)
        if len(values) > 1:
            names = mixture.task_names(data)
            metrics |= {f"{label}/{task}": float(value) for task, value in zip(names, values, strict=True)}
    return metrics


def _means(total, count) -> np.ndarray:
    """total / count, NaN where nothing was counted."""
    total, count = np.asarray(total, np.float64), np.asarray(count)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _mean_over_tasks(values: np.ndarray) -> float:
    """The mean over the tasks that have labels; NaN where none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def mean_force_baseline(val: list, data: list[tasks.TaskData], free_only: bool = True) -> float:
    """Validation force MAE, meV/A, of predicting the mean force (zero) on every free atom; the mean over tasks.

    NaN without force labels.
    """
    total, count = np.zeros(len(data)), np.zeros(len(data))
    for batch in val:
        mask, task = batch.force_mask & (batch.free | (not free_only)), batch.task[batch.node_graph]
        for i in range(len(data)):
            own = mask & (task == i)
            total[i], count[i] = total[i] + np.abs(batch.forces[own]).sum(), count[i] + 3 * own.sum()
    force_std = np.array([d.task.normalization.force_std for d in data])
    return _mean_over_tasks(1000 * force_std * _means(total, count))


def _closing_words(run_dir: Path, run: Pretraining, summary: dict):
    held_out = f"{run.config.upstream} ({sum(int(b.graph_mask.sum()) for b in run.val)} structures)"
    if any("forces" in d.task.labels for d in run.data):
        print(f"\nvalidation force MAE on {held_out}")
        _print_errors(summary, "force_mae_mev_per_angstrom", "meV/A")
    else:
        print(f"\nvalidation energy MAE on {held_out}, which have no forces")
        _print_errors(summary, "energy_mae_mev", "meV")
    if "all_atom_force_mae_mev_per_angstrom" in summary["validation"]:
        print("the same with fixed atoms, which the paper's loss counts (--force-atoms)")
        _print_errors(summary, "all_atom_force_mae_mev_per_angstrom", "meV/A")
    print(f"{summary['structures_per_second']:.1f} structures/s, {summary['atoms_per_second']:,.0f} atoms/s, "
          f"{summary['occupancy']:.1%} of edge slots real, {summary['compiled_shapes']} compiled shapes, "
          f"peak memory {summary['peak_memory_gib']['host']:.1f} GiB")
    print(f"run folder: {run_dir}")


def _print_errors(summary: dict, name: str, unit: str):
    rows = {"before training": (summary["validation_before"] or {}).get(name),
            "mean-force baseline": summary.get("mean_baseline_" + name), "after training": summary["validation"][name]}
    for label, value in rows.items():
        if value is not None:
            print(f"  {label:20s} {value:9.1f} {unit}")

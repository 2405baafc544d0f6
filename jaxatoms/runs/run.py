"""A training run: what pretraining and fine-tuning have in common, from a prepared run to its finished folder.

`TrainingRun` is a run before its first step; its subclasses say what differs (optimiser, step, metrics, records).
`train_run` makes the steps, validates, saves and writes the records; `lower_step` compiles a step without making it.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from flax import nnx

from jaxatoms.data import calls, loader, shards
from jaxatoms.graphs.batch import collate, stack
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.io import write_json
from jaxatoms.models import registry
from jaxatoms.models.architecture import Architecture, Config
from jaxatoms.runs import fleet, remat
from jaxatoms.runs.batches import Batches
from jaxatoms.runs.session import Session, has_finished, restore_run, say
from jaxatoms.tools.provenance import peak_memory_gib, provenance
from jaxatoms.training import parallel
from jaxatoms.training.flat import flattened
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import TrainState, init_state

Evaluator = Callable[[Any, Any], dict[str, float]]  # (parameters, constants) -> validation metrics, "loss" among them


@dataclasses.dataclass(kw_only=True)
class TrainingRun(abc.ABC):
    """Everything a run consists of before its first step."""

    command: ClassVar[str]
    config: Any  # the command's settings
    batches: Batches
    val: list  # padded batches on the host
    model: registry.PureModel
    model_config: Config
    optim: Any  # settings of the optimiser, with `ema_decay` where the run has its own
    steps_per_epoch: int
    total_steps: int
    devices: fleet.Fleet

    @property
    def architecture(self) -> Architecture:
        """The architecture of the model."""
        return registry.architecture_of(self.model_config)

    @property
    def dropout_seed(self) -> int | None:
        """Of the keys that the model takes in training; None where nothing in it is random."""
        return self.config.seed if self.architecture.has_dropout(self.model_config) else None

    @property
    def accumulate(self) -> int:
        """Batches per step and device, one after another."""
        return self.config.accumulate

    @property
    def steps_per_call(self) -> int:
        """Steps of one compiled call."""
        return self.config.steps_per_call

    # --- what pretraining and fine-tuning differ in ---------------------------------------------------

    @abc.abstractmethod
    def module(self, config: Config) -> nnx.Module:
        """A freshly initialised model of these dimensions, with the run's heads."""

    @abc.abstractmethod
    def optimizer(self) -> Any:
        """The optax optimiser of the whole run."""

    @abc.abstractmethod
    def make_step(self, apply: Callable, mesh=None, shardings=None) -> Any:
        """(state, constants, batch, **`step_arguments`) -> (state, metrics), jitted."""

    @abc.abstractmethod
    def make_evaluator(self, apply: Callable) -> Evaluator:
        """The validation of the run."""

    @abc.abstractmethod
    def learning_rate(self, step: int) -> float:
        """For the log."""

    @abc.abstractmethod
    def checkpoint_meta(self) -> CheckpointMeta:
        """What a checkpoint needs so that it can be used without the data."""

    @abc.abstractmethod
    def resolved(self) -> dict:
        """What the settings came to, for resolved.json."""

    @abc.abstractmethod
    def summary(self, done: int) -> dict:
        """What summary.json says beside what every run says."""

    @property
    @abc.abstractmethod
    def validate_every(self) -> int:
        """Steps between validations."""

    def step_arguments(self) -> dict[str, Any]:
        """Further arguments of the next step."""
        return {}

    @property
    def n_parameters(self) -> int:
        """Numbers in the parameters of the whole model."""
        return registry.count_params(self.model.params)

    def applied(self, apply: Callable) -> Callable:
        """A model's function of (parameters, constants, ...) as one of what the run trains and what it does not."""
        return apply

    def saved(self, state: TrainState, constants: Any) -> dict[str, Any]:
        """The arrays of a checkpoint, by its top-level names."""
        return {**state._asdict(), "constants": constants}

    def loaded(self, arrays: Mapping[str, Any]) -> tuple[TrainState, Any]:
        """(state, constants) of the arrays of a checkpoint; the inverse of `saved`, of what `to_load` names."""
        return TrainState(**{name: arrays[name] for name in TrainState._fields}), arrays["constants"]

    def to_load(self, state: TrainState, constants: Any) -> dict[str, Any]:
        """What of a checkpoint a run that is resumed needs, as arrays or shapes."""
        return self.saved(state, constants)

    def recall(self, meta: CheckpointMeta):
        """Take up what a checkpoint's record says of the run."""
        del meta

    def before_training(self, folder: Path, params: Any, constants: Any):
        """Called once, after the first validation of a new run, which writes into `folder`."""
        del folder, params, constants

    def after_validation(self, step: int, metrics: dict):
        """Called with every validation but that before the first step."""
        del step, metrics

    def stream(self, first: int) -> Iterator:
        """Host batches of the calls from step `first` on."""
        if self.steps_per_call == 1:
            return loader.prefetch(self.batches.batch, range(first, self.total_steps), self.config.workers)
        ends = (self.validate_every, self.steps_per_epoch)
        plan = calls.plan_calls(first, self.total_steps, ends, self.steps_per_call)
        return loader.prefetch(calls.StackedBatches(self.batches).batch, plan, self.config.workers)

    # --------------------------------------------------------------------------------------------------

    def recomputed_if_asked(self, resolved: Path | None) -> Self:
        """The run with blocks computed again in the backward pass, where `--remat` asks for it.

        Args:
          resolved: resolved.json of the run that is resumed, whose decision stands.
        """
        wanted = fleet.agreed(lambda: remat.decide(self.config.remat, self._step_bytes, resolved))
        if not wanted:
            return self
        config = dataclasses.replace(self.model_config, remat=True)
        apply = registry.split_model(nnx.eval_shape(lambda: self.module(config))).apply
        return dataclasses.replace(
            self, model=self.model._replace(apply=self.applied(apply)), model_config=config
        )

    def _step_bytes(self) -> int:
        whole = self.batches.whole if isinstance(self.batches, shards.ShardedBatches) else self.batches
        batch = collate(*whole.corpus.nothing(), self.batches.budgets[-1])
        batch = stack([batch] * self.accumulate) if self.accumulate > 1 else batch
        return remat.program_bytes(lower_step(self, batch).compile())


class Trained(NamedTuple):
    """A run after its last step."""

    done: int  # steps
    params: Any  # averaged, whole on every device
    constants: Any
    summary: dict | None  # None: the run had ended before


def train_run(run: TrainingRun, run_dir: Path, resumed: bool) -> Trained:
    """Train, validate, save; leaves a complete run folder whether the run finishes or is stopped."""
    config, devices, out_dir = run.config, run.devices, fleet.output_dir(run_dir)
    model = flattened(run.model)
    state, constants = init_state(model.params, run.optimizer()), model.constants
    with fleet.FleetStore(run_dir / "checkpoints", devices, keep=config.keep, notify=say) as checkpoints:
        meta = None
        if resumed:
            arrays, meta = restore_run(checkpoints, run.to_load(state, constants))
            state, constants = run.loaded(arrays)
            run.recall(meta)
        fleet.wait_for_all("checkpoint read")
        state, constants, shardings = devices.place_state(state, constants)
        first, evaluator = 0 if meta is None else meta.step, run.make_evaluator(model.apply)
        if has_finished(run_dir, first, run.total_steps):
            return Trained(first, devices.whole(state.ema), constants, None)
        write_json(out_dir / "config.json", dataclasses.asdict(config))
        write_json(out_dir / "resolved.json", run.resolved())
        step = run.make_step(model.apply, devices.mesh, shardings)
        # A run killed before its first checkpoint starts afresh: step 0 drops its records.
        with RunLog(out_dir, run.total_steps, config.quiet, resume_step=first if config.resume else None) as log:
            session = Session(
                checkpoints=checkpoints,
                log=log,
                arrays=lambda state: run.saved(state, constants),
                constants=constants,
                metrics=lambda params: evaluator(devices.whole(params), constants),
                place=functools.partial(devices.place, axis=int(run.steps_per_call > 1)),
                agree=devices.agreement(max(1, config.log_every // run.steps_per_call)),
                meta=run.checkpoint_meta,
                save_every=run.steps_per_epoch,
                after_validation=run.after_validation,
            )
            if meta is None:
                session.validate(0, state)
                run.before_training(out_dir, devices.whole(state.ema), constants)
            else:
                session.recall(meta)
            state, done, meter = session.run(
                state,
                run.stream(first),
                lambda *args: step(*args, **run.step_arguments()),
                first=first,
                total=run.total_steps,
                log_every=config.log_every,
                validate_every=run.validate_every,
                learning_rate=run.learning_rate,
            )
            checkpoints.wait()
            summary = _summarise(run, session, done, meter, step._cache_size())
            log.write_summary(summary)
            log.write_curves()
    return Trained(done, devices.whole(state.ema), constants, summary)


def _summarise(run: TrainingRun, session: Session, done: int, meter, shapes: int) -> dict:
    """What a run reports about itself."""
    return {
        "steps": done,
        "total_steps": run.total_steps,
        "finished": done == run.total_steps,
        **run.summary(done),
        "parameters": run.n_parameters,
        "trained_parameters": registry.count_params(run.model.params),
        **meter.rates(),
        "devices": parallel.n_parts(run.devices.mesh),
        "processes": jax.process_count(),
        "compiled_shapes": shapes,
        "batch_shapes": len(run.batches.budgets),
        "peak_memory_gib": peak_memory_gib(),
        "precision": run.config.precision,
        "validation_before": session.first_metrics,
        "validation": session.last_metrics,
        "best_validation_loss": session.best,
        "provenance": provenance(),
    }


def lower_step(run: TrainingRun, batch: Any, devices: Sequence[Any] = ()) -> jax.stages.Lowered:
    """The run's step, lowered for the shape of `batch`; nothing is computed.

    Args:
      batch: of one device.
      devices: that each take such a batch; they need not exist (a described topology). None given: the default one.
    """
    model = flattened(run.model, shapes_only=True)
    state, constants = jax.eval_shape(lambda p: init_state(p, run.optimizer()), model.params), model.constants
    if len(devices) < 2:  # no mesh, as in a run
        if devices:
            place = functools.partial(_shape_on, sharding=jax.sharding.SingleDeviceSharding(devices[0]))
            state, constants, batch = jax.tree.map(place, (state, constants, batch))
        return run.make_step(model.apply).lower(state, constants, batch, **run.step_arguments())
    mesh = jax.sharding.Mesh(np.array(devices), (parallel.AXIS,))
    shardings = parallel.state_shardings(state, mesh, run.devices.shard_optimizer)
    whole = parallel.replicated(mesh)
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(parallel.AXIS))
    batches = jax.tree.map(lambda x: np.broadcast_to(x, (mesh.size, *x.shape)), batch)
    return run.make_step(model.apply, mesh, shardings).lower(
        jax.tree.map(_shape_on, state, shardings),
        jax.tree.map(lambda x: _shape_on(x, whole), constants),
        jax.tree.map(lambda x: _shape_on(x, over), batches),
        **run.step_arguments(),
    )


def _shape_on(array, sharding):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def continue_with(run: TrainingRun, run_dir: Path, done: int) -> str:
    """What to type where a run was stopped."""
    command = f"python -m {run.command} --config {run_dir / 'config.json'} --resume"
    return f"stopped and saved at step {done}/{run.total_steps}; continue with: {command}"

"""What every training command does around its loop: validate, save, resume, refuse another run's folder."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.registry import check_layout
from jaxatoms.tools import cli
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.training.loop import Hooks, train
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import TrainState
from jaxatoms.types import InputError


@dataclasses.dataclass(kw_only=True)
class Session:
    """Validation and saving of a run under way."""

    checkpoints: CheckpointStore
    log: RunLog
    constants: Any
    arrays: Callable[[TrainState], dict[str, Any]]  # what a checkpoint holds
    metrics: Callable[[Any], dict[str, float]]  # parameters -> validation metrics
    meta: Callable[[], CheckpointMeta]  # what a checkpoint records, but for step and metrics
    save_every: int  # steps
    after_validation: Callable[[int, dict], None] = lambda step, metrics: None
    place: Callable[[Any], Any] = jax.device_put  # a host batch onto the devices
    agree: Callable[[bool], bool] = bool  # this process's wish to stop -> the decision of all
    best: float = float("inf")
    first_metrics: Mapping[str, float] | None = None
    last_metrics: Mapping[str, float] | None = None
    validated_at: int = 0  # step of `last_metrics`
    last_saved: int = -1

    def recall(self, meta: CheckpointMeta):
        """Take up where the checkpoint with this record left off."""
        self.best, self.first_metrics, self.last_metrics = meta.best, meta.first_metrics, meta.metrics
        self.validated_at = meta.step if meta.validated_at is None else meta.validated_at

    def validate(self, step: int, state: TrainState):
        """Evaluate the averaged weights; save when they are the best so far.

        Raises:
          InputError: the loss is not finite, so that no weights could ever be the best.
        """
        metrics = self.metrics(state.ema)
        if not math.isfinite(metrics["loss"]):
            raise InputError(
                f"the validation loss is {metrics['loss']} at step {step}: no validation structure has a label that is "
                "learnt, or one has labels or positions that are wrong; look at the data with experiments.data check"
            )
        self.first_metrics = self.first_metrics or metrics
        self.last_metrics, self.validated_at = metrics, step
        self.log.log_validation(step, metrics)
        if step:
            self.after_validation(step, metrics)
        if step and metrics["loss"] < self.best:
            self.best = metrics["loss"]
            self.save(step, state, "best")

    def save(self, step: int, state: TrainState, kind: str):
        """Write a checkpoint, unless this very step is saved already."""
        if step == self.last_saved:
            return
        meta = dataclasses.replace(
            self.meta(),
            step=step,
            best=self.best,
            metrics=self.last_metrics,
            first_metrics=self.first_metrics,
            validated_at=self.validated_at,
        )
        self.checkpoints.save(step, self.arrays(state), meta.to_json(), kind)
        self.last_saved = step

    def run(self, state: TrainState, batches, train_step, *, first: int, total: int, log_every: int,
            validate_every: int, learning_rate: Callable[[int], float]):
        """Train from step `first` to `total` or until a signal; (state, steps done, meter)."""

        def log(step, values):
            self.log.log(step, values | {"learning_rate": learning_rate(step - 1)})

        with cli.StopFlag() as stop:
            hooks = Hooks(
                log=log,
                validate=self.validate,
                should_stop=lambda: self.agree(bool(stop)),
                log_every=log_every,
                validate_every=validate_every,
                save=lambda step, state: self.save(step, state, "last"),
                save_every=self.save_every,
                compiling=lambda: self.log.announce("compiling a training step (kept for later starts) ..."),
            )
            state, done, meter = train(
                state, self.constants, batches, train_step, hooks, first_step=first, total_steps=total,
                place=self.place, n_process=jax.process_count(),
            )  # fmt: skip
        self.save(done, state, "last")
        return state, done, meter


def check_run_dir(run_dir: Path, config, resumable: Collection[str]) -> bool:
    """Whether to resume.

    Args:
      config: the command's settings, with a field `resume`.
      resumable: fields that may change when a run is resumed.

    Raises:
      InputError: the folder holds another run, one of an earlier layout, or one that was not asked to be resumed.
    """
    saved = run_dir / "config.json"
    if not saved.exists():
        if config.resume and (run_dir / "checkpoints").exists():
            raise InputError(f"{run_dir} has checkpoints but no config.json; choose another --run-dir")
        if config.resume and not config.quiet:
            say(f"{run_dir} holds no run to resume: a new one starts there")
        return False
    if not config.resume:
        raise InputError(f"{run_dir} holds a run already; add --resume to continue it or choose another --run-dir")
    before = cli.with_defaults(type(config), json.loads(saved.read_text()))
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [k for k in now if k not in resumable and before.get(k) != now[k]]
    if changed:
        k = changed[0]
        raise InputError(f"{saved} is of another run: {k} was {before.get(k)!r}, now {now[k]!r}; use the same settings")
    resolved = run_dir / "resolved.json"
    if resolved.exists():
        record = json.loads(resolved.read_text())
        check_layout(record["model"], HeadSpec(**record["head"]) if "head" in record else None, str(run_dir))
    return has_checkpoint(run_dir)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has anything to resume from."""
    # A step that replaces itself is hidden for a moment; a kill may have come then.
    return any(path for name in ("step_*", ".step_*.old") for path in (run_dir / "checkpoints").glob(name))


def has_finished(run_dir: Path, step: int, total: int) -> bool:
    """Whether a run resumed at `step` had ended before, its summary written."""
    summary = run_dir / "summary.json"
    return step == total and summary.is_file() and json.loads(summary.read_text()).get("finished", False)


def restore_run(checkpoints: CheckpointStore, wanted: dict[str, Any]) -> tuple[dict[str, Any], CheckpointMeta]:
    """(arrays, record) of the newest whole checkpoint.

    Args:
      wanted: arrays or shapes by top-level names.

    Raises:
      InputError: there is none.
    """
    found = checkpoints.restore_latest(wanted)
    if found is None:
        raise InputError(f"{checkpoints.directory} has no checkpoint to resume from; start without --resume")
    arrays, meta = found[0], CheckpointMeta.from_json(found[1], str(checkpoints.directory))
    say(f"resuming at step {meta.step}")
    # Onto the device, and apart from the restored NumPy memory: the step donates its input.
    return jax.tree.map(jnp.array, arrays), meta


def say(text: str):
    """Print at once."""
    print(text, flush=True)

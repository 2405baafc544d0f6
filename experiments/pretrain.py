"""Pretrain GemNet-OC on one or several upstream data sets under a budget C = N x E.

    python -m experiments.pretrain --upstream ani1x --n 2e6 --epochs 5 --run-dir runs/ani1x
    python -m experiments.pretrain --upstream ani1x,oc22 --mix 2:1 --n 3e6 --run-dir runs/mixed
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, fleet, mixture, remat, tasks
from experiments.compile_for import compile_for, find_topology, part_shape, print_report
from experiments.plan import compile_step, print_plan
from experiments.provenance import peak_memory_gib, provenance
from experiments.runtime import prepare_process
from experiments.session import FRESH, Session, check_run_dir, has_finished, restore_run, say, write_record
from jaxatoms.data import calls, loader, packing, shards
from jaxatoms.data.corpus import draw_over_tasks
from jaxatoms.data.mixing import split_names
from jaxatoms.data.subset import parse_count
from jaxatoms.graphs.batch import collate, empty_structures, stack
from jaxatoms.models import registry as models
from jaxatoms.models.architecture import Architecture, Config
from jaxatoms.models.common.precision import Precision
from jaxatoms.training import parallel
from jaxatoms.training.flat import flattened
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses import LossScales
from jaxatoms.training.optim import OptimConfig, make_optimizer, warmup_cosine
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import init_state, make_eval_step, make_train_step, mean_loss
from jaxatoms.types import InputError

SCALE_FIT_BATCHES = 16
# Settings that may change when a run is resumed: they do not enter the result.
RESUMABLE = (
    "resume", "plan", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "devices",
    "shard_optimizer", "part_headroom", "coordinator", "num_processes", "process_id", "compile_for", "steps_per_call",
    "batch_shapes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pretraining run; the defaults are the paper's recipe."""

    upstream: str
    """Data set: NAME (below the data root), NAME@PATH, file:PATH or demo:organic; several as NAME,NAME."""
    mix: str = "balanced"
    """Shares of several data sets in N: balanced, temperature, natural, or a ratio such as 2:1."""
    n: str | None = None
    """Training structures N, drawn once with the seed; `all` takes every one. Default: 2e6, or all of --subset."""
    subset: str | None = None
    """File of experiments.select: draw the N structures of a single data set from these only."""
    split: str = "auto"
    """auto takes the published split (OC20, OC22: the official validation set beside the training set) or the file's
    own, else keeps groups (formulas, systems) together; group or record ask for these (record holds out near copies of
    training structures), and FILE.npz names a saved split."""
    epochs: int = 5
    """Passes E over the N structures."""
    model: str = "gemnet_oc_s"
    """gemnet_oc_s, gemnet_oc_l, gemnet_oc_tiny, gemnet_oc_nano, equiformer_v2_31m, equiformer_v2_tiny, or a JSON file
    of dimensions."""
    batch_size: int = 20
    """Structures per step."""
    batch_edges: int | None = None
    """Throughput mode: fill batches up to this many edges instead of counting structures."""
    accumulate: int = 1
    """Batches per step, one after another: the step of a batch so many times as large, in the memory of one."""
    steps_per_call: int = 1
    """Steps of one compiled call: less overhead for small batches; their batches share a shape."""
    batch_shapes: int | None = None
    """Padded batch sizes, 1 to 4, each compiled once; more of them waste fewer edge slots. Default: 1, and one more for
    every 1,000 steps."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Default: 2000, or a tenth of the run where that is less."""
    weight_decay: float = 0.1
    ema_decay: float | None = None
    """Of the averaged weights, per step; default: 0.99, and 0 (no average) for EquiformerV2, as in the paper."""
    clip_norm: float = 1.0
    edge_dropout: float = 0.1
    """Rate at which directed edges are dropped in training."""
    force_atoms: str = "all"
    """Atoms whose forces are learnt: all (the paper) or free, which is what the reported error counts."""
    loss_scales: str = "ea"
    """Loss weights of energy and forces: ea (the paper: 1 and 10) or jmp."""
    scales: str = "fit"
    """Scale factors: fit (on 16 batches drawn from the validation structures of all data sets) or shipped (JMP's
    values; S and L only)."""
    precision: str = "float32"
    """Matmuls: float32, tf32, or bfloat16, which also keeps GemNet-OC's edge arrays so. Everything else is float32."""
    fused_residual: bool = False
    """Residual layers by a TPU kernel that has not been measured on hardware yet; with --precision bfloat16."""
    remat: str = "no"
    """Recompute blocks in the backward pass, for less memory and one more forward pass: no, yes, or auto, which
    compiles the step and recomputes only where it would not fit."""
    seed: int = 0
    """Of the subset, the order, the edge dropout and the weights."""
    max_steps: int | None = None
    """Stop after this many steps; the schedule then ends there. 0 saves the network untrained, its scale factors
    fitted: the control of `experiments.study --control scales`."""
    val_every: float = 0.05
    """Validate every so many epochs."""
    val_samples: int = 2000
    """Validation structures of each data set, at most."""
    cutoff: float | None = None
    """A; default: the data set's (8 for molecules, 12 for periodic structures)."""
    max_neighbors: int | None = None
    """K of the main graph; default 30."""
    devices: int | None = None
    """Devices that share every step's batch; default: all there are."""
    shard_optimizer: bool = False
    """Spread the optimiser's moments and the average over the devices: less memory, more traffic (ZeRO-1)."""
    part_headroom: float = packing.HEADROOM
    """Room of a device's part over the largest one seen in a sample; several processes cannot grow it."""
    coordinator: str | None = None
    """HOST:PORT of process 0 of a run of several processes, or auto on a cluster that JAX knows."""
    num_processes: int | None = None
    process_id: int | None = None
    compile_for: str | None = None
    """TPU topology such as v5e:4x4: compile the step for it, print what it would cost; train nothing."""
    workers: int = 0
    """Processes that build batches; 0 = one thread."""
    run_dir: str = "runs/pretrain"
    """Where everything is written."""
    resume: bool = False
    """Continue the run in run_dir, exactly."""
    plan: bool = False
    """Print steps, budget, memory and time; train nothing."""
    data_root: str | None = None
    """Folder of the data sets; default: JAXATOMS_DATA."""
    cache_dir: str | None = None
    """Folder of converted data sets; default: JAXATOMS_CACHE, then ~/.cache/jaxatoms."""
    log_every: int = 20
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    quiet: bool = False

    def __post_init__(self):
        if self.n is None:
            object.__setattr__(self, "n", "2e6" if self.subset is None else "all")
        if self.subset is not None and "," in self.upstream:
            raise InputError("--subset belongs to one data set; give one --upstream")
        if self.split not in ("auto", "group", "record") and len(split_names(self.upstream)) > 1:
            raise InputError(f"--split {self.split} names a file, which belongs to one data set; give one --upstream")
        parse_count(self.n)
        if self.max_steps is not None and self.max_steps < 0:
            raise InputError(f"--max-steps must be at least 0, got {self.max_steps}")
        cli.check_positive(self, "epochs", "batch_size", "batch_edges", "lr", "val_every", "val_samples",
                           "log_every", "accumulate", "steps_per_call")  # fmt: skip
        if not 0 <= self.edge_dropout < 1:
            raise InputError(f"--edge-dropout must be at least 0 and below 1, got {self.edge_dropout}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.batch_shapes is not None and not 1 <= self.batch_shapes <= packing.MAX_SHAPES:
            raise InputError(f"--batch-shapes must be 1 to 4, got {self.batch_shapes}")
        cli.check_choices(self, _CHOICES)
        if self.fused_residual and self.precision != "bfloat16":
            raise InputError("--fused-residual multiplies in bfloat16; add --precision bfloat16")


_CHOICES = {
    "force_atoms": ("all", "free"),
    "loss_scales": ("ea", "jmp"),
    "scales": ("fit", "shipped"),
    "precision": ("float32", "tf32", "bfloat16"),
    "remat": remat.CHOICES,
}


@dataclasses.dataclass
class Setup:
    """Everything a run consists of before its first step."""

    config: PretrainConfig
    data: list[tasks.TaskData]  # one per task
    batches: loader.TrainBatches | shards.ShardedBatches
    val: list
    model: models.PureModel
    model_config: Config
    optim: OptimConfig
    total_steps: int
    steps_per_epoch: int
    devices: fleet.Fleet

    @property
    def architecture(self) -> Architecture:
        """The architecture of the model."""
        return models.architecture_of(self.model_config)

    @property
    def gradient_divisors(self):
        """Tree of numbers of uses by which gradients of shared parameters are divided, or None."""
        return self.architecture.gradient_divisors(self.model.params, self.model_config)

    @property
    def loss_scales(self) -> LossScales:
        return loss_scales_of(self.config, self.data)

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


def loss_scales_of(config: PretrainConfig, data: list[tasks.TaskData]) -> LossScales:
    """The weights of energy and forces of every task."""
    prefix = "jmp_" if config.loss_scales == "jmp" else ""
    scales = ([getattr(d.spec, f"{prefix}{name}_scale") for d in data] for name in ("energy", "force"))
    return LossScales(*map(jnp.array, scales))


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.pretrain`."""
    config = cli.parse(PretrainConfig, argv, description=__doc__, prog="python -m experiments.pretrain")
    fleet.join(config.coordinator, config.num_processes, config.process_id)
    prepare_process()
    if config.compile_for is not None:
        report_for(config)
        return 0
    if config.plan:
        print_plan(prepare(dataclasses.replace(config, devices=1, steps_per_call=1), None), sys.stdout)
        return 0
    if config.fused_residual and jax.default_backend() != "tpu":
        raise InputError("--fused-residual is a kernel for TPU; leave it out here")
    run_dir = cli.resolve_run_dir(config.run_dir)
    with fleet.one_run(run_dir):
        resumed = check_run_dir(run_dir, config, RESUMABLE)
        fleet.wait_for_all("run folder checked")
        setup = prepare(config, run_dir, fit=not resumed)
        run(setup, run_dir, resumed)
    return 0


def prepare(config: PretrainConfig, run_dir: Path | None, fit: bool = False) -> Setup:
    """Data, batches, model and schedule of a run; `fit` fits (or loads) the scale factors."""
    with fleet.writer_first("data prepared"):
        data = prepare_data(config, run_dir, resumed=not fit)
    model_config = models.find_config(config.model)
    own = models.architecture_of(model_config)
    corpus, train_samples, val_samples = tasks.make_corpus(data, own.graphs)
    devices = fleet.Fleet(parallel.make_mesh(config.devices), config.shard_optimizer)
    batches = make_batches(config, corpus, train_samples, devices)
    val = loader.eval_batches(corpus, val_samples, min(config.batch_size, len(val_samples.record)))
    precision = Precision(matmul=config.precision, fused_residual=config.fused_residual)
    model = models.make_model(model_config, len(data), config.seed, precision)
    if fit and own.scale_factors is not None:
        drawn = draw_over_tasks(val_samples, SCALE_FIT_BATCHES * config.batch_size, config.seed)
        batches_to_fit = loader.eval_batches(corpus, drawn, min(config.batch_size, len(drawn.record)))
        set_scale_factors(config, model, model_config, batches_to_fit)
    total = batches.total_steps if config.max_steps is None else min(batches.total_steps, config.max_steps)
    warmup = min(2000, total // 10) if config.warmup_steps is None else config.warmup_steps
    optim = OptimConfig(
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=warmup,
        clip_norm=config.clip_norm,
        ema_decay=own.ema_decay if config.ema_decay is None else config.ema_decay,
    )
    per_epoch = max(1, batches.total_steps // config.epochs)
    pure = models.split_model(model)
    setup = Setup(config, data, batches, val, pure, model_config, optim, total, per_epoch, devices)
    return _recomputing(setup, precision) if _recomputes(setup, run_dir, resumed=not fit) else setup


def _recomputes(setup: Setup, run_dir: Path | None, resumed: bool) -> bool:
    def step_bytes():
        batch = collate(*empty_structures(), setup.batches.budgets[-1])
        if setup.config.accumulate > 1:
            batch = stack([batch] * setup.config.accumulate)
        return remat.program_bytes(compile_step(setup, batch))

    resolved = run_dir / "resolved.json" if run_dir is not None and resumed else None
    return fleet.agreed(lambda: remat.decide(setup.config.remat, step_bytes, resolved))


def _recomputing(setup: Setup, precision: Precision) -> Setup:
    model_config = dataclasses.replace(setup.model_config, remat=True)
    apply = models.abstract_model(model_config, len(setup.data), precision).apply
    return dataclasses.replace(setup, model=setup.model._replace(apply=apply), model_config=model_config)


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


def report_for(config: PretrainConfig):
    """`--compile-for`: the step compiled for a TPU topology, and its roofline."""
    if config.accumulate * config.steps_per_call > 1:
        raise InputError("--compile-for compiles a plain step; drop --accumulate and --steps-per-call")
    if config.remat == "auto":
        raise InputError("--compile-for has no device to ask for its memory; choose --remat yes or no")
    n_device = len(find_topology(config.compile_for).devices)
    setup = prepare(dataclasses.replace(config, devices=1), None)
    shape = part_shape(config, setup.batches.corpus, setup.batches.samples, n_device)
    print_report(compile_for(config.compile_for, setup, *shape), setup, sys.stdout)


def make_batches(config: PretrainConfig, corpus, samples, devices: fleet.Fleet):
    """The run's batches (in parts where there are several devices), budgets measured on a sample of structures."""
    sizes = loader.measure(corpus, samples, config.edge_dropout, config.seed)
    largest = loader.largest_structure(corpus, samples)
    args = dict(corpus=corpus, samples=samples, epochs=config.epochs, seed=config.seed,
                edge_dropout=config.edge_dropout)
    batch_size = config.batch_size * config.accumulate
    capacity = None if config.batch_edges is None else config.batch_edges * config.accumulate
    steps = max(1, len(samples.record) * config.epochs // batch_size)
    shapes = config.batch_shapes or packing.shapes_worth_compiling(steps)
    parts = dict(batch_edges=capacity, shapes=shapes, headroom=config.part_headroom,
                 accumulate=config.accumulate, alike=config.steps_per_call)
    if capacity is None:
        budgets = packing.fixed_budgets(
            sizes, batch_size, largest, steps, config.seed, shapes, config.steps_per_call
        )
        whole = loader.TrainBatches(budgets=budgets, batch_size=batch_size, **args)
        return devices.share(whole, sizes, shards.expected_edges(sizes, corpus.n_node(samples)), **parts)
    weights = loader.measure(corpus, samples, config.edge_dropout, config.seed, limit=None)["n_main"]
    budgets = packing.packed_budgets(sizes, capacity, largest, weights)
    return devices.share(loader.TrainBatches(budgets=budgets, weights=weights, **args), sizes, weights, **parts)


def stream(setup: Setup, first: int, validate_every: int) -> Iterator:
    """Host batches of the calls from step `first` on."""
    config = setup.config
    if config.steps_per_call == 1:
        return loader.prefetch(setup.batches.batch, range(first, setup.total_steps), config.workers)
    stops = (validate_every, setup.steps_per_epoch)
    plan = calls.plan_calls(first, setup.total_steps, stops, config.steps_per_call)
    return loader.prefetch(calls.StackedBatches(setup.batches).batch, plan, config.workers)


def set_scale_factors(config: PretrainConfig, model, model_config, drawn: list):
    """Fit the scale factors on batches drawn from the validation structures of all tasks, or load JMP's.

    Raises:
      InputError: shipped factors for dimensions that JMP never shipped.
    """
    factors = models.architecture_of(model_config).scale_factors
    assert factors is not None
    if config.scales == "fit":
        notify = (lambda _: None) if config.quiet else (lambda text: print(f"\r{text} ", end="", flush=True))
        factors.fit(model, [jax.device_put(b) for b in drawn], notify)
        if not config.quiet:
            print()
    else:
        factors.load_shipped(model, model_config)


def run(setup: Setup, run_dir: Path, resumed: bool):
    """Train, validate, save; leaves a complete run folder whether it finishes or is stopped."""
    config, devices = setup.config, setup.devices
    if not config.quiet and setup.left_out:
        say(f"{setup.left_out} of the {setup.n_train * config.epochs:,} visits of structures are left out: they do not "
            "fill a batch of the last epoch")
    out_dir, val = fleet.output_dir(run_dir), devices.grouped(setup.val)
    divisors = setup.gradient_divisors
    optimizer = make_optimizer(setup.optim, setup.total_steps, divisors)
    model = flattened(setup.model)
    state, constants = init_state(model.params, optimizer), model.constants
    with fleet.FleetStore(run_dir / "checkpoints", devices, keep=config.keep, notify=say) as checkpoints:
        meta = FRESH
        if resumed:
            state, constants, meta = restore_run(checkpoints, state, constants)
        fleet.wait_for_all("checkpoint read")
        state, constants, shardings = devices.place_state(state, constants)
        first = meta["step"]
        if has_finished(run_dir, first, setup.total_steps):
            say(f"the run has made all its {first} steps: there is nothing to do\nrun folder: {run_dir}")
            return
        _write_config(out_dir, setup)
        scales = setup.loss_scales
        train_step = make_train_step(
            model.apply,
            optimizer,
            scales,
            ema_decay=setup.optim.ema_decay,
            edge_dropout=config.edge_dropout,
            dropout_seed=config.seed if setup.architecture.has_dropout(setup.model_config) else None,
            free_only=config.force_atoms == "free",
            mesh=devices.mesh,
            shardings=shardings,
            accumulate=config.accumulate,
            steps_per_call=config.steps_per_call,
        )
        validate_every = max(1, round(config.val_every * setup.steps_per_epoch))
        eval_step = make_eval_step(model.apply, scales, devices.mesh, config.force_atoms == "free")
        schedule = warmup_cosine(setup.optim, setup.total_steps)
        # A run killed before its first checkpoint starts afresh: step 0 drops its records.
        with RunLog(out_dir, setup.total_steps, config.quiet, resume_step=first if config.resume else None) as log:
            session = Session(
                checkpoints=checkpoints,
                log=log,
                constants=constants,
                metrics=lambda params: physical(
                    evaluate(devices.whole(params), constants, val, eval_step, devices.place), setup.data
                ),
                place=functools.partial(devices.place, axis=int(config.steps_per_call > 1)),
                agree=devices.agreement(max(1, config.log_every // config.steps_per_call)),
                meta=lambda: checkpoint_meta(setup),
                save_every=setup.steps_per_epoch,
            )
            session.recall(meta)
            if not resumed:
                session.validate(0, state)
            state, done, meter = session.run(
                state,
                stream(setup, first, validate_every),
                train_step,
                first=first,
                total=setup.total_steps,
                log_every=config.log_every,
                validate_every=validate_every,
                learning_rate=lambda step: float(schedule(step)),
            )
            summary = summarise(setup, session, state, done, meter, train_step)
            log.write_summary(summary)
            log.write_curves()
    _closing_words(run_dir, config, setup, summary, done)


def checkpoint_meta(setup: Setup) -> dict:
    """What a checkpoint needs so that it can be used without the data."""
    return {
        "model": models.model_record(setup.model_config),
        "precision": setup.config.precision,
        "tasks": [tasks.task_record(d.task) for d in setup.data],
        "config": dataclasses.asdict(setup.config),
        "seed": setup.config.seed,
        "budget": budget_record(setup),
    }


def budget_record(setup: Setup) -> dict:
    """The whole budget N x E, whatever part of it a checkpoint has seen; fine-tuning runs record it as their origin."""
    config, samples, steps = setup.config, setup.n_train * setup.config.epochs, setup.batches.total_steps
    fixed = config.batch_size * config.accumulate if config.batch_edges is None else None
    return {
        "n": setup.n_train,
        "n_per_task": {d.task.name: len(d.train) for d in setup.data},
        "epochs": config.epochs,
        "samples": samples,
        "steps": steps,
        "samples_per_step": fixed or samples / steps,  # batches filled by edges: on average
    }


def physical(sums: dict, data: list[tasks.TaskData]) -> dict[str, float]:
    """MAEs in meV and meV/A: of the one task, or the mean over tasks and each task's own; NaN without labels."""
    metrics = {"loss": mean_loss(sums)}
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


def summarise(setup: Setup, session: Session, state, done: int, meter, train_step) -> dict:
    """What a run reports about itself."""
    shapes = train_step._cache_size()
    return {
        "steps": done,
        "total_steps": setup.total_steps,
        "finished": done == setup.total_steps,
        "samples_seen": _samples_seen(setup, done),
        "budget": budget_record(setup) | {"left_out": setup.left_out},
        "n_per_task": {d.task.name: len(d.train) for d in setup.data},
        "upstream": setup.config.upstream,
        "model": setup.config.model,
        "parameters": models.count_params(setup.model.params),
        **meter.rates(),
        "devices": parallel.n_parts(setup.devices.mesh),
        "processes": jax.process_count(),
        "compiled_shapes": shapes,
        "batch_shapes": len(setup.batches.budgets),
        "peak_memory_gib": peak_memory_gib(),
        "precision": setup.config.precision,
        "validation_before": session.first_metrics,
        "validation": session.last_metrics,
        "best_validation_loss": session.best,
        "mean_baseline_force_mae_mev_per_angstrom": mean_force_baseline(setup.val, setup.data),
        "mean_baseline_all_atom_force_mae_mev_per_angstrom": mean_force_baseline(setup.val, setup.data, False),
        "provenance": provenance(),
    }


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


def _samples_seen(setup: Setup, done: int) -> int:
    if setup.config.batch_edges is None:
        return done * setup.config.batch_size * setup.config.accumulate
    return sum(len(setup.batches.indices(step)) for step in range(done))


def _write_config(run_dir: Path, setup: Setup):
    record = dataclasses.asdict(setup.config)
    write_record(run_dir / "config.json", record)
    resolved = {
        "model": models.model_record(setup.model_config),
        "optimizer": dataclasses.asdict(setup.optim),
        "total_steps": setup.total_steps,
        "steps_per_epoch": setup.steps_per_epoch,
        "budgets": [dataclasses.asdict(b) for b in setup.batches.budgets],
        "tasks": [tasks.task_record(d.task) for d in setup.data],
        "matmul_precision": setup.config.precision,
    }
    write_record(run_dir / "resolved.json", resolved)


def _closing_words(run_dir: Path, config: PretrainConfig, setup: Setup, summary: dict, done: int):
    if done < setup.total_steps:
        command = " ".join(["python -m experiments.pretrain", f"--config {run_dir / 'config.json'}", "--resume"])
        print(f"stopped and saved at step {done}/{setup.total_steps}; continue with: {command}")
        return
    if config.quiet:
        return
    held_out = f"{config.upstream} ({sum(int(b.graph_mask.sum()) for b in setup.val)} structures)"
    if any("forces" in d.task.labels for d in setup.data):
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


if __name__ == "__main__":
    raise SystemExit(main())

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
from jaxatoms.data.subset import parse_count
from jaxatoms.graphs.batch import collate, empty_structures, stack
from jaxatoms.models import registry as models
from jaxatoms.models.gemnet_oc.config import LARGE, SMALL
from jaxatoms.models.gemnet_oc.scale_fit import fit_scale_factors
from jaxatoms.models.gemnet_oc.shipped_scales import load_shipped_scales
from jaxatoms.models.precision import Precision
from jaxatoms.training import parallel
from jaxatoms.training.loop import evaluate
from jaxatoms.training.losses import LossScales
from jaxatoms.training.optim import OptimConfig, make_optimizer, warmup_cosine
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import init_state, make_eval_step, make_train_step
from jaxatoms.types import InputError

SCALE_FIT_BATCHES = 16
# Settings that may change when a run is resumed: they do not enter the result.
RESUMABLE = (
    "resume", "plan", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "devices",
    "shard_optimizer", "part_headroom", "coordinator", "num_processes", "process_id", "compile_for", "steps_per_call",
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
    """auto (by formula or system, or the file's own), or record: at random, so that near copies may be held out."""
    epochs: int = 5
    """Passes E over the N structures."""
    model: str = "gemnet_oc_s"
    """gemnet_oc_s, gemnet_oc_l, gemnet_oc_tiny, equiformer_v2_31m, equiformer_v2_tiny, or a JSON file of dimensions."""
    batch_size: int = 20
    """Structures per step."""
    batch_edges: int | None = None
    """Throughput mode: fill batches up to this many edges instead of counting structures."""
    accumulate: int = 1
    """Batches per step, one after another: the step of a batch so many times as large, in the memory of one."""
    steps_per_call: int = 1
    """Steps of one compiled call: less overhead for small batches; their batches share a shape."""
    batch_shapes: int = 4
    """Padded batch sizes, 1 to 4, each compiled once; more of them waste fewer edge slots."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Default: 2000, or a tenth of the run where that is less."""
    weight_decay: float = 0.1
    ema_decay: float = 0.99
    clip_norm: float = 1.0
    edge_dropout: float = 0.1
    """Rate at which directed edges are dropped in training."""
    force_atoms: str = "all"
    """Atoms whose forces are learnt: all (the paper) or free, which is what the reported error counts."""
    loss_scales: str = "ea"
    """Loss weights of energy and forces: ea (the paper: 1 and 10) or jmp."""
    scales: str = "fit"
    """Scale factors: fit (on validation batches) or shipped (JMP's values; S and L only)."""
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
    """Stop after this many steps; the schedule then ends there."""
    val_every: float = 0.05
    """Validate every so many epochs."""
    val_samples: int = 2000
    """Validation structures, at most."""
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
        parse_count(self.n)
        cli.check_positive(self, "epochs", "batch_size", "max_steps", "batch_edges", "lr", "val_every", "val_samples",
                           "log_every", "accumulate", "steps_per_call")  # fmt: skip
        if not 0 <= self.edge_dropout < 1:
            raise InputError(f"--edge-dropout must be at least 0 and below 1, got {self.edge_dropout}")
        if not 1 <= self.batch_shapes <= packing.MAX_SHAPES:
            raise InputError(f"--batch-shapes must be 1 to 4, got {self.batch_shapes}")
        cli.check_choices(self, _CHOICES)
        if self.fused_residual and self.precision != "bfloat16":
            raise InputError("--fused-residual multiplies in bfloat16; add --precision bfloat16")


_CHOICES = {
    "split": ("auto", "record"),
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
    model_config: models.ModelConfig
    optim: OptimConfig
    total_steps: int
    steps_per_epoch: int
    devices: fleet.Fleet

    @property
    def loss_scales(self) -> LossScales:
        prefix = "jmp_" if self.config.loss_scales == "jmp" else ""
        scales = ([getattr(d.spec, f"{prefix}{name}_scale") for d in self.data] for name in ("energy", "force"))
        return LossScales(*map(jnp.array, scales))

    @property
    def n_train(self) -> int:
        """Training structures of all tasks."""
        return sum(len(d.train) for d in self.data)


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
        data = prepare_data(config, run_dir if fleet.is_writer() else None)
    model_config = models.find_config(config.model)
    corpus, train_samples, val_samples = tasks.make_corpus(data, models.uses_nearest_graph(model_config))
    devices = fleet.Fleet(parallel.make_mesh(config.devices), config.shard_optimizer)
    batches = make_batches(config, corpus, train_samples, devices)
    val = loader.eval_batches(corpus, val_samples, min(config.batch_size, len(val_samples.record)))
    precision = Precision(matmul=config.precision, fused_residual=config.fused_residual)
    model = models.make_model(model_config, len(data), config.seed, precision)
    if fit and models.has_scale_factors(model_config):
        set_scale_factors(config, model, model_config, val)
    total = min(batches.total_steps, config.max_steps or batches.total_steps)
    warmup = min(2000, total // 10) if config.warmup_steps is None else config.warmup_steps
    optim = OptimConfig(
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=warmup,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
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


def prepare_data(config: PretrainConfig, run_dir: Path | None) -> list[tasks.TaskData]:
    """The run's tasks; splits and references are saved where there is a run folder."""
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
        split_rule=None if config.split == "auto" else config.split,
        save_to=run_dir and run_dir / "data",
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
    parts = dict(batch_edges=capacity, shapes=config.batch_shapes, headroom=config.part_headroom,
                 accumulate=config.accumulate, alike=config.steps_per_call)
    if capacity is None:
        steps = max(1, len(samples.record) * config.epochs // batch_size)
        budgets = packing.fixed_budgets(
            sizes, batch_size, largest, steps, config.seed, config.batch_shapes, config.steps_per_call
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
    plan = calls.plan_calls(first, setup.total_steps, validate_every, config.steps_per_call)
    return loader.prefetch(calls.StackedBatches(setup.batches).batch, plan, config.workers)


def set_scale_factors(config: PretrainConfig, model, model_config, val: list):
    """Fit the scale factors on validation batches, or load JMP's.

    Raises:
      InputError: shipped factors for dimensions that JMP never shipped.
    """
    if config.scales == "fit":
        notify = (lambda _: None) if config.quiet else (lambda text: print(f"\r{text} ", end="", flush=True))
        fit_scale_factors(model, [jax.device_put(b) for b in val[:SCALE_FIT_BATCHES]], notify)
        if not config.quiet:
            print()
        return
    for variant, preset in (("small", SMALL), ("large", LARGE)):
        if dataclasses.replace(model_config, remat=False) == preset:
            return load_shipped_scales(model.backbone, variant)
    raise InputError("--scales shipped exists for gemnet_oc_s and gemnet_oc_l only; use --scales fit")


def run(setup: Setup, run_dir: Path, resumed: bool):
    """Train, validate, save; leaves a complete run folder whether it finishes or is stopped."""
    config, model, devices = setup.config, setup.model, setup.devices
    out_dir, val = fleet.output_dir(run_dir), devices.grouped(setup.val)
    divisors = models.shared_gradient_divisors(setup.model_config, model.params)
    optimizer = make_optimizer(setup.optim, setup.total_steps, divisors)
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
            ema_decay=config.ema_decay,
            edge_dropout=config.edge_dropout,
            dropout_seed=config.seed if models.has_dropout(setup.model_config) else None,
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
    }


def physical(sums: dict, data: list[tasks.TaskData]) -> dict[str, float]:
    """MAEs in meV and meV/A: of the one task, or the mean over tasks and each task's own."""
    metrics = {"loss": float(sums["loss"] / sums["count"])}
    labels = {"force": "force_mae_mev_per_angstrom", "energy": "energy_mae_mev"}
    if not np.array_equal(sums["all_force_count"], sums["force_count"]):
        labels["all_force"] = "all_atom_force_mae_mev_per_angstrom"
    for name, label in labels.items():
        mae = np.asarray(sums[f"{name}_error"]) / np.maximum(sums[f"{name}_count"], 1)
        values = [
            1000 * float(m) * getattr(d.task.normalization, f"{name.removeprefix('all_')}_std")
            for m, d in zip(mae, data, strict=True)
        ]
        metrics[label] = float(np.mean(values))
        if len(values) > 1:
            names = mixture.task_names(data)
            metrics |= {f"{label}/{task}": value for task, value in zip(names, values, strict=True)}
    return metrics


def summarise(setup: Setup, session: Session, state, done: int, meter, train_step) -> dict:
    """What a run reports about itself."""
    shapes = train_step._cache_size()
    return {
        "steps": done,
        "total_steps": setup.total_steps,
        "finished": done == setup.total_steps,
        "samples_seen": _samples_seen(setup, done),
        "budget": {"n": setup.n_train, "epochs": setup.config.epochs,
                   "samples": setup.n_train * setup.config.epochs},
        "n_per_task": {d.task.name: len(d.train) for d in setup.data},
        "upstream": setup.config.upstream,
        "model": setup.config.model,
        "parameters": models.count_params(state.params),
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
    """Validation force MAE, meV/A, of predicting the mean force (zero) on every free atom; the mean over tasks."""
    total, count = np.zeros(len(data)), np.zeros(len(data))
    for batch in val:
        mask, task = batch.force_mask & (batch.free | (not free_only)), batch.task[batch.node_graph]
        for i in range(len(data)):
            own = mask & (task == i)
            total[i], count[i] = total[i] + np.abs(batch.forces[own]).sum(), count[i] + 3 * own.sum()
    force_std = np.array([d.task.normalization.force_std for d in data])
    return float(np.mean(1000 * force_std * total / np.maximum(count, 1)))


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
    print(f"\nvalidation force MAE on {config.upstream} ({sum(int(b.graph_mask.sum()) for b in setup.val)} structures)")
    _print_errors(summary, "force_mae_mev_per_angstrom")
    if "all_atom_force_mae_mev_per_angstrom" in summary["validation"]:
        print("the same with fixed atoms, which the paper's loss counts (--force-atoms)")
        _print_errors(summary, "all_atom_force_mae_mev_per_angstrom")
    print(f"{summary['structures_per_second']:.1f} structures/s, {summary['atoms_per_second']:,.0f} atoms/s, "
          f"{summary['occupancy']:.1%} of edge slots real, {summary['compiled_shapes']} compiled shapes, "
          f"peak memory {summary['peak_memory_gib']['host']:.1f} GiB")
    print(f"run folder: {run_dir}")


def _print_errors(summary: dict, name: str):
    rows = {"before training": (summary["validation_before"] or {}).get(name),
            "mean-force baseline": summary["mean_baseline_" + name], "after training": summary["validation"][name]}
    for label, value in rows.items():
        print(f"  {label:20s} {'-' if value is None else format(value, '9.1f')} meV/A")


if __name__ == "__main__":
    raise SystemExit(main())

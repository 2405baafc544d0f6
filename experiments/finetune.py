"""Fine-tune a pretrained GemNet-OC or EquiformerV2 on a downstream data set, and report the error on its test split.

    python -m experiments.finetune --downstream rmd17:aspirin --init runs/ani1x --run-dir runs/ft

The recipe of each data set is the paper's; `--budget small` keeps everything but the number of steps.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import cli, evaluation, finetune_model, lock, remat
from experiments.passes import Pass, plan_pass
from experiments.provenance import peak_memory_gib, provenance
from experiments.recipes import SMALL_STEPS, Recipe, find_recipe
from experiments.run_data import load_run_constants, load_run_split, save_run_data
from experiments.runtime import prepare_process
from experiments.session import (
    FRESH,
    Session,
    check_run_dir,
    has_checkpoint,
    has_finished,
    restore_run,
    say,
    write_record,
)
from jaxatoms.data import loader, packing
from jaxatoms.data.classes import compositions
from jaxatoms.data.corpus import Samples, draw_over_tasks, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_corpus import (
    DownstreamCorpus,
    constants_record,
    family_of,
    open_downstream,
    with_constants,
)
from jaxatoms.data.references import LinearReference
from jaxatoms.data.splits import Split
from jaxatoms.data.subset import parse_count
from jaxatoms.graphs.batch import collate, empty_structures
from jaxatoms.models import registry as models
from jaxatoms.models.architecture import Architecture, Config
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.models.common.precision import Precision
from jaxatoms.training import finetuning
from jaxatoms.training.checkpoint import CheckpointStore, restore
from jaxatoms.training.finetuning import FinetuneOptim, Plateau
from jaxatoms.training.flat import flattened
from jaxatoms.training.loop import evaluate
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import init_state, make_update
from jaxatoms.types import InputError

RESUMABLE = (
    "resume", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "test_samples",
    "batch_shapes",
)  # fmt: skip
ENERGY_PROBE = 512  # training structures that fix the zero of a potential's energy
SCALE_FIT_BATCHES, SCALE_FIT_STRUCTURES = 16, 320


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run; None means: what the data set's recipe says."""

    downstream: str
    """rmd17:aspirin, md22:Ac-Ala3-NHMe, spice:..., qm9:U_0, qmof, matbench:phonons/0, demo:aspirin, file:PATH."""
    init: str
    """Where to start: RUN (its best-validation checkpoint), RUN@last, a step folder, a converted folder, or scratch."""
    init_mode: str = "ema"
    """ema (averaged weights and atom embedding) or reference (as released: raw weights; GemNet-OC: fresh embedding;
    EquiformerV2 on rMD17: Gaussians as narrow as for the data set's cutoff)."""
    refit_scales: bool = False
    """Fit the scale factors of a pretrained GemNet-OC anew on this data set, instead of keeping those that its weights
    were trained with."""
    model: str | None = None
    """Dimensions of a run from scratch (default gemnet_oc_s); a checkpoint of others is refused."""
    target: str | None = None
    """What to learn of a data set without a recipe: forces, energy, or a scalar of the file by its name. Default:
    forces where there are any, else energies."""
    forces: str = "auto"
    """auto (the recipe's), gradient or direct."""
    split: str = "auto"
    """auto takes the published split or the file's own, else keeps groups together, else draws structures; group or
    record ask for these, and FILE.npz names a saved split (arrays train, val, test)."""
    n_train: int | None = None
    """Training structures, taken from the training part of the split."""
    n_val: int | None = None
    """Validation structures, taken from the validation part of the split."""
    val_samples: int | None = None
    """Validation structures that are evaluated every epoch, at most; default: 10,000, or 2000 with --budget small."""
    test_samples: str = "2000"
    """Test structures evaluated at the end (random, seed 0), or `all` for final numbers."""
    budget: str = "paper"
    """paper, or small: 400 steps."""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    max_steps: int | None = None
    weight_decay: float | None = None
    ema_decay: float = 0.99
    freeze_backbone: bool = False
    """Linear probing: train the head alone."""
    cutoff: float | None = None
    """A; default: the data set's."""
    max_neighbors: int | None = None
    batch_shapes: int | None = None
    """As in experiments.pretrain."""
    precision: str = "float32"
    """As in experiments.pretrain."""
    remat: str = "no"
    """As in experiments.pretrain."""
    seed: int = 0
    workers: int = 0
    run_dir: str = "runs/finetune"
    resume: bool = False
    data_root: str | None = None
    cache_dir: str | None = None
    log_every: int = 20
    keep: int = 1
    quiet: bool = False

    def __post_init__(self):
        parse_count(self.test_samples)
        cli.check_positive(
            self, "n_train", "n_val", "val_samples", "epochs", "batch_size", "lr", "max_steps", "log_every"
        )
        if (self.n_train is None) != (self.n_val is None):
            raise InputError("--n-train and --n-val belong together; give both")
        cli.check_choices(self, _CHOICES)


_OF_RECIPE = ("epochs", "batch_size", "lr", "weight_decay")  # settings that override the recipe's
_CHOICES = {
    "init_mode": ("ema", "reference"),
    "forces": ("auto", "gradient", "direct"),
    "budget": ("paper", "small"),
    "precision": ("float32", "tf32", "bfloat16"),
    "remat": remat.CHOICES,
}


@dataclasses.dataclass
class Setup:
    """Everything a run consists of before its first step."""

    config: FinetuneConfig
    recipe: Recipe
    corpus: DownstreamCorpus
    split: Split
    batches: loader.TrainBatches
    val: list
    eval_shapes: list  # budgets of validation batches; the test's take them where they can
    model: models.PureModel
    model_config: Config
    head: HeadSpec
    optim: FinetuneOptim
    steps_per_epoch: int
    total_steps: int
    origin: dict  # see `finetune_model.origin_record`

    @property
    def architecture(self) -> Architecture:
        """The architecture of the model."""
        return models.architecture_of(self.model_config)

    @property
    def upstream(self) -> str:
        """What the model was pretrained on, or scratch."""
        return self.origin["upstream"]


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.finetune`."""
    config = cli.parse(FinetuneConfig, argv, description=__doc__, prog="python -m experiments.finetune")
    prepare_process()
    run_dir = cli.resolve_run_dir(config.run_dir)
    with lock.hold(run_dir):
        resumed = check_run_dir(run_dir, config, RESUMABLE)
        run(prepare(config, run_dir), run_dir, resumed)
    return 0


def prepare(config: FinetuneConfig, run_dir: Path | None) -> Setup:
    """Data, batches, model and schedule of a run."""
    resolved = run_dir / "resolved.json" if run_dir is not None and config.resume else None
    init = finetune_model.find_init(config.init, config.model)
    folder = None if run_dir is None else run_dir / "data"
    resumed = run_dir is not None and has_checkpoint(run_dir)
    origin = _recorded_origin(resolved) or init.origin
    if init.path is not None and not config.quiet and not config.resume:
        say(finetune_model.describe_origin(origin))
    corpus, split = open_data(config, init.model, folder if resumed else None)
    finetune_model.check_elements(corpus.store, init.model, config.downstream)
    given = {k: getattr(config, k) for k in _OF_RECIPE if getattr(config, k) is not None}
    own = models.architecture_of(init.model).finetuning.changes(family_of(config.downstream))
    recipe = dataclasses.replace(find_recipe(config.downstream, corpus.facts), **own | given)
    if folder is not None and not resumed:
        save_run_data(folder, split, corpus.store, constants_record(corpus))
    batches = _make_batches(config, recipe, corpus, samples_of(0, split.train))
    n_val = config.val_samples or (2000 if config.budget == "small" else 10_000)
    val_samples = samples_of(0, evaluation.draw(split.val, n_val))
    eval_shapes: list = []
    val = list(plan_pass(corpus, val_samples, evaluation.BATCH_EDGES, eval_shapes).batches())
    def batches_to_fit() -> list:
        drawn = draw_over_tasks(val_samples, SCALE_FIT_STRUCTURES, config.seed)
        plan = plan_pass(corpus, drawn, evaluation.BATCH_EDGES, eval_shapes)
        return [jax.device_put(batch) for batch in itertools.islice(plan.batches(), SCALE_FIT_BATCHES)]

    model, model_config, head = _make_model(config, recipe, corpus, batches_to_fit, init.path, init.model)
    per_epoch = batches.total_steps // batches.epochs
    total = config.max_steps or (SMALL_STEPS if config.budget == "small" else batches.total_steps)
    total = min(total, batches.total_steps)
    optim = _make_optim(recipe, batches, total)
    setup = Setup(
        config, recipe, corpus, split, batches, val, eval_shapes, model, model_config, head, optim, per_epoch, total,
        origin,
    )  # fmt: skip
    return _recomputing(setup) if _recomputes(setup, resolved) else setup


def _recorded_origin(resolved: Path | None) -> dict | None:
    """What a run that is resumed noted when it started; the folder of --init may hold another run by now."""
    if resolved is None or not resolved.exists():
        return None
    record = json.loads(resolved.read_text())
    return record.get("origin") or {"upstream": record["upstream"]}  # an older run noted no more


def _recomputes(setup: Setup, resolved: Path | None) -> bool:
    def step_bytes():
        optimizer, model = make_optimizer(setup), flattened(setup.model, shapes_only=True)
        state = jax.eval_shape(lambda p: init_state(p, optimizer), model.params)
        update = make_update(make_loss(setup, model.apply), optimizer, ema_decay=setup.config.ema_decay)
        batch = collate(*empty_structures(), setup.batches.budgets[-1])
        return remat.program_bytes(update.lower(state, model.constants, batch, plateau=jnp.float32(1)).compile())

    return remat.decide(setup.config.remat, step_bytes, resolved)


def _recomputing(setup: Setup) -> Setup:
    model_config = dataclasses.replace(setup.model_config, remat=True)
    precision = Precision(matmul=setup.config.precision)
    module = nnx.eval_shape(lambda: models.build_finetuned(model_config, setup.head, nnx.Rngs(0), precision))
    model = setup.model._replace(apply=models.split_model(module).apply)
    return dataclasses.replace(setup, model=model, model_config=model_config)


def _make_optim(recipe: Recipe, batches: loader.TrainBatches, total: int) -> FinetuneOptim:
    """The schedule of a run of `total` steps; one cut short has its cosine and warm-up shortened."""
    whole = batches.total_steps
    per_epoch = whole // batches.epochs
    return FinetuneOptim(
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_epochs * per_epoch * total // whole,
        cosine_steps=min((recipe.cosine_epochs or batches.epochs) * per_epoch, total),
        final_lr=recipe.final_lr,
    )


def open_data(
    config: FinetuneConfig, model: Config, saved: Path | None = None
) -> tuple[DownstreamCorpus, Split]:
    """The data set and split that a run's settings name, with the graphs that its model reads.

    Args:
      saved: folder of the run's own split and constants (`run_data`), which are taken where it is given.

    Raises:
      InputError: anything wrong with them, or data that have changed since the run began.
    """
    sizes = None if config.n_train is None or config.n_val is None else (config.n_train, config.n_val)
    own = models.architecture_of(model)
    cutoff, max_neighbors = own.finetuning.graphs.get(family_of(config.downstream), (None, None))
    corpus, split = open_downstream(
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
    corpus = corpus if constants is None else with_constants(corpus, constants)
    corpus = dataclasses.replace(corpus, graphs=own.graphs)
    if len(split.test) == 0:
        raise InputError(f"{config.downstream}: the split leaves no test structures; give more, or another --split")
    return corpus, split


def _make_batches(config: FinetuneConfig, recipe: Recipe, corpus, samples: Samples) -> loader.TrainBatches:
    sizes = loader.measure(corpus, samples, 0.0, config.seed)
    steps = -(-len(samples.record) // recipe.batch_size) * recipe.epochs
    largest = loader.largest_structure(corpus, samples)
    shapes = config.batch_shapes or packing.shapes_worth_compiling(steps)
    budgets = packing.fixed_budgets(sizes, recipe.batch_size, largest, steps, config.seed, shapes)
    return loader.TrainBatches(
        corpus=corpus,
        samples=samples,
        budgets=budgets,
        epochs=recipe.epochs,
        seed=config.seed,
        edge_dropout=0.0,
        batch_size=recipe.batch_size,
        round_up=True,
    )


def _make_model(config: FinetuneConfig, recipe: Recipe, corpus: DownstreamCorpus, batches_to_fit: Callable[[], list],
                path: Path | None, dimensions: Config):
    """(model, dimensions, head): pretrained, or fresh; with scale factors fitted on `batches_to_fit()` where fresh.

    Raises:
      InputError: --refit-scales for a network that has no scale factors, or a checkpoint that does not fit.
    """
    direct = recipe.direct_forces if config.forces == "auto" else config.forces == "direct"
    head, precision = finetune_model.head_of(corpus.facts, recipe.dropout, direct), Precision(matmul=config.precision)
    own = models.architecture_of(dimensions)
    dimensions = own.finetuning.dimensions(dimensions, head)
    if config.init_mode == "reference":
        family, cutoff = family_of(config.downstream), corpus.facts.graph.cutoff
        dimensions = own.finetuning.as_released(dimensions, family, cutoff)
    module = models.build_finetuned(dimensions, head, nnx.Rngs(config.seed), precision)
    if path is not None:
        notify = (lambda _: None) if config.quiet else say
        model = finetune_model.transfer(models.split_model(module), path, config.init_mode, notify)
        nnx.update(module, model.params, model.constants)
    if config.refit_scales and own.scale_factors is None:
        raise InputError(f"{config.init} has no scale factors; leave --refit-scales out")
    if own.scale_factors is not None and (path is None or config.refit_scales):
        own.scale_factors.fit(module, batches_to_fit(), lambda _: None)
    return models.split_model(module), dimensions, head


def make_loss(setup: Setup, apply: Callable):
    """loss(params, constants, batch, step) -> (loss, {})."""
    facts, recipe = setup.corpus.facts, setup.recipe
    key = jax.random.key(setup.config.seed)
    dropout = bool(setup.head.dropout) or setup.architecture.has_dropout(setup.model_config)

    def loss(params, constants, batch, step):
        random = {"key": jax.random.fold_in(key, step)} if dropout else {}
        out = apply(params, constants, batch, **random)
        if out.forces is not None:
            return finetuning.force_loss(out.forces, batch, recipe.force_coefficient), {}
        if setup.head.n_class:
            return finetuning.class_loss(out.energy, batch, facts.class_weights), {}
        return finetuning.scalar_loss(out.energy, batch), {}

    return loss


def validation_metrics(sums: dict, corpus: DownstreamCorpus) -> dict[str, float]:
    """The data set's metric in the paper's unit, and "loss" (what best means)."""
    if "class_count" in sums:
        recall = float(np.mean(sums["class_right"] / np.maximum(sums["class_count"], 1)))
        return {"loss": 1 - recall, "balanced_accuracy": recall}
    if "force_error" in sums:
        facts = corpus.facts
        assert isinstance(facts, ForceData)
        mae = float(sums["force_error"] / max(sums["force_count"], 1)) * facts.force_std
        return {"loss": mae, "force_mae_mev_per_angstrom": 1000 * mae}
    mae = float(sums["scalar_error"] / max(sums["scalar_count"], 1)) * corpus.std
    return {"loss": mae, "mae": mae * evaluation.unit_of(corpus.facts)[1]}


def checkpoint_meta(setup: Setup, reference: LinearReference | None, plateau: Plateau) -> dict:
    """What a checkpoint needs so that it can be used without the data."""
    return {
        **finetune_model.record(setup.model_config, setup.head),
        "precision": setup.config.precision,
        "tasks": [task_record(setup, reference)],
        "upstream": setup.upstream,
        "origin": setup.origin,
        "config": dataclasses.asdict(setup.config),
        "plateau": plateau._asdict(),
    }


def task_record(setup: Setup, reference: LinearReference | None) -> dict:
    """What prediction needs, in the form of a pretraining task (`tasks.task_record`).

    Gradient forces fix the unit of the energy: it is that of the forces times A, not the data set's energy_std. Its
    zero, which forces say nothing about, is `reference`, fitted to training energies; None where there are none.
    """
    facts, corpus = setup.corpus.facts, setup.corpus
    references = getattr(facts, "references", {})
    seen = np.flatnonzero(corpus.store.elements(setup.split.train))
    record = {
        "name": setup.config.downstream,
        "energy_std": corpus.std,
        "energy_mean": corpus.mean,
        "force_std": getattr(facts, "force_std", None),
        "reference": {str(z): float(references.get(int(z), 0.0)) for z in seen},
        "cutoff": facts.graph.cutoff,
        "max_neighbors": facts.graph.max_neighbors,
        "conditional": facts.graph.conditional,
        "property": getattr(facts, "column", "forces"),
        "labels": {"gradient": ["energy", "forces"], "direct": ["forces"], "scalar": ["energy"]}[setup.head.kind],
    }
    if setup.head.kind == "gradient":
        record |= {"energy_std": record["force_std"], "energy_mean": 0.0, "energy_zero": "unknown"}
    if setup.head.kind == "gradient" and reference is not None:
        record |= {**reference.as_record(), "energy_zero": "fitted"}
        record["reference"] = {str(z): float(reference.coeff[z]) for z in seen}
    return record


def energy_probe(setup: Setup) -> Pass | None:
    """The training structures whose energies fix the zero of a potential's: all compositions alike, at most 512."""
    store, train = setup.corpus.store, setup.split.train
    train = train[np.isfinite(store.energy[train])]
    if setup.head.kind != "gradient" or len(train) == 0:
        return None
    _, composition = np.unique(compositions(store, train), return_inverse=True)
    drawn = draw_over_tasks(Samples(composition.astype(np.int32), train), ENERGY_PROBE, setup.config.seed)
    return plan_pass(setup.corpus, samples_of(0, np.sort(drawn.record)), evaluation.BATCH_EDGES, setup.eval_shapes)


def fit_energy_zero(setup: Setup, probe: Pass, predict: Callable) -> LinearReference:
    """Energies per element, eV, that are least squares of what the labels are above the potential.

    Args:
      probe: of `energy_probe`.
      predict: batch -> ModelOutput.

    A potential trained on forces is right up to a constant of each composition. Constants per element fit those of
    the training compositions, and say which others they fix (`LinearReference.determines`).
    """
    corpus, counts, rest = setup.corpus, [], []
    assert isinstance(corpus.facts, ForceData)
    for group, batch in zip(probe.groups, probe.batches(), strict=True):
        records = probe.samples.record[group]
        energy = np.asarray(predict(batch).energy, np.float64)[: len(records)] * corpus.facts.force_std
        counts.append(corpus.store.element_counts(records))
        rest.append(corpus.store.energy[records] - energy)
    return LinearReference.solve(np.concatenate(counts).astype(np.float64), np.concatenate(rest))


def make_optimizer(setup: Setup):
    """The recipe's optimiser, of the head alone where the backbone is frozen."""
    params, frozen = setup.model.params, setup.config.freeze_backbone
    trained = jax.tree_util.tree_map_with_path(
        lambda path, _: not frozen or str(getattr(path[0], "key", path[0])).startswith("out_"), params
    )
    divisors = setup.architecture.gradient_divisors(params, setup.model_config)
    rates = jax.tree.map(lambda _: 1.0, params)
    if setup.recipe.layer_rates:
        rates = setup.architecture.rate_multipliers(params, setup.model_config)
    return finetuning.make_finetune_optimizer(setup.optim, rates, divisors, trained)


def run(setup: Setup, run_dir: Path, resumed: bool):
    """Train, validate, save, test; leaves a complete run folder whether it finishes or is stopped."""
    config, recipe = setup.config, setup.recipe
    optimizer = make_optimizer(setup)
    model = flattened(setup.model)
    state, constants = init_state(model.params, optimizer), model.constants
    with CheckpointStore(run_dir / "checkpoints", keep=config.keep, notify=say) as checkpoints:
        meta = FRESH | {"plateau": {}}
        if resumed:
            state, constants, meta = restore_run(checkpoints, state, constants)
        first, plateau = meta["step"], [Plateau(**meta["plateau"])]
        probe, reference = energy_probe(setup), [_recalled_reference(meta)]
        if has_finished(run_dir, first, setup.total_steps):
            _test_finished(setup, run_dir, jax.jit(model.apply), state.ema, constants)
            return
        _write_config(run_dir, setup)
        update = make_update(make_loss(setup, model.apply), optimizer, ema_decay=config.ema_decay)
        # Compiled once for validation and test, which share their batch shapes.
        apply, sums = jax.jit(model.apply), jax.jit(finetuning.error_sums)

        def errors(params, constants, batch):
            return sums(apply(params, constants, batch), batch)

        def validated(params):
            if probe is not None:
                reference[0] = fit_energy_zero(setup, probe, functools.partial(apply, params, constants))
            return validation_metrics(evaluate(params, constants, setup.val, errors), setup.corpus)

        def lower_rate(step: int, metrics: dict):
            if step > setup.optim.cosine_steps:
                plateau[0] = plateau[0].after(metrics["loss"], recipe.patience)

        with RunLog(run_dir, setup.total_steps, config.quiet, resume_step=first if config.resume else None) as log:
            session = Session(
                checkpoints=checkpoints,
                log=log,
                constants=constants,
                metrics=validated,
                meta=lambda: checkpoint_meta(setup, reference[0], plateau[0]),
                save_every=setup.steps_per_epoch,
                after_validation=lower_rate,
            )
            session.recall(meta)
            if not resumed:
                session.validate(0, state)
            state, done, meter = session.run(
                state,
                loader.prefetch(setup.batches.batch, range(first, setup.total_steps), config.workers),
                lambda state, constants, batch: update(
                    state, constants, batch, plateau=jnp.float32(plateau[0].factor)
                ),
                first=first,
                total=setup.total_steps,
                log_every=config.log_every,
                validate_every=max(setup.steps_per_epoch, setup.total_steps // 10 if config.budget == "small" else 1),
                learning_rate=lambda step: _learning_rate(setup, step, plateau[0].factor),
            )
            checkpoints.wait()
            summary = summarise(setup, session, state, done, meter, update._cache_size())
            log.write_summary(summary)
            log.write_curves()
    if done == setup.total_steps:
        test_run(setup, run_dir, apply, state.ema, constants)
    _closing_words(run_dir, setup, done)


def _recalled_reference(meta: dict) -> LinearReference | None:
    """The zero of the energy that a run stopped with, until its next validation."""
    task = meta.get("tasks", [{}])[0]
    return LinearReference.from_record(task) if task.get("energy_zero") == "fitted" else None


def _test_finished(setup: Setup, run_dir: Path, apply, params, constants):
    """A resumed run that had ended: its test, where that is missing or was of another size."""
    found, test = run_dir / "test.json", evaluation.draw(setup.split.test, parse_count(setup.config.test_samples))
    if found.is_file() and json.loads(found.read_text())["n_structure"] >= len(test):
        say(f"the run has made all its {setup.total_steps} steps and its test: there is nothing to do")
    else:
        say(f"the run has made all its {setup.total_steps} steps: only the test remains")
        test_run(setup, run_dir, apply, params, constants)
    _closing_words(run_dir, setup, setup.total_steps)


def _learning_rate(setup: Setup, step: int, plateau: float) -> float:
    """Of the head, for the log."""
    return float(setup.optim.lr * plateau * finetuning.rate_factor(setup.optim, step, 1.0))


def test_run(setup: Setup, run_dir: Path, apply, last_params, constants) -> dict:
    """Errors on the test split of the last and of the best averaged weights; writes test.json and plots.

    Args:
      apply: the model's function, jitted.
    """
    best, _ = restore(run_dir / "checkpoints" / "best", {"ema": last_params})
    test = evaluation.draw(setup.split.test, parse_count(setup.config.test_samples))
    weights = {"last_ema": last_params, "best_ema": best["ema"]}
    forwards = {name: functools.partial(apply, params, constants) for name, params in weights.items()}
    return evaluation.assess(
        run_dir, "test", test, len(setup.split.test), forwards, setup.corpus, setup.eval_shapes
    )


def summarise(setup: Setup, session: Session, state, done: int, meter, shapes: int) -> dict:
    """What a run reports about itself."""
    return {
        "steps": done,
        "total_steps": setup.total_steps,
        "finished": done == setup.total_steps,
        "samples_seen": done * setup.recipe.batch_size,
        "downstream": setup.config.downstream,
        "upstream": setup.upstream,
        "origin": setup.origin,
        "init": setup.config.init,
        "split": {name: len(part) for name, part in setup.split._asdict().items()},
        "head": dataclasses.asdict(setup.head),
        "parameters": models.count_params(setup.model.params),
        **meter.rates(),
        "compiled_shapes": shapes,
        "batch_shapes": len(setup.batches.budgets),
        "peak_memory_gib": peak_memory_gib(),
        "precision": setup.config.precision,
        "validation_before": session.first_metrics,
        "validation": session.last_metrics,
        "best_validation_loss": session.best,
        "provenance": provenance(),
    }


def _write_config(run_dir: Path, setup: Setup):
    write_record(run_dir / "config.json", dataclasses.asdict(setup.config))
    resolved = {
        **finetune_model.record(setup.model_config, setup.head),
        "recipe": dataclasses.asdict(setup.recipe),
        "optimizer": dataclasses.asdict(setup.optim),
        "total_steps": setup.total_steps,
        "steps_per_epoch": setup.steps_per_epoch,
        "budgets": [dataclasses.asdict(b) for b in setup.batches.budgets],
        "facts": dataclasses.asdict(setup.corpus.facts),
        "upstream": setup.upstream,
        "origin": setup.origin,
    }
    write_record(run_dir / "resolved.json", resolved)


def _closing_words(run_dir: Path, setup: Setup, done: int):
    if done < setup.total_steps:
        command = f"python -m experiments.finetune --config {run_dir / 'config.json'} --resume"
        print(f"stopped and saved at step {done}/{setup.total_steps}; continue with: {command}")
        return
    print(evaluation.describe(json.loads((run_dir / "test.json").read_text())))
    print(f"run folder: {run_dir}")


if __name__ == "__main__":
    raise SystemExit(main())

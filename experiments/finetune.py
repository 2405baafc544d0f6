"""Fine-tune a pretrained GemNet-OC or EquiformerV2 on a downstream data set, and report the error on its test split.

    python -m experiments.finetune --downstream rmd17:aspirin --init runs/ani1x --run-dir runs/ft

The recipe of each data set is the paper's; `--budget small` keeps everything but the number of steps.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import cli, evaluation, finetune_model, lock, remat
from experiments.passes import plan_pass
from experiments.provenance import peak_memory_gib, provenance
from experiments.recipes import SMALL_STEPS, Recipe, find_graph, find_recipe
from experiments.runtime import prepare_process
from experiments.session import FRESH, Session, check_run_dir, has_finished, restore_run, say, write_record
from jaxatoms.data import loader, packing
from jaxatoms.data.corpus import Samples, samples_of
from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_corpus import DownstreamCorpus, family_of, open_downstream
from jaxatoms.data.splits import Split, save_split
from jaxatoms.data.subset import parse_count
from jaxatoms.graphs.batch import collate, empty_structures
from jaxatoms.models import registry as models
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.gemnet_oc.scale_fit import fit_scale_factors
from jaxatoms.models.precision import Precision
from jaxatoms.training import finetuning
from jaxatoms.training.checkpoint import CheckpointStore, restore
from jaxatoms.training.finetuning import FinetuneOptim, Plateau
from jaxatoms.training.loop import evaluate
from jaxatoms.training.runlog import RunLog
from jaxatoms.training.step import init_state, make_update
from jaxatoms.types import InputError

RESUMABLE = (
    "resume", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "test_samples",
)  # fmt: skip
SCALE_FIT_BATCHES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run; None means: what the data set's recipe says."""

    downstream: str
    """rmd17:aspirin, md22:Ac-Ala3-NHMe, spice:..., qm9:U_0, qmof, matbench:phonons/0, demo:aspirin, file:PATH."""
    init: str
    """Run folder or checkpoint to start from, or `scratch`."""
    init_mode: str = "ema"
    """ema (averaged weights and atom embedding) or reference (as released: raw weights; GemNet-OC: fresh embedding;
    EquiformerV2 on rMD17: Gaussians as narrow as for the data set's cutoff)."""
    model: str | None = None
    """Dimensions of a run from scratch (default gemnet_oc_s); a checkpoint of others is refused."""
    target: str | None = None
    """Column to learn, or `forces`, for data sets without a recipe."""
    forces: str = "auto"
    """auto (the recipe's), gradient or direct."""
    n_train: int | None = None
    """Training structures of a random split, for data sets without a published one (or to override it)."""
    n_val: int | None = None
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
    batch_shapes: int = 2
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
    model_config: models.ModelConfig
    head: models.HeadSpec
    optim: FinetuneOptim
    steps_per_epoch: int
    total_steps: int
    pretrained: dict  # settings of the pretraining run

    @property
    def upstream(self) -> str:
        """What the model was pretrained on, or scratch."""
        return str(self.pretrained.get("upstream", "?"))


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
    init = finetune_model.find_init(config.init, config.model)
    corpus, split = open_data(config, init[1])
    finetune_model.check_elements(corpus.store, init[1], config.downstream)
    given = {k: getattr(config, k) for k in _OF_RECIPE if getattr(config, k) is not None}
    recipe = dataclasses.replace(find_recipe(config.downstream, corpus.facts, init[1]), **given)
    if run_dir is not None:
        (run_dir / "data").mkdir(exist_ok=True)
        save_split(run_dir / "data" / "split.npz", split, corpus.store)
    batches = _make_batches(config, recipe, corpus, samples_of(0, split.train))
    n_val = config.val_samples or (2000 if config.budget == "small" else 10_000)
    val_samples = samples_of(0, split.val[:n_val])
    eval_shapes: list = []
    val = list(plan_pass(corpus, val_samples, evaluation.BATCH_EDGES, eval_shapes).batches())
    model, model_config, head = _make_model(config, recipe, corpus, val, *init[:2])
    per_epoch = batches.total_steps // batches.epochs
    total = config.max_steps or (SMALL_STEPS if config.budget == "small" else batches.total_steps)
    total = min(total, batches.total_steps)
    optim = _make_optim(recipe, batches, total)
    setup = Setup(
        config, recipe, corpus, split, batches, val, eval_shapes, model, model_config, head, optim, per_epoch, total,
        init[2],
    )  # fmt: skip
    resolved = run_dir / "resolved.json" if run_dir is not None and config.resume else None
    return _recomputing(setup) if _recomputes(setup, resolved) else setup


def _recomputes(setup: Setup, resolved: Path | None) -> bool:
    def step_bytes():
        optimizer = make_optimizer(setup)
        state = jax.eval_shape(lambda p: init_state(p, optimizer), setup.model.params)
        update = make_update(make_loss(setup), optimizer, ema_decay=setup.config.ema_decay)
        batch = collate(*empty_structures(), setup.batches.budgets[-1])
        return remat.program_bytes(update.lower(state, setup.model.constants, batch, plateau=jnp.float32(1)).compile())

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


def open_data(config: FinetuneConfig, model: models.ModelConfig) -> tuple[DownstreamCorpus, Split]:
    """The data set and split that a run's settings name, with the graphs that its model reads.

    Raises:
      InputError: anything wrong with them.
    """
    sizes = None if config.n_train is None or config.n_val is None else (config.n_train, config.n_val)
    graph = find_graph(config.downstream, model)
    corpus, split = open_downstream(
        config.downstream,
        config.data_root,
        config.cache_dir,
        target=config.target,
        sizes=sizes,
        cutoff=config.cutoff or (graph and graph.cutoff),
        max_neighbors=config.max_neighbors or (graph and graph.max_neighbors),
    )
    corpus = dataclasses.replace(corpus, nearest=models.uses_nearest_graph(model))
    if len(split.test) == 0:
        raise InputError(f"{config.downstream}: the split leaves no test structures; lower --n-train or --n-val")
    return corpus, split


def _make_batches(config: FinetuneConfig, recipe: Recipe, corpus, samples: Samples) -> loader.TrainBatches:
    sizes = loader.measure(corpus, samples, 0.0, config.seed)
    steps = -(-len(samples.record) // recipe.batch_size) * recipe.epochs
    largest = loader.largest_structure(corpus, samples)
    budgets = packing.fixed_budgets(sizes, recipe.batch_size, largest, steps, config.seed, config.batch_shapes)
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


def _make_model(config: FinetuneConfig, recipe: Recipe, corpus: DownstreamCorpus, val: list,
                path: Path | None, dimensions: models.ModelConfig):
    """(model, dimensions, head): pretrained, or fresh with fitted scale factors."""
    direct = recipe.direct_forces if config.forces == "auto" else config.forces == "direct"
    head, precision = finetune_model.head_of(corpus.facts, recipe.dropout, direct), Precision(matmul=config.precision)
    dimensions = finetune_model.dimensions_of(
        dimensions, head, basis_width=_reference_width(config, corpus, dimensions)
    )
    module = finetune_model.make(dimensions, head, config.seed, precision)
    if path is not None:
        notify = (lambda _: None) if config.quiet else say
        model = finetune_model.transfer(models.split_model(module), path, config.init_mode, notify)
        return model, dimensions, head
    if models.has_scale_factors(dimensions):
        fit_scale_factors(module, [jax.device_put(b) for b in val[:SCALE_FIT_BATCHES]])
    return models.split_model(module), dimensions, head


def _reference_width(config: FinetuneConfig, corpus: DownstreamCorpus, model: models.ModelConfig) -> float | None:
    """The released code's Gaussians on rMD17: centres to 12 A, width for the data set's 7 A (specification 6)."""
    if config.init_mode != "reference" or not isinstance(model, EquiformerV2Config):
        return None
    return corpus.facts.graph.cutoff / model.max_radius if family_of(config.downstream) == "rmd17" else None


def make_loss(setup: Setup):
    """loss(params, constants, batch, step) -> (loss, {})."""
    facts, recipe, apply = setup.corpus.facts, setup.recipe, setup.model.apply
    key = jax.random.key(setup.config.seed)
    dropout = bool(setup.head.dropout) or models.has_dropout(setup.model_config)

    def loss(params, constants, batch, step):
        random = {"dropout_key": jax.random.fold_in(key, step)} if dropout else {}
        out = apply(params, constants, batch, **random)
        if out.forces is not None:
            return finetuning.force_loss(out.forces, batch, recipe.force_coefficient), {}
        if setup.head.n_class:
            return finetuning.class_loss(out.energy, batch, facts.class_weights), {}
        return finetuning.scalar_loss(out.energy, batch), {}

    return loss


def validation_metrics(sums: dict, corpus: DownstreamCorpus) -> dict[str, float]:
    """The data set's metric in the paper's unit, "loss" (what best means), and the energy offset of a potential."""
    if "class_count" in sums:
        recall = float(np.mean(sums["class_right"] / np.maximum(sums["class_count"], 1)))
        return {"loss": 1 - recall, "balanced_accuracy": recall}
    metrics = {}
    if "force_error" in sums:
        facts = corpus.facts
        assert isinstance(facts, ForceData)
        mae = float(sums["force_error"] / max(sums["force_count"], 1)) * facts.force_std
        metrics = {"loss": mae, "force_mae_mev_per_angstrom": 1000 * mae}
        if "predicted" in sums and sums["scalar_count"]:
            label, guess = (float(sums[k] / sums["scalar_count"]) for k in ("labelled", "predicted"))
            metrics["energy_shift_ev"] = label * corpus.std + corpus.mean - facts.force_std * guess
        return metrics
    mae = float(sums["scalar_error"] / max(sums["scalar_count"], 1)) * corpus.std
    return {"loss": mae, "mae": mae * evaluation.unit_of(corpus.facts)[1]}


def checkpoint_meta(setup: Setup, session: Session, plateau: Plateau) -> dict:
    """What a checkpoint needs so that it can be used without the data."""
    return {
        **finetune_model.record(setup.model_config, setup.head),
        "precision": setup.config.precision,
        "tasks": [task_record(setup, (session.last_metrics or {}).get("energy_shift_ev"))],
        "upstream": setup.upstream,
        "config": dataclasses.asdict(setup.config),
        "plateau": plateau._asdict(),
    }


def task_record(setup: Setup, energy_shift: float | None) -> dict:
    """What prediction needs, in the form of a pretraining task (`tasks.task_record`).

    Gradient forces fix the unit of the energy: it is that of the forces times A, not the data set's energy_std; its
    zero is set so that the mean error on the validation structures vanishes.
    """
    facts, corpus = setup.corpus.facts, setup.corpus
    systems = corpus.store.element_counts(setup.split.train[:20_000])
    seen = np.flatnonzero(systems.any(axis=0))
    references = getattr(facts, "references", {})
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
    }
    if setup.head.kind == "gradient":
        record |= {"energy_std": record["force_std"], "energy_mean": energy_shift or 0.0}
    return record


def make_optimizer(setup: Setup):
    """The recipe's optimiser, of the head alone where the backbone is frozen."""
    params, frozen = setup.model.params, setup.config.freeze_backbone
    trained = jax.tree_util.tree_map_with_path(
        lambda path, _: not frozen or str(getattr(path[0], "key", path[0])).startswith("out_"), params
    )
    divisors = models.shared_gradient_divisors(setup.model_config, params)
    return finetuning.make_finetune_optimizer(setup.optim, _layer_rates(setup), divisors, trained)


def run(setup: Setup, run_dir: Path, resumed: bool):
    """Train, validate, save, test; leaves a complete run folder whether it finishes or is stopped."""
    config, model, recipe = setup.config, setup.model, setup.recipe
    optimizer = make_optimizer(setup)
    state, constants = init_state(model.params, optimizer), model.constants
    with CheckpointStore(run_dir / "checkpoints", keep=config.keep, notify=say) as checkpoints:
        meta = FRESH | {"plateau": {}}
        if resumed:
            state, constants, meta = restore_run(checkpoints, state, constants)
        first, plateau = meta["step"], [Plateau(**meta["plateau"])]
        if has_finished(run_dir, first, setup.total_steps):
            _test_finished(setup, run_dir, state.ema, constants)
            return
        _write_config(run_dir, setup)
        update = make_update(make_loss(setup), optimizer, ema_decay=config.ema_decay)
        # Compiled once for validation and test, which share their batch shapes.
        apply, sums = jax.jit(model.apply), jax.jit(finetuning.error_sums)

        def errors(params, constants, batch):
            return sums(apply(params, constants, batch), batch)

        def lower_rate(step: int, metrics: dict):
            if step > setup.optim.cosine_steps:
                plateau[0] = plateau[0].after(metrics["loss"], recipe.patience)

        with RunLog(run_dir, setup.total_steps, config.quiet, resume_step=first if config.resume else None) as log:
            session = Session(
                checkpoints=checkpoints,
                log=log,
                constants=constants,
                metrics=lambda params: validation_metrics(
                    evaluate(params, constants, setup.val, errors), setup.corpus
                ),
                meta=lambda: checkpoint_meta(setup, session, plateau[0]),
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


def _test_finished(setup: Setup, run_dir: Path, params, constants):
    """A resumed run that had ended: its test, where that is missing or was of another size."""
    found, test = run_dir / "test.json", evaluation.draw(setup.split.test, parse_count(setup.config.test_samples))
    if found.is_file() and json.loads(found.read_text())["n_structure"] >= len(test):
        say(f"the run has made all its {setup.total_steps} steps and its test: there is nothing to do")
    else:
        say(f"the run has made all its {setup.total_steps} steps: only the test remains")
        test_run(setup, run_dir, jax.jit(setup.model.apply), params, constants)
    _closing_words(run_dir, setup, setup.total_steps)


def _layer_rates(setup: Setup):
    """The tree of learning rate multipliers."""
    if not setup.recipe.layer_rates:
        return jax.tree.map(lambda _: 1.0, setup.model.params)
    return finetuning.layer_multipliers(setup.model.params, setup.model_config.num_blocks)


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
        "pretrained": setup.pretrained,
        "init": setup.config.init,
        "split": {name: len(part) for name, part in setup.split._asdict().items()},
        "head": dataclasses.asdict(setup.head),
        "parameters": models.count_params(state.params),
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

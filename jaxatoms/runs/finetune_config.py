"""Settings of a fine-tuning run, as the command line and config.json have them. No JAX: tables read runs by it."""

import dataclasses
from typing import ClassVar

from jaxatoms.data.subset import parse_count
from jaxatoms.runs.pretrain_config import REMAT
from jaxatoms.tools import cli
from jaxatoms.types import InputError

# Settings that may change when a run is resumed: they do not enter the result.
RESUMABLE = (
    "resume", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "test_samples",
    "batch_shapes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run; None means: what the data set's recipe says."""

    GROUPS: ClassVar = {
        "optimiser": ("epochs", "batch_size", "lr", "max_steps", "weight_decay", "ema_decay", "freeze_backbone"),
        "network": ("init_mode", "refit_scales", "cutoff", "max_neighbors", "batch_shapes", "precision",
                              "remat", "workers"),
        "output": ("val_samples", "test_samples", "log_every", "keep", "quiet", "cache_dir"),
    }  # fmt: skip

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
    """Passes over the training structures; default: the recipe's."""
    batch_size: int | None = None
    """Structures per step; default: the recipe's."""
    lr: float | None = None
    """Peak learning rate of the head; default: the recipe's."""
    max_steps: int | None = None
    """Stop after this many steps; the schedule then ends there."""
    weight_decay: float | None = None
    """Decoupled weight decay of AdamW; default: the recipe's."""
    ema_decay: float = 0.99
    """Of the averaged weights, per step."""
    freeze_backbone: bool = False
    """Linear probing: train the head alone."""
    cutoff: float | None = None
    """A; default: the data set's."""
    max_neighbors: int | None = None
    """K of the main graph; default: the data set's."""
    batch_shapes: int | None = None
    """As in experiments.pretrain."""
    precision: str = "float32"
    """As in experiments.pretrain."""
    remat: str = "no"
    """As in experiments.pretrain."""
    seed: int = 0
    """Of the head's weights, the order and the dropout."""
    workers: int = 0
    """As in experiments.pretrain."""
    run_dir: str = "runs/finetune"
    """Where everything is written."""
    resume: bool = False
    """Continue the run in run_dir, exactly."""
    data_root: str | None = None
    """Folder of the data sets; default: JAXATOMS_DATA."""
    cache_dir: str | None = None
    """Folder of converted data sets; default: JAXATOMS_CACHE, then ~/.cache/jaxatoms."""
    log_every: int = 20
    """Steps between records of the training loss."""
    keep: int = 1
    """Newest checkpoints to keep, besides the best."""
    quiet: bool = False
    """Print errors, what stopped the run and the test alone."""

    def __post_init__(self):
        parse_count(self.test_samples)
        cli.check_positive(
            self, "n_train", "n_val", "val_samples", "epochs", "batch_size", "lr", "max_steps", "log_every"
        )
        if (self.n_train is None) != (self.n_val is None):
            raise InputError("--n-train and --n-val belong together; give both")
        cli.check_choices(self, _CHOICES)


_CHOICES = {
    "init_mode": ("ema", "reference"),
    "forces": ("auto", "gradient", "direct"),
    "budget": ("paper", "small"),
    "precision": ("float32", "tf32", "bfloat16"),
    "remat": REMAT,
}

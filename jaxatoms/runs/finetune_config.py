"""Settings of a fine-tuning run, as the command line and config.json have them. No JAX: tables read runs by it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxatoms.data import packing
from jaxatoms.data.subset import parse_count
from jaxatoms.runs.pretrain_config import REMAT, SMOOTH_QUADRUPLETS
from jaxatoms.tools import cli
from jaxatoms.types import InputError

# Settings that may change when a run is resumed: they do not enter the result.
RESUMABLE = (
    "resume", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "test_samples",
    "batch_shapes", "devices", "shard_optimizer", "part_headroom", "coordinator", "num_processes", "process_id",
    "steps_per_call",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run; None means: what the data set's recipe says."""

    GROUPS: ClassVar = {
        "optimiser": ("epochs", "batch_size", "lr", "max_steps", "weight_decay", "ema_decay"),
        "adaptation": ("train", "freeze", "replay", "replay_share"),
        "network": ("init_mode", "refit_scales", "smooth_quadruplets", "cutoff", "max_neighbors"),
        "batches": ("batch_edges", "accumulate", "steps_per_call", "batch_shapes", "workers"),
        "devices": ("precision", "remat", "devices", "shard_optimizer", "part_headroom", "coordinator",
                    "num_processes", "process_id"),
        "output": ("val_samples", "test_samples", "log_every", "keep", "quiet", "cache_dir"),
    }  # fmt: skip

    downstream: str
    """This names the task: rmd17:aspirin, md22:Ac-Ala3-NHMe, spice:..., qm9:U_0, qmof, matbench:phonons/0, demo:aspirin
    or file:PATH; NAME,NAME trains a head for each of several sets of one kind, and qm9:mu,alpha learns several targets
    of one."""
    init: str
    """The run starts from this checkpoint: RUN (its best-validation one), RUN@last, a step folder or a converted
    folder; scratch starts from random weights."""
    init_mode: str = "ema"
    """ema starts from the averaged weights and atom embedding; reference starts as the released code does (from raw
    weights; GemNet-OC with a fresh embedding; EquiformerV2 on rMD17 with Gaussians as narrow as for the data set's
    cutoff)."""
    refit_scales: bool = False
    """Fit the scale factors of a pretrained GemNet-OC on this data set, and do not keep those that its weights were
    trained with."""
    model: str | None = None
    """This sets the dimensions of a run from scratch (gemnet_oc_s by default); a checkpoint of other dimensions is
    refused."""
    smooth_quadruplets: str = "auto"
    """This means the same as in experiments.pretrain: yes or no. auto does as the checkpoint; from scratch it is yes
    for gradient forces of file:PATH, and otherwise what --model says."""
    targets: str | None = None
    """This names what is learnt of a data set without a recipe: any of energy, forces and stress, each with its weight
    (energy:20,forces:10,stress:1, which are also the weights of bare names); or scalars, properties of atoms and
    dipoles of the file (gap,charges:0.5,dipole). The default is forces where there are any, and energies otherwise."""
    e0s: str = "auto"
    """Reference energies per element come from a least-squares fit to the training structures (fit), from isolated
    atoms in the file (isolated) or from a JSON file {"H": -13.6} in eV; auto takes isolated atoms where the file has
    every element, and fits otherwise."""
    forces: str = "auto"
    """Forces are predicted by the recipe's kind of head (auto), as a gradient of the energy (gradient) or by a head of
    their own (direct)."""
    split: str = "auto"
    """auto takes the published split or the file's own, and otherwise keeps groups together or, without groups, draws
    structures; group or record ask for these, and FILE.npz names a saved split (arrays train, val, test)."""
    n_train: int | None = None
    """This many training structures are taken from the training part of the split."""
    n_val: int | None = None
    """This many validation structures are taken from the validation part of the split."""
    val_samples: int | None = None
    """At most this many validation structures are evaluated every epoch; the default is 10,000, or 2000 with --budget
    small."""
    test_samples: str = "2000"
    """This many test structures (random, seed 0) are evaluated at the end; `all` takes every one, for final numbers."""
    budget: str = "paper"
    """paper trains as long as the recipe says, and small makes 400 steps."""
    epochs: int | None = None
    """The run passes this many times over the training structures; the default is the recipe's number."""
    batch_size: int | None = None
    """Each step trains on this many structures; the default is the recipe's number."""
    batch_edges: int | None = None
    """Batches are filled up to this many edges, and structures are not counted; the learning rate has to follow."""
    steps_per_call: int = 1
    """This means the same as in experiments.pretrain: this many steps are dispatched together, for small batches on a
    fast device."""
    accumulate: int = 1
    """This many batches, one after another on each device, make one update; --batch-size counts one of them."""
    lr: float | None = None
    """The learning rate of the head peaks at this value; the default is the recipe's."""
    max_steps: int | None = None
    """The run and its learning-rate schedule end after this many steps."""
    weight_decay: float | None = None
    """AdamW decays parameters by this rate, decoupled from the gradient; the default is the recipe's."""
    ema_decay: float = 0.99
    """The averaged weights keep this share of themselves at each step."""
    train: str = "all"
    """This part of the network is trained: all; heads; last:K, the heads and the last K blocks; norms, the heads and
    the normalisation layers; lora:R, the heads and corrections of rank R to the dense layers of the backbone."""
    replay: str | None = None
    """This pretraining set of the checkpoint is mixed in, with the head that it has there, so that the network does not
    forget it; NAME@PATH reads its structures from another file."""
    replay_share: float = 0.2
    """This share of the training structures is of --replay."""
    freeze: str | None = None
    """Parameters whose names match one of these patterns, separated by commas, stay as they are, such as
    embedding*,backbone/bases/*."""
    cutoff: float | None = None
    """Edges reach this far, in A; the default is that of the data set."""
    max_neighbors: int | None = None
    """The main graph keeps this many neighbours K of each atom; the default is that of the data set."""
    batch_shapes: int | None = None
    """This means the same as in experiments.pretrain: batches are padded to this many sizes, 1 to 4."""
    precision: str = "float32"
    """This means the same as in experiments.pretrain: matrix products are computed in float32, tf32 or bfloat16."""
    remat: str = "no"
    """This means the same as in experiments.pretrain: yes, no or auto decides whether blocks are recomputed in the
    backward pass."""
    devices: int = 1
    """This many devices of this host share the batch of every step. The default is one, because the recipes' batches
    are small (rMD17: 4); every device computes the whole validation and test."""
    coordinator: str | None = None
    """This means the same as in experiments.pretrain: HOST:PORT of process 0 of a run of several processes, which use
    all of their devices; auto asks a cluster that JAX knows."""
    num_processes: int | None = None
    """The run consists of this many processes; this belongs to --coordinator HOST:PORT."""
    process_id: int | None = None
    """This process has this number, counted from 0; it belongs to --coordinator HOST:PORT."""
    shard_optimizer: bool = False
    """This means the same as in experiments.pretrain: moments and average are spread over the devices."""
    part_headroom: float = packing.HEADROOM
    """This means the same as in experiments.pretrain: the room for a device's part beyond the largest seen."""
    seed: int = 0
    """The seed determines the initial weights of the head, the order of structures and the dropout."""
    workers: int = 0
    """This means the same as in experiments.pretrain: this many processes build batches, and with 0 one thread does."""
    run_dir: str = "runs/finetune"
    """The run writes all its files into this folder."""
    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint, exactly."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    log_every: int = 20
    """The training loss is recorded each time this many steps have passed."""
    keep: int = 1
    """This many of the newest checkpoints are kept, besides the best one."""
    quiet: bool = False
    """Print only errors, what stopped the run, and the test."""

    def __post_init__(self):
        parse_count(self.test_samples)
        cli.check_positive(
            self, "n_train", "n_val", "val_samples", "epochs", "batch_size", "accumulate", "lr", "max_steps",
            "log_every", "devices", "batch_edges", "steps_per_call",
        )  # fmt: skip
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay must be at least 0 and below 1, got {self.ema_decay}")
        if (self.n_train is None) != (self.n_val is None):
            raise InputError("--n-train and --n-val belong together; give both")
        cli.check_choices(self, _CHOICES)
        if not 0 < self.replay_share < 1:
            raise InputError(f"--replay-share must lie between 0 and 1, got {self.replay_share}")
        if self.replay is None:
            cli.refuse_unused(self, ["replay_share"], "without --replay")
        if not re.fullmatch(r"all|heads|norms|last:[1-9]\d*|lora:[1-9]\d*", self.train):
            raise InputError(f"--train must be all, heads, last:K, norms or lora:R, got {self.train!r}")

    @staticmethod
    def from_earlier(record: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a run of an earlier version, under the names of this one."""
        record = dict(record)
        if "target" in record:
            record["targets"] = record.pop("target")
        if record.pop("freeze_backbone", False):
            record["train"] = "heads"
        return record


_CHOICES = {
    "init_mode": ("ema", "reference"),
    "forces": ("auto", "gradient", "direct"),
    "budget": ("paper", "small"),
    "precision": ("float32", "tf32", "bfloat16"),
    "remat": REMAT,
    "smooth_quadruplets": SMOOTH_QUADRUPLETS,
}

"""Settings of a pretraining run, as the command line and config.json have them. No JAX: tables read runs by it."""

import dataclasses
from typing import ClassVar

from jaxatoms.data import packing
from jaxatoms.data.mixing import split_names
from jaxatoms.data.subset import parse_count
from jaxatoms.tools import cli
from jaxatoms.types import InputError

REMAT = ("no", "yes", "auto")
# Settings that may change when a run is resumed: they do not enter the result.
RESUMABLE = (
    "resume", "plan", "remat", "workers", "data_root", "cache_dir", "log_every", "quiet", "run_dir", "keep", "devices",
    "shard_optimizer", "part_headroom", "coordinator", "num_processes", "process_id", "compile_for", "steps_per_call",
    "batch_shapes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pretraining run; the defaults are the paper's recipe."""

    GROUPS: ClassVar = {
        "optimiser": ("lr", "warmup_steps", "weight_decay", "ema_decay", "clip_norm", "edge_dropout", "force_atoms",
                      "loss_scales", "scales"),
        "batches": ("batch_edges", "accumulate", "steps_per_call", "batch_shapes", "cutoff", "max_neighbors",
                    "workers"),
        "devices": ("precision", "remat", "devices", "shard_optimizer", "part_headroom", "coordinator",
                    "num_processes", "process_id", "compile_for", "fused_residual"),
        "output": ("val_every", "val_samples", "log_every", "keep", "quiet", "cache_dir"),
    }  # fmt: skip

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
    """Decoupled weight decay of AdamW, on every parameter."""
    ema_decay: float | None = None
    """Of the averaged weights, per step; default: 0.99, and 0 (no average) for EquiformerV2, as in the paper."""
    clip_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it."""
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
    """Processes of the run, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Number of this process, from 0; with --coordinator HOST:PORT."""
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
    """Steps between records of the training loss."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    quiet: bool = False
    """Print errors and what stopped the run alone."""

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
    "remat": REMAT,
}

"""Settings of a pretraining run, as the command line and config.json have them. No JAX: tables read runs by it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxatoms.data import packing
from jaxatoms.data.mixing import split_names
from jaxatoms.data.subset import parse_count
from jaxatoms.tools import cli
from jaxatoms.types import InputError

REMAT = ("no", "yes", "auto")
SMOOTH_QUADRUPLETS = ("auto", "yes", "no")
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
                    "num_processes", "process_id", "compile_for", "kernels"),
        "output": ("val_every", "val_samples", "log_every", "keep", "quiet", "cache_dir"),
    }  # fmt: skip

    upstream: str
    """This names the data set: NAME (below the data root), NAME@PATH, file:PATH or demo:organic; NAME,NAME mixes
    several."""
    mix: str = "balanced"
    """This shares N among several data sets: balanced, temperature, natural, or a ratio such as 2:1."""
    n: str | None = None
    """This many training structures (N) are drawn once with the seed; `all` takes every one. The default is 2e6, or all
    of --subset."""
    subset: str | None = None
    """This names a file of experiments.select; the N structures of a single data set are drawn from its structures
    only."""
    split: str = "auto"
    """auto takes the published split (for OC20 and OC22 the official validation set beside the training set) or the
    file's own, and otherwise keeps groups (formulas, systems) together; group or record ask for these (record holds out
    near copies of training structures), and FILE.npz names a saved split."""
    epochs: int = 5
    """The run passes this many times (E) over the N structures."""
    model: str | None = None
    """This names the network: gemnet_oc_s (the default), gemnet_oc_l, gemnet_oc_tiny, gemnet_oc_nano,
    equiformer_v2_31m, equiformer_v2_tiny, or a JSON file of dimensions. A checkpoint of --init brings its own."""
    init: str | None = None
    """Pretraining goes on from this checkpoint: RUN (its best-validation one), RUN@last, a step folder or a converted
    folder. It keeps its scale factors and the heads of data sets of the same name; other heads are new."""
    smooth_quadruplets: str = "auto"
    """yes fades quadruplets of GemNet-OC out where three of their atoms are nearly in line, so that energies and their
    gradients are smooth there; no keeps the published function; auto does as --model or --init says."""
    batch_size: int = 20
    """Each step trains on this many structures."""
    batch_edges: int | None = None
    """Throughput mode: batches are filled up to this many edges, and structures are not counted."""
    accumulate: int = 1
    """Each step adds up the gradients of this many batches, which are computed one after another: it equals the step of
    one batch of their total size, and needs the memory of a single one."""
    steps_per_call: int = 1
    """One compiled call makes this many steps, which saves overhead for small batches; their batches share a shape."""
    batch_shapes: int | None = None
    """Batches are padded to this many sizes, 1 to 4, each of which is compiled once; more of them leave fewer edge
    slots empty. The default is 1, and one more for every 1,000 steps."""
    lr: float = 1e-4
    """The learning rate rises to this value during warm-up and then falls."""
    warmup_steps: int | None = None
    """The learning rate rises over this many steps; the default is 2000, or a tenth of the run where that is less."""
    weight_decay: float = 0.1
    """AdamW decays every parameter by this rate, decoupled from the gradient."""
    ema_decay: float | None = None
    """The averaged weights keep this share of themselves at each step; the default is 0.99, and 0 (no average) for
    EquiformerV2, as in the paper."""
    clip_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to this norm."""
    edge_dropout: float = 0.1
    """Training drops each directed edge with this probability."""
    force_atoms: str = "all"
    """The loss counts the forces of all atoms (all, as in the paper) or of free atoms only (free), which are those that
    the reported error counts."""
    loss_scales: str = "ea"
    """This sets the loss weights of energy and forces: ea (1 and 10, as in the paper) or jmp."""
    scales: str = "fit"
    """Scale factors are fitted (fit, on 16 batches drawn from the validation structures of all data sets) or taken from
    JMP (shipped, for S and L only)."""
    precision: str = "float32"
    """Matrix products are computed in float32, tf32 or bfloat16; bfloat16 also stores GemNet-OC's edge arrays so.
    Everything else is float32."""
    kernels: str = "auto"
    """auto computes by XLA, and by kernels where those were measured to be faster, which so far is nowhere; xla takes
    none; pallas_tpu (TPUs) and mosaic_gpu (NVIDIA H100 and H200) compute residual layers by kernels that have not been
    measured on hardware yet, and need --precision bfloat16 and direct forces."""
    remat: str = "no"
    """yes recomputes blocks in the backward pass, which saves memory and costs one more forward pass; no keeps them;
    auto compiles the step and recomputes only where it would not fit."""
    seed: int = 0
    """The seed determines which structures are drawn, their order, which edges are dropped and the initial weights."""
    max_steps: int | None = None
    """The run and its learning-rate schedule end after this many steps. 0 saves the network untrained with its scale
    factors fitted, which is the control of `experiments.study --control scales`."""
    val_every: float = 0.05
    """The run validates each time this many epochs have passed; fractions are allowed."""
    val_samples: int = 2000
    """At most this many validation structures of each data set are evaluated."""
    cutoff: float | None = None
    """Edges reach this far, in A; the default is that of the data set (8 for molecules, 12 for periodic structures)."""
    max_neighbors: int | None = None
    """The main graph keeps this many neighbours K of each atom; the default is 30."""
    devices: int | None = None
    """This many devices share the batch of every step; the default is all that JAX finds."""
    shard_optimizer: bool = False
    """The optimiser's moments and the average are spread over the devices (ZeRO-1), which saves memory and adds
    traffic."""
    part_headroom: float = packing.HEADROOM
    """The padded size of a device's part is the largest part seen in a sample times this factor; raise it if a run of
    several processes reports an overflow, because they cannot grow the size during the run."""
    coordinator: str | None = None
    """HOST:PORT is the address of process 0 in a run of several processes; auto asks a cluster that JAX knows."""
    num_processes: int | None = None
    """The run consists of this many processes; this belongs to --coordinator HOST:PORT."""
    process_id: int | None = None
    """This process has this number, counted from 0; it belongs to --coordinator HOST:PORT."""
    compile_for: str | None = None
    """The step is compiled for this TPU topology, such as v5e:4x4, or for these NVIDIA GPUs, such as h200 or h200:8,
    and its cost is printed; nothing is trained."""
    workers: int = 0
    """This many processes build batches; with 0 one thread does."""
    run_dir: str = "runs/pretrain"
    """The run writes all its files into this folder."""
    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint, exactly."""
    plan: bool = False
    """Print steps, budget, memory and time, and train nothing."""
    data_root: str | None = None
    """This folder holds the original files of the data sets; the environment variable JAXATOMS_DATA is the default."""
    cache_dir: str | None = None
    """This folder keeps converted data sets; the defaults are JAXATOMS_CACHE and then ~/.cache/jaxatoms."""
    log_every: int = 20
    """The training loss is recorded each time this many steps have passed."""
    keep: int = 2
    """This many of the newest checkpoints are kept, besides the best one."""
    quiet: bool = False
    """Print only errors and what stopped the run."""

    def __post_init__(self):
        if self.n is None:
            object.__setattr__(self, "n", "2e6" if self.subset is None else "all")
        if self.init is None and self.model is None:
            object.__setattr__(self, "model", "gemnet_oc_s")
        if self.init is not None:
            cli.refuse_unused(self, ["scales"], "with --init, whose scale factors stay")
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
        if self.kernels in ("pallas_tpu", "mosaic_gpu") and self.precision != "bfloat16":
            raise InputError(f"--kernels {self.kernels} multiplies in bfloat16; add --precision bfloat16")

    @staticmethod
    def from_earlier(record: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a run of an earlier version, under the names of this one."""
        record = dict(record)
        if record.pop("fused_residual", False):
            record["kernels"] = "pallas_tpu"
        return record


_CHOICES = {
    "force_atoms": ("all", "free"),
    "loss_scales": ("ea", "jmp"),
    "scales": ("fit", "shipped"),
    "precision": ("float32", "tf32", "bfloat16"),
    "kernels": ("auto", "xla", "pallas_tpu", "mosaic_gpu"),
    "remat": REMAT,
    "smooth_quadruplets": SMOOTH_QUADRUPLETS,
}

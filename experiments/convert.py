"""PyTorch checkpoints -> checkpoint directories of ours; ours <-> safetensors. No PyTorch, nothing of a file is run.

    python -m experiments.convert --torch jmp-s.pt --out runs/jmp_s
    python -m experiments.convert --checkpoint runs/jmp_s --safetensors jmp_s.safetensors
    python -m experiments.convert --from-safetensors jmp_s.safetensors --out runs/again

Prints what became of every key of a PyTorch file.
"""

import collections
import dataclasses
import warnings
from pathlib import Path

import numpy as np

from jaxatoms.data.references import N_ELEMENT, LinearReference
from jaxatoms.data.registry import DATASETS
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.inference.checkpoint_meta import CheckpointMeta
from jaxatoms.inference.model import restore_model
from jaxatoms.inference.model_card import write_card
from jaxatoms.interop.arrays import model_from_arrays
from jaxatoms.interop.safetensors_file import read_safetensors, write_model
from jaxatoms.interop.torch_file import TorchFile
from jaxatoms.interop.torch_layouts import JMP_TASKS, Converted, convert
from jaxatoms.models.registry import (
    architecture_of,
    check_layout,
    config_from_record,
    model_record,
    split_model,
)
from jaxatoms.tools import cli
from jaxatoms.tools.provenance import provenance
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.training.checkpoint import CheckpointStore
from jaxatoms.types import InputError

# EquiformerV2 31M, OC20 S2EF All+MD (docs/reference/equiformer_v2.md, Heads): adsorption energies, eV.
_OC20_MEAN, _OC20_STD = -0.7554450631141663, 2.887317180633545
JMP_LICENCE = "CC-BY-NC-4.0 (weights of JMP; no commercial use)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert; exactly one of --torch, --checkpoint and --from-safetensors."""

    torch: str | None = None
    """This PyTorch file is converted: JMP, the paper's Lightning files, fairchem v1 GemNet-OC or EquiformerV2."""
    checkpoint: str | None = None
    """This checkpoint of ours is exported: RUN (its best-validation one), RUN@last or a step folder; it needs
    --safetensors."""
    safetensors: str | None = None
    """The exported weights are written into this file."""
    from_safetensors: str | None = None
    """This file, which the command wrote before, is read back."""
    out: str | None = None
    """The checkpoint is written into this folder."""
    weights: str | None = None
    """ema takes the averaged weights, raw the raw ones, and reference what the reference's fine-tuning loads; the
    default is ema where there is one."""
    tasks: str | None = None
    """The heads get these names, separated by commas; the defaults are JMP's four, and otherwise task0, task1 and so
    on."""
    raw_weights: bool = False
    """Export the raw weights of a training run and not their moving average."""
    quiet: bool = False
    """Print a summary instead of every key."""

    def __post_init__(self):
        given = [name for name in ("torch", "checkpoint", "from_safetensors") if getattr(self, name)]
        if len(given) != 1:
            raise InputError("give exactly one of --torch, --checkpoint and --from-safetensors")
        needed = "safetensors" if given == ["checkpoint"] else "out"
        if not getattr(self, needed):
            raise InputError(f"--{given[0].replace('_', '-')} needs --{needed}")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.convert`."""
    config = cli.parse(ConvertConfig, argv, description=__doc__, prog="python -m experiments.convert")
    prepare_process()
    if config.torch:
        from_torch(config)
    elif config.checkpoint:
        model = restore_model(config.checkpoint, raw_weights=config.raw_weights)
        count = write_model(Path(str(config.safetensors)), model.module, model.config, portable_meta(model.meta))
        print(f"{count['n_array']} arrays, {count['n_value']:,} values -> {config.safetensors} and its .json card")
    else:
        file = str(config.from_safetensors)
        arrays, record = read_safetensors(Path(file))
        meta = CheckpointMeta.from_json(record, file)
        check_layout(meta.model, meta.head, file)
        path = _save(Path(str(config.out)), arrays, meta)
        print(f"{config.from_safetensors} -> {path}")
    return 0


def from_torch(config: ConvertConfig):
    """Convert a PyTorch file and print the account of its keys."""
    file = TorchFile(str(config.torch))
    converted = convert(file, config.weights)
    names = _task_names(config, converted)
    meta = CheckpointMeta(
        model=model_record(converted.config),
        tasks=tuple(_task(name, converted) for name in names),
        reductions=_reductions(converted),
        source=_source(file, converted),
    )
    print_table(converted, config.quiet)
    warn_of_units(names, converted)
    path = _save(Path(str(config.out)), converted.arrays, meta)
    values = sum(array.size for array in converted.arrays.values())
    print(f"{len(converted.arrays)} arrays, {values:,} values ({converted.weights} weights) -> {path}")


def warn_of_units(names: list[str], converted: Converted):
    """Say which heads have no known units and cutoff: a GemNet-OC file holds neither."""
    unknown = [name for name in names if name not in DATASETS]
    if converted.layout != "equiformer_v2" and unknown:
        warnings.warn(
            f"{', '.join(unknown)}: the file does not say in which units these heads predict nor at which cutoff; 1 eV,"
            f" 1 eV/A and 12 A are taken. Name their data sets with --tasks, such as {', '.join(JMP_TASKS)}",
            stacklevel=2,
        )


def portable_meta(meta: CheckpointMeta) -> dict:
    """A checkpoint's record without what only resuming needs, as JSON values."""
    dropped = ("seed", "budget", "upstream", "origin", "plateau", "best", "first_metrics", "validated_at")
    return {key: value for key, value in meta.to_json().items() if key not in dropped}


def print_table(converted: Converted, quiet: bool):
    """Every key with its shape, fate and our name; then how many had which fate."""
    if not quiet:
        width = max(len(record.key) for record in converted.table)
        for key, shape, fate, name in converted.table:
            ours = name if fate in ("loaded", "moving average") else ""
            print(f"{key:{width}}  {'x'.join(map(str, shape)) or '-':>12}  {fate:14}  {ours}".rstrip())
    counts = collections.Counter(record.fate for record in converted.table)
    summary = ", ".join(f"{count} {fate}" for fate, count in counts.items())
    print(f"{converted.layout}: {len(converted.table)} keys: {summary}")


def _reductions(converted: Converted) -> tuple[str, ...]:
    """How atoms' energies combine: fairchem's EquiformerV2 sums (and divides, see `_task`)."""
    summed = converted.layout == "equiformer_v2" and not converted.config.source_to_target
    return ("sum",) * converted.n_task if summed else architecture_of(converted.config).reductions(converted.n_task)


def _task_names(config: ConvertConfig, converted: Converted) -> list[str]:
    names = config.tasks.split(",") if config.tasks else None
    if names is None:
        jmp = converted.layout == "jmp" and converted.n_task == len(JMP_TASKS)
        return list(JMP_TASKS) if jmp else [f"task{i}" for i in range(converted.n_task)]
    if len(names) != converted.n_task or len(set(names)) != len(names):
        raise InputError(f"--tasks must give {converted.n_task} different names, got {config.tasks!r}")
    return names


def _task(name: str, converted: Converted) -> TaskRecord:
    """The record of a head: units, and graphs as in its training. References per element are not in the files."""
    largest = architecture_of(converted.config).largest_atomic_number(converted.config)
    elements = np.arange(N_ELEMENT)
    reference = LinearReference(np.zeros(N_ELEMENT), (elements > 0) & (elements <= largest))
    if converted.layout == "equiformer_v2":
        energy_std = converted.scales.get("energy_std", _OC20_STD)
        divisor = 1.0 if converted.config.source_to_target else converted.config.avg_num_nodes
        return TaskRecord(
            name=name,
            energy_std=energy_std / divisor,
            energy_mean=converted.scales.get("energy_mean", _OC20_MEAN),
            force_std=converted.scales.get("force_std", _OC20_STD),
            cutoff=12.0,
            max_neighbors=20,
            reference=reference,
        )
    spec = DATASETS.get(name)
    return TaskRecord(
        name=name,
        energy_std=(spec and spec.energy_std) or 1.0,
        force_std=(spec and spec.force_std) or 1.0,
        cutoff=spec.cutoff if spec else 12.0,
        max_neighbors=30,
        reference=reference,
    )


def _source(file: TorchFile, converted: Converted) -> dict:
    """Where the weights come from, and under which licence as far as it is known."""
    licence = JMP_LICENCE if converted.layout == "jmp" and converted.n_task == len(JMP_TASKS) else "see the origin"
    fates = collections.Counter(record.fate for record in converted.table)
    return {
        "file": file.path.name,
        "layout": converted.layout,
        "weights": converted.weights,
        "licence": licence,
        "keys": dict(fates),
    }


def _save(out: Path, arrays: dict[str, np.ndarray], meta: CheckpointMeta) -> Path:
    """Write arrays and record as a checkpoint directory with a card."""
    config, n_task = config_from_record(meta.model), len(meta.tasks)
    made = dict(reductions=meta.reductions, head=meta.head)
    pure = split_model(model_from_arrays(config, n_task, arrays, source="the file", **made))
    meta = dataclasses.replace(meta, provenance=provenance())
    with CheckpointStore(cli.resolve_run_dir(out, "--out") / "checkpoints") as store:
        path = store.save(meta.step, {"params": pure.params, "ema": pure.params, "constants": pure.constants},
                          meta.to_json(), "best")  # fmt: skip
    write_card(out, meta)
    return path


if __name__ == "__main__":
    raise SystemExit(main())

"""Finished fine-tuning runs below a folder -> what each measured and where its weights came from.

Reads run files only: config.json, resolved.json, summary.json and test.json of the fine-tuning run, and config.json,
resolved.json and summary.json of the pretraining run that its `init` names.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from experiments.finetune import FinetuneConfig
from experiments.paper.names import DOWNSTREAM, SCRATCH, backbone_label, base_name, jmp_label, upstream_label
from experiments.paper.published import Column, RowKey
from experiments.pretrain import PretrainConfig
from jaxatoms.types import InputError

WEIGHTS = ("last_ema", "best_ema")
_SKIPPED_FOLDERS = ("checkpoints", "tensorboard", "data", "features")
# Settings that do not say how a model was trained, or say it elsewhere (in the row, the column, the provenance).
_NEUTRAL = {
    "seed", "precision", "remat", "batch_shapes", "val_samples", "val_every", "test_samples", "workers", "run_dir",
    "resume", "plan", "data_root", "cache_dir", "log_every", "keep", "quiet", "model",
}  # fmt: skip
_OF_PRETRAIN_ROW = _NEUTRAL | {"upstream", "mix", "n", "epochs"}
_OF_FINETUNE_COLUMN = _NEUTRAL | {"downstream", "init", "target"}
_METHOD = ("init_mode", "freeze_backbone", "forces")  # of fine-tuning; they belong to the row
_JMP_BUDGET = (120_000_000, 2)  # structures, epochs of the public checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One finished fine-tuning run."""

    folder: str  # relative to the folder searched
    row: RowKey
    column: Column
    value: dict[str, float]  # by weights: last_ema, best_ema
    seed: int  # of fine-tuning
    pretrain_seed: int | None
    n_test: int  # structures tested ...
    n_test_all: int  # ... of so many
    commit: str  # of the code that fine-tuned, "+" where files differed from it
    device: str
    precision: str
    finished_at: str


@dataclasses.dataclass
class Found:
    """What a search found; `left_out` says why a run folder is no result."""

    results: list[Result]
    left_out: list[str]


def find_results(root: Path) -> Found:
    """Every finished fine-tuning run below `root`, by folder name.

    Raises:
      InputError: `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"--runs {root} is no folder; give the folder that holds the run folders")
    found = Found([], [])
    for folder in run_folders(root):
        config = _record(folder / "config.json")
        if "downstream" not in config or "init" not in config:
            continue  # not of experiments.finetune
        try:
            found.results.append(read_result(folder, root))
        except (InputError, KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            found.left_out.append(f"{_relative(folder, root)}: {reason}")
    return found


def run_folders(root: Path) -> Iterator[Path]:
    """Folders below `root` that hold a config.json, in order."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED_FOLDERS and not n.startswith("."))
        if "config.json" in files:
            yield Path(folder)


def read_result(folder: Path, root: Path) -> Result:
    """The result of one run folder.

    Raises:
      InputError: the run is not finished or was not tested.
      KeyError: a record lacks a field.
    """
    config, resolved, summary, test = (
        _record(folder / f"{name}.json") for name in ("config", "resolved", "summary", "test")
    )
    if not summary.get("finished") or not test:
        raise InputError("not finished" if not summary.get("finished") else "no test.json")
    origin, pretrain_seed = read_origin(folder, root, config, resolved, summary)
    method = differences(config, FinetuneConfig, _OF_FINETUNE_COLUMN, only=_METHOD)
    place = summary["provenance"]
    return Result(
        folder=_relative(folder, root),
        row=origin._replace(variant="; ".join(filter(None, (origin.variant, method)))),
        column=_column(config, test),
        value={name: _value(test[name]) for name in WEIGHTS if name in test},
        seed=config["seed"],
        pretrain_seed=pretrain_seed,
        n_test=test["n_structure"],
        n_test_all=test["of"],
        commit=_commit(place),
        device=place["device"]["kind"],
        precision=summary["precision"],
        finished_at=test.get("provenance", place)["started"],
    )


def read_origin(folder: Path, root: Path, config: Mapping, resolved: Mapping, summary: Mapping):
    """(row, seed of pretraining) that a fine-tuning run's weights come from; the row has no fine-tuning settings.

    Where the pretraining run is not to be found, budget and mix are unknown and the variant says so.
    """
    backbone = backbone_label(resolved["model"])
    if config["init"] == SCRATCH:
        return RowKey(0, 0, SCRATCH, backbone), None
    run = find_pretraining(config["init"], summary["upstream"], folder, root)
    if run is None:
        return RowKey(None, None, upstream_label(summary["upstream"]), backbone, "pretraining run not found"), None
    return _pretrained_row(run, backbone)


def _pretrained_row(run: Path, backbone: str):
    config, summary = _record(run / "config.json"), _record(run / "summary.json")
    if not config:
        return _converted_row(run, backbone), None
    label = upstream_label(config["upstream"], config.get("mix", "balanced"), summary.get("n_per_task"))
    if config.get("ema_decay") == 0.99 and not backbone.startswith("equiformer"):
        config = {**config, "ema_decay": None}  # recorded as a number before the default followed the model
    variant = differences(config, PretrainConfig, _OF_PRETRAIN_ROW)
    if not summary.get("finished"):
        variant = "; ".join(filter(None, (variant, "pretraining not finished")))
    budget = summary.get("budget", {})
    return RowKey(budget.get("n"), config["epochs"], label, backbone, variant), config["seed"]


def _converted_row(run: Path, backbone: str) -> RowKey:
    """A row of weights that experiments.convert wrote: no run, but a record of their source."""
    source = next((_record(p).get("source") or {} for p in sorted(run.glob("checkpoints/*/meta.json"))), {})
    file = str(source.get("file", "?"))
    if source.get("layout") == "jmp":
        return RowKey(*_JMP_BUDGET, "Mixed (Temp)", jmp_label(file, backbone))
    return RowKey(None, None, file, backbone, "converted weights")


def find_pretraining(init: str, upstream: str, folder: Path, root: Path) -> Path | None:
    """The run folder of `init`: where it says, or below `root` under the same (end of the) path.

    Args:
      init: run folder, checkpoints folder, checkpoints/best or a step folder, as given to experiments.finetune.
      upstream: what the fine-tuning run says of it; a folder that says something else is another run.
      folder: of the fine-tuning run; a relative init may lie beside it.
    """
    run = Path(init)
    if "checkpoints" in run.parts:
        run = Path(*run.parts[: len(run.parts) - run.parts[::-1].index("checkpoints") - 1])
    places = [run, root / run, folder.parent / run.name]
    places += [root / Path(*run.parts[i:]) for i in range(1, len(run.parts))]
    return next((p for p in places if _is_run_of(p, upstream)), None)


def _is_run_of(folder: Path, upstream: str) -> bool:
    config = _record(folder / "config.json")
    if not config:
        return upstream == "?" and (folder / "checkpoints").is_dir()  # converted weights know no upstream set
    return config.get("upstream") == upstream and "downstream" not in config


def differences(config: Mapping, kind: type, neutral: Collection[str], only: Collection[str] | None = None) -> str:
    """Settings of a run that differ from the command's defaults, which are the paper's: "lr=0.002 max_steps=20".

    Args:
      kind: the command's settings class.
      neutral: fields to pass over.
      only: just these fields.
    """
    names = [f.name for f in dataclasses.fields(kind) if f.name not in neutral and (only is None or f.name in only)]
    default = {f.name: f.default for f in dataclasses.fields(kind)}
    return " ".join(f"{k}={config[k]}" for k in names if k in config and config[k] != default[k])


def _column(config: Mapping, test: Mapping) -> Column:
    name, report = base_name(config["downstream"]), test[WEIGHTS[0]]
    if config.get("target") and name not in DOWNSTREAM:
        name = f"{name}[{config['target']}]"
    dataset, metric = DOWNSTREAM.get(name, (name, "mae" if "mae" in report else "balanced_accuracy"))
    recipe = differences(config, FinetuneConfig, {*_OF_FINETUNE_COLUMN, *_METHOD})
    return Column(dataset, metric, report.get("unit", ""), recipe)


def _value(report: Mapping) -> float:
    return float(report["mae"] if "mae" in report else report["balanced_accuracy"])


def _commit(provenance: Mapping) -> str:
    commit = provenance.get("commit")
    return f"{commit[:10]}{'+' if provenance.get('dirty') else ''}" if commit else f"v{provenance.get('version', '?')}"


def _record(path: Path) -> dict:
    """A JSON object; {} where there is no file.

    Raises:
      InputError: not a JSON object.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f"{path.name} is not a JSON object")
    return record


def _relative(folder: Path, root: Path) -> str:
    text = folder.relative_to(root).as_posix()
    return root.name if text == "." else text

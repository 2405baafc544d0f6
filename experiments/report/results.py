"""Reads the finished fine-tuning runs below a folder: what each measured, and where its weights came from.

It reads run files only: config.json, resolved.json, summary.json, test.json and the split of the fine-tuning run, which
names its data by their fingerprint: sets of one name that hold other data are kept apart. A run records
which pretraining it started from when it starts. For a run of an older version, which did not record that, the folder
that its `init` names is read instead, and a note says so.
"""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.paper.names import DOWNSTREAM, SCRATCH, backbone_label, base_name, jmp_label, upstream_label
from experiments.paper.published import Column, RowKey
from jaxatoms.data.subset import parse_count
from jaxatoms.io import open_npz
from jaxatoms.runs.finetune_config import RESUMABLE as FINETUNE_RESUMABLE
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import RESUMABLE as PRETRAIN_RESUMABLE
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.tools.cli import with_defaults
from jaxatoms.types import InputError

WEIGHTS = ("last_ema", "best_ema")
_SKIPPED_FOLDERS = ("checkpoints", "tensorboard", "data", "features")
# These settings do not affect the result, or are shown elsewhere (in the row, the column, the variant, the notes).
_NEUTRAL = {
    *PRETRAIN_RESUMABLE, *FINETUNE_RESUMABLE, "seed", "precision", "batch_shapes", "val_samples", "val_every", "model",
}  # fmt: skip
_OF_PRETRAIN_ROW = _NEUTRAL | {"upstream", "mix", "n", "epochs"}
_OF_FINETUNE_COLUMN = _NEUTRAL | {"downstream", "init", "targets"}
_IDENTITY = {"upstream", "mix", "n", "epochs", "seed"}  # identify a pretraining run beside the row's settings
_METHOD = ("init_mode", "train", "freeze", "forces", "refit_scales")  # settings of fine-tuning that belong to the row
_PUBLISHED = {dataset for dataset, _ in DOWNSTREAM.values()}
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
    trained: float  # share of the pretraining's steps that the checkpoint has done; 1 where it is not known
    notes: tuple[str, ...]  # what the row and the column do not show: partial budgets and tests, missing records
    n_test: int  # number of structures tested
    n_test_all: int  # number of structures of the whole test split
    commit: str  # commit of the code that fine-tuned, with "+" where files differed from it
    device: str
    precision: str
    finished_at: str
    data: str = ""  # fingerprint of the data set; "" where the run did not keep it


@dataclasses.dataclass
class Found:
    """Holds what a search found; `left_out` says why a run folder gave no result."""

    results: list[Result]
    left_out: list[str]


def find_results(root: Path) -> Found:
    """Reads every finished fine-tuning run below `root`, sorted by folder name.

    Raises:
      InputError: `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"--runs {root} is no folder; give the folder that holds the run folders")
    found = Found([], [])
    for folder in run_folders(root):
        config = _record(folder / "config.json")
        if "downstream" not in config or "init" not in config:
            continue  # the folder is not one of experiments.finetune
        try:
            found.results.append(read_result(folder, root))
        except (InputError, KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            found.left_out.append(f"{_relative(folder, root)}: {reason}")
    found.results = _kept_apart(found.results)
    return found


def _kept_apart(results: list[Result]) -> list[Result]:
    """Tells data sets of one name and other content apart by the beginning of their fingerprint.

    It becomes part of a file's name. Data sets of the paper stay in their column, where a note says it.
    """
    data: dict[str, set[str]] = {}
    for result in results:
        data.setdefault(result.column.dataset, set()).update({result.data} - {""})
    return [_marked(result) if len(data[result.column.dataset]) > 1 else result for result in results]


def _marked(result: Result) -> Result:
    dataset, mark = result.column.dataset, result.data[:6] or "unknown"
    if dataset in _PUBLISHED:
        return dataclasses.replace(result, notes=(*result.notes, f"data with fingerprint {mark}"))
    return dataclasses.replace(result, column=result.column._replace(dataset=f"{dataset} ({mark})"))


def run_folders(root: Path) -> Iterator[Path]:
    """Yields the folders below `root` that hold a config.json, in order."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED_FOLDERS and not n.startswith("."))
        if "config.json" in files:
            yield Path(folder)


def read_result(folder: Path, root: Path) -> Result:
    """Reads the result of one run folder.

    Raises:
      InputError: the run is not finished or was not tested.
      KeyError: a record lacks a field.
    """
    config, resolved, summary, test = (
        _record(folder / f"{name}.json") for name in ("config", "resolved", "summary", "test")
    )
    config = FinetuneConfig.from_earlier(config)
    if not summary.get("finished") or not test:
        raise InputError("not finished" if not summary.get("finished") else "no test.json")
    origin = read_origin(folder, root, config, resolved, summary)
    method = differences(config, FinetuneConfig, _OF_FINETUNE_COLUMN, only=_METHOD)
    place, precision = summary["provenance"], summary["precision"]
    return Result(
        folder=_relative(folder, root),
        row=origin.row._replace(variant=_joined(origin.row.variant, method, _precision("fine-tuned", precision))),
        column=_column(config, test),
        value={name: _value(test[name]) for name in WEIGHTS if name in test},
        seed=config["seed"],
        pretrain_seed=origin.seed,
        trained=origin.trained,
        notes=(*origin.notes, *_test_note(test["n_structure"], test["of"])),
        n_test=test["n_structure"],
        n_test_all=test["of"],
        commit=_commit(place),
        device=place["device"]["kind"],
        precision=precision,
        finished_at=test.get("provenance", place)["started"],
        data=_data_of(folder),
    )


def _data_of(folder: Path) -> str:
    """The fingerprint of the (first) data set of a run; "" where it did not keep it."""
    for file in (folder / "data" / "split.npz", folder / "data" / "task0" / "split.npz"):
        if file.is_file():
            with open_npz(file, "is damaged", "restore the run folder") as saved:
                return str(saved["fingerprint"]) if "fingerprint" in saved else ""
    return ""


def _test_note(n: int, of: int) -> tuple[str, ...]:
    return (f"tested on {n:,} of {of:,} test structures",) if n < of else ()


def _precision(what: str, precision: str) -> str:
    return "" if precision == "float32" else f"{what} in {precision}"


def _joined(*words: str) -> str:
    return "; ".join(filter(None, words))


class Origin(NamedTuple):
    """Where the weights of a fine-tuning run come from."""

    row: RowKey  # without fine-tuning settings
    seed: int | None = None  # of pretraining
    notes: tuple[str, ...] = ()
    trained: float = 1.0


def read_origin(folder: Path, root: Path, config: Mapping, resolved: Mapping, summary: Mapping) -> Origin:
    """Returns the origin that a fine-tuning run recorded, or what an older run's settings and `init` show.

    Where the pretraining run cannot be found, budget and mix are unknown and the variant says so.
    """
    backbone = backbone_label(resolved["model"])
    if config["init"] == SCRATCH:
        return Origin(RowKey(0, 0, SCRATCH, backbone))
    record = summary.get("origin", {})
    if "settings" not in record:
        return _older_origin(folder, root, config, summary, backbone)
    if "epochs" not in record["settings"] or "upstream" not in record["settings"]:
        return Origin(_foreign_row(record, backbone))
    return _pretrained(record["settings"], record["budget"] or {}, record["step"], backbone)


def _pretrained(settings: Mapping, budget: Mapping, step: int | None, backbone: str, *notes: str) -> Origin:
    """Returns the origin of weights that experiments.pretrain made.

    Args:
      settings: the settings of the pretraining run.
      budget: see `runs.pretraining.budget_record`; older checkpoints have {}.
      step: the step of the checkpoint; None where it is not known.
    """
    settings = with_defaults(PretrainConfig, settings)
    label = upstream_label(settings["upstream"], settings["mix"], budget.get("n_per_task"))
    batch = settings["batch_size"] * settings["accumulate"]
    plain = {**settings, "batch_size": batch, "accumulate": 1}  # an accumulated step equals that of one large batch
    if settings["ema_decay"] == 0.99 and not backbone.startswith("equiformer"):
        plain["ema_decay"] = None  # recorded as a number before the default followed the model
    variant = differences(plain, PretrainConfig, _OF_PRETRAIN_ROW)
    variant = _joined(variant, _precision("pretrained", settings["precision"]))
    n, epochs = budget.get("n", _number_of(settings["n"])), settings["epochs"]
    steps = budget.get("steps")
    if steps is None and n is not None and settings["batch_edges"] is None:
        steps = max(1, n * epochs // batch)
    row = RowKey(n, epochs, label, backbone, variant)
    trained = 1.0 if step is None or steps is None else min(1.0, step / steps)
    return Origin(row, settings["seed"], (*notes, *_budget_note(row, step, steps)), trained)


def _budget_note(row: RowKey, step: int | None, steps: int | None) -> tuple[str, ...]:
    if step is None:
        return ("an older run, which did not note the pretraining step that it starts from",)
    if steps is None:
        return (f"starts from pretraining step {step:,} of an unknown number",)
    if step >= steps:
        return ()
    seen = "" if row.budget is None else f", about {round(row.budget * step / steps):,} of {row.budget:,} samples"
    return (f"starts from pretraining step {step:,} of {steps:,}{seen}",)


def _number_of(n: str | None) -> int | None:
    """Returns N of a run's settings, or None where it depends on the data."""
    count = "all" if n is None else parse_count(n)
    return None if count == "all" else int(count)


def _foreign_row(record: Mapping, backbone: str) -> RowKey:
    """Returns the row of weights that experiments.pretrain did not make: converted ones, or fine-tuned ones."""
    settings, source = record["settings"], record.get("source") or {}
    if "downstream" in settings:
        label = upstream_label(str(record["upstream"]))
        return RowKey(None, None, label, backbone, f"by way of fine-tuning on {base_name(settings['downstream'])}")
    file = str(source.get("file", "?"))
    if source.get("layout") == "jmp":
        return RowKey(*_JMP_BUDGET, "Mixed (Temp)", jmp_label(file, backbone))
    return RowKey(None, None, file, backbone, "converted weights")


def _older_origin(folder: Path, root: Path, config: Mapping, summary: Mapping, backbone: str) -> Origin:
    """Returns the origin of a run of an older version, which did not record the checkpoint that it starts from."""
    upstream = summary["upstream"]
    run = find_pretraining(config["init"], upstream, folder, root)
    now, finished = ({}, {}) if run is None else (_record(run / "config.json"), _record(run / "summary.json"))
    noted = summary.get("pretrained") or {}  # settings alone, without the step
    if not noted and not now:
        if run is None:
            return Origin(RowKey(None, None, upstream_label(upstream), backbone, "pretraining run not found"))
        source = next((_record(p).get("source") for p in sorted(run.glob("checkpoints/*/meta.json"))), None)
        return Origin(_foreign_row({"settings": {}, "source": source, "upstream": upstream}, backbone))
    notes = [] if noted else ["an older run: its pretraining is read from the folder as it is now"]
    if noted and any(noted.get(k) != now.get(k) for k in noted.keys() - _OF_PRETRAIN_ROW | _IDENTITY):
        finished = {}  # the folder holds another run now
    elif not finished.get("finished"):
        notes.append("its pretraining is not finished")
    budget = {"n_per_task": finished.get("n_per_task")} | finished.get("budget", {})
    return _pretrained(noted or now, budget, _step_of(config["init"]), backbone, *notes)


def _step_of(init: str) -> int | None:
    """Returns the step that a step folder is named after."""
    found = re.search(r"step_(\d+)", Path(init).name)
    return int(found[1]) if found else None


def find_pretraining(init: str, upstream: str, folder: Path, root: Path) -> Path | None:
    """Finds the run folder of `init`: at that path, or below `root` under the same path or an end of it.

    Args:
      init: run folder, checkpoints folder, checkpoints/best or a step folder, as given to experiments.finetune.
      upstream: the upstream set that the fine-tuning run recorded; a folder with another one is another run.
      folder: the folder of the fine-tuning run; a relative `init` may lie beside it.
    """
    run = Path(re.sub(r"@(last|best)$", "", init))
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
    """Lists the settings of a run that differ from the defaults, which are the paper's: "lr=0.002 max_steps=20".

    Args:
      kind: the settings class of the command.
      neutral: fields that are left out.
      only: where it is given, only these fields are compared.
    """
    names = [f.name for f in dataclasses.fields(kind) if f.name not in neutral and (only is None or f.name in only)]
    default = {f.name: f.default for f in dataclasses.fields(kind)}
    return " ".join(f"{k}={config[k]}" for k in names if k in config and config[k] != default[k])


def _column(config: Mapping, test: Mapping) -> Column:
    name, report = base_name(config["downstream"]), test[WEIGHTS[0]]
    if config.get("targets"):
        name = f"{name}[{config['targets']}]"
    dataset, metric = DOWNSTREAM.get(name, (name, "mae" if "mae" in report else "balanced_accuracy"))
    recipe = differences(config, FinetuneConfig, {*_OF_FINETUNE_COLUMN, *_METHOD})
    # Of several properties the first one stands in tables, which say which it is.
    unit = " ".join(filter(None, (report.get("property"), report.get("unit"))))
    return Column(dataset, metric, unit, recipe)


def _value(report: Mapping) -> float:
    value = report["mae"] if "mae" in report else report["balanced_accuracy"]
    if value is None:
        raise InputError("test.json has no error, since a prediction is not finite")
    return float(value)


def _commit(provenance: Mapping) -> str:
    commit = provenance.get("commit")
    return f"{commit[:10]}{'+' if provenance.get('dirty') else ''}" if commit else f"v{provenance.get('version', '?')}"


def _record(path: Path) -> dict:
    """Reads a JSON object; returns {} where there is no file.

    Raises:
      InputError: the file does not hold a JSON object.
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

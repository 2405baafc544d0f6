"""What a run says while it goes.

Plain numbers enter; these leave, beside a progress display:

    metrics.jsonl   one record per line: {"step": 50, "split": "train", "time": ..., "loss": ...}
    tensorboard/    the same numbers as train/loss, val/force_mae, ...
    summary.json    written whole or not at all
    curves.png      loss, validation MAEs and learning rate against the step

Numbers that are not finite are written as null, so that every JSON reader accepts the files. JAX is not
imported: hand over floats, which is also where a caller should think about waiting for the device.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from jaxatoms.io import finite, replacing, write_json
from jaxatoms.plots import drawing
from jaxatoms.types import InputError

_now = time.monotonic
PLAIN_LINE_INTERVAL = 10.0  # s, between progress lines when stdout is not a terminal


class RunLog:
    """Records and shows one run.

    Args:
      run_dir: existing or new directory for the files above.
      total_steps: where the progress display ends.
      quiet: show nothing; files are written all the same.
      resume_step: the step of the checkpoint a run continues from; records of later steps are dropped, so
        that the file has each step once. 0 starts afresh and drops everything. None: a new run.

    Raises:
      InputError: records exist but resume_step is None, or the directory cannot be written.

    Example:
      with RunLog("runs/x", total_steps=1000) as log:
          log.log(50, {"loss": 0.3, "learning_rate": 1e-4, "atoms_per_second": 2e4})
          log.log_validation(100, {"force_mae": 0.05, "energy_mae": 0.2})
    """

    def __init__(
        self, run_dir: str | Path, total_steps: int, quiet: bool = False, resume_step: int | None = None
    ):
        self.run_dir = Path(run_dir)
        self._metrics_path = self.run_dir / "metrics.jsonl"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _truncate(self._metrics_path, resume_step)
            self._file = self._metrics_path.open("a")
            self._events = _open_events(self.run_dir / "tensorboard", resume_step)
        except OSError as error:
            raise InputError(f"cannot write into run directory {self.run_dir}: {error.strerror}") from error
        self._display = _make_display(total_steps, resume_step or 0, quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records training numbers. "loss" and "atoms_per_second" are shown, "learning_rate" is drawn."""
        self._record(step, "train", metrics)

    def log_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records validation numbers; names with "force" or "energy" and "mae" are shown and drawn."""
        self._record(step, "val", metrics)

    def announce(self, text: str) -> None:
        """Shows a line of text that is not recorded."""
        self._display.announce(text)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Replaces summary.json in one step and returns its path."""
        path = self.run_dir / "summary.json"
        write_json(path, finite(summary))
        return path

    def write_curves(self) -> Path:
        """Draws metrics.jsonl into curves.png and returns its path."""
        return draw_curves(read_metrics(self._metrics_path), self.run_dir / "curves.png")

    def close(self) -> None:
        """Ends the display and closes the files; may be called twice."""
        if not self._file.closed:
            self._display.close()
            self._events.close()
            self._file.close()

    def _record(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != "step"}
        record = {"step": int(step), "split": split, "time": round(time.time(), 3), **finite(values)}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()  # a killed run keeps its records
        except OSError as error:
            raise InputError(
                f"cannot write {self._metrics_path}: {error.strerror}; free disk space, then continue with --resume"
            ) from error
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self._display.update(int(step), split, values)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a line cut short by a kill is passed over."""
    return list(_records(Path(path)))


def draw_curves(records: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draws loss, validation force and energy MAE and the learning rate against the step; returns `path`."""
    records, path = list(records), Path(path)
    with drawing(path, len(_PANELS), panel=(4.5, 3.25), columns=2) as (_, panels):
        for axes, (title, want) in zip(panels, _PANELS.items(), strict=True):
            for (split, name), (steps, values) in sorted(_series(records, want).items()):
                axes.plot(steps, values, marker="." if len(steps) < 50 else None, label=_legend(split, name))
            _finish_panel(axes, title)
    return path


# --- records ------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterable[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, KeyError, TypeError):
                continue
            yield record


def _truncate(path: Path, resume_step: int | None) -> None:
    """Drops what a resumed run will write again; replaces the file in one step."""
    if not path.exists() or path.stat().st_size == 0:
        return
    if resume_step is None:
        raise InputError(
            f"{path} has records of an earlier run; resume that run or choose another run directory"
        )
    with replacing(path) as draft, draft.open("w") as file:
        for record in _records(path):
            if resume_step > 0 and record["step"] <= resume_step:
                file.write(json.dumps(record) + "\n")


def _open_events(directory: Path, resume_step: int | None) -> Any:
    """TensorBoard writer; viewers drop earlier events of the steps that a resumed run repeats."""
    from tensorboardX import SummaryWriter

    purge = None if resume_step is None else (resume_step + 1 if resume_step else 0)
    return SummaryWriter(str(directory), purge_step=purge)


# --- curves -------------------------------------------------------------------------------------------


def _is_mae_of(quantity: str) -> Callable[[str, str], bool]:
    return lambda split, name: split == "val" and "mae" in name and quantity in name


_Y_LABELS = {"validation force MAE": "force MAE (meV/A)", "validation energy MAE": "energy MAE (meV)"}
_PANELS: dict[str, Callable[[str, str], bool]] = {
    "loss": lambda split, name: name == "loss",
    "learning rate": lambda split, name: split == "train" and name in ("learning_rate", "lr"),
    "validation force MAE": _is_mae_of("force"),
    "validation energy MAE": _is_mae_of("energy"),
}


def _series(
    records: list[Mapping[str, Any]], want: Callable[[str, str], bool]
) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """{(split, name): (steps, values)} of the numbers a panel wants."""
    series: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for record in records:
        split = record.get("split", "")
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("step", "time") and want(split, name):
                steps, values = series.setdefault((split, name), ([], []))
                steps.append(record["step"])
                values.append(value)
    return series


def _legend(split: str, name: str) -> str:
    """`val`, `force_mae_mev_per_angstrom` as "validation force MAE (meV/A)"."""
    quantity, unit = _quantity_and_unit(name)
    of = {"val": "validation", "train": "training"}.get(split, split)
    return f"{of} {quantity}" + (f" ({unit})" if unit else "")


def _finish_panel(axes: Any, title: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=_Y_LABELS.get(title, title))
    axes.grid(alpha=0.3)
    values = [value for line in axes.get_lines() for value in line.get_ydata()]
    if not values:
        axes.text(0.5, 0.5, "no records", ha="center", va="center", transform=axes.transAxes)
        return
    if title != "learning rate" and min(values) > 0:
        axes.set_yscale("log")
    axes.legend(fontsize="small")


# --- display ------------------------------------------------------------------------------------------


def _make_display(total_steps: int, start: int, quiet: bool) -> "_Silent":
    if quiet:
        return _Silent()
    return _Bar(total_steps, start) if sys.stdout.isatty() else _Lines(total_steps)


class _Silent:
    """Shows nothing; the interface of the displays below."""

    def announce(self, text: str) -> None: ...

    def update(self, step: int, split: str, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _Remaining:
    """The time that is left, from the measured rate of steps: compiling and validating are not in that rate."""

    def __init__(self, total_steps: int):
        self._total, self._rate = total_steps, 0.0  # steps, steps per second

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str:
        self._rate = metrics.get("steps_per_second", 0.0) or self._rate
        return f"  ETA {_clock((self._total - step) / self._rate)}" if self._rate else ""


class _Lines(_Silent):
    """A plain line every ~10 s, for files and pipes; validation and the last step always."""

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._remaining = _Remaining(total_steps)
        self._last = -math.inf

    def announce(self, text: str) -> None:
        print(text, flush=True)

    def update(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        now = _now()
        if split == "train" and step < self._total and now - self._last < PLAIN_LINE_INTERVAL:
            return
        self._last = now if split == "train" else self._last
        text = _validation_text(metrics) if split == "val" else _training_text(metrics)
        print(f"step {step}/{self._total}  {text}{self._remaining(step, metrics)}", flush=True)


class _Bar(_Silent):
    """A progress bar that stays on one line of a terminal."""

    def __init__(self, total_steps: int, start: int):
        from rich import progress

        columns = ("step {task.completed:.0f}/{task.total:.0f}", progress.BarColumn(bar_width=20))
        numbers = ("{task.fields[train]}", "{task.fields[val]}", "{task.fields[remaining]}")
        self._remaining = _Remaining(total_steps)
        self._progress = progress.Progress(*columns, *numbers, refresh_per_second=4)
        empty = {"train": "", "val": "", "remaining": ""}
        self._task = self._progress.add_task("", total=total_steps, completed=start, **empty)
        self._progress.start()

    def announce(self, text: str) -> None:
        self._progress.console.print(text)

    def update(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        text = _validation_text(metrics) if split == "val" else _training_text(metrics)
        fields = {split: text, "remaining": self._remaining(step, metrics).strip()}
        self._progress.update(self._task, completed=step, **fields)

    def close(self) -> None:
        self._progress.stop()


def _training_text(metrics: Mapping[str, float]) -> str:
    parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    if "atoms_per_second" in metrics:
        parts.append(f"{metrics['atoms_per_second']:,.0f} atoms/s")
    return "  ".join(parts)


def _validation_text(metrics: Mapping[str, float]) -> str:
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}  # NaN: nothing is labelled
    shown = {name: value for name, value in known.items() if "mae" in name} or known
    return "validation  " + "  ".join(_with_unit(name, value) for name, value in list(shown.items())[:3])


def _with_unit(name: str, value: float) -> str:
    """`force_mae_mev_per_angstrom` and 48.36 as "force MAE 48.36 meV/A"; other names as they are."""
    quantity, unit = _quantity_and_unit(name)
    return f"{quantity} {value:.4g} {unit}".rstrip()


def _quantity_and_unit(name: str) -> tuple[str, str]:
    """`force_mae_mev_per_angstrom` as ("force MAE", "meV/A"); other names as they are, without a unit."""
    quantity, _, rest = name.partition("_mae_")
    unit, slash, of = rest.partition("/")
    units = {"mev": "meV", "mev_per_angstrom": "meV/A"}
    return (f"{quantity.replace('_', ' ')} MAE{slash}{of}", units[unit]) if unit in units else (name, "")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

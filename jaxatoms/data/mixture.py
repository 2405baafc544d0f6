"""`--upstream a,b,c --mix ...`: the tasks of a run, each with its share of the N structures."""

from collections.abc import Sequence
from pathlib import Path

from jaxatoms.data import tasks
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.mixing import mix_counts, split_names
from jaxatoms.data.task_split import task_split
from jaxatoms.types import InputError


def prepare_mixture(
    upstream: str,
    n: int | str,
    mix: str,
    seed: int,
    *,
    save_to: Path | None = None,
    saved: Path | None = None,
    **options,
) -> list[tasks.TaskData]:
    """The tasks that a comma-separated list names, in its order.

    Args:
      n: structures of all tasks together.
      mix: see `mixing.mix_counts`; without effect for a single task.
      save_to: folder for splits and references; a subfolder per task where there are several.
      saved: folder of a run under way, whose splits and references are taken.
      options: as `tasks.prepare_task` takes them.

    Raises:
      InputError: anything wrong with the names, the data, n or the mix; two names of one family are fine, but
        every task needs a name of its own.
    """
    names = split_names(upstream)
    sizes = [_n_train(name, options) for name in names] if len(names) > 1 else [0]
    counts = mix_counts([family(name) for name in names], sizes, n, mix)
    for name, count, size in zip(names, counts, sizes, strict=True):
        if len(names) > 1 and count != "all" and int(count) > size:
            raise InputError(f"{name}: --mix {mix} asks for {count} structures, but {size} are available; lower --n")
    return [
        tasks.prepare_task(
            name,
            count,
            seed,
            save_to=task_folder(save_to, i, len(names)),
            saved=task_folder(saved, i, len(names)),
            **options,
        )
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]


def family(name: str) -> str:
    """The name without variant and path."""
    return name.partition("@")[0].partition(":")[0]


def task_names(data: list[tasks.TaskData]) -> list[str]:
    """Short names for metrics: without paths, numbered where that leaves them equal."""
    return short_names([d.task.name for d in data])


def short_names(names: Sequence[str]) -> list[str]:
    """Names of data sets without paths, numbered where that leaves them equal."""
    short = [name.partition("@")[0].partition("#")[0].rpartition("/")[2] for name in names]
    return [f"{name}-{i}" if short.count(name) > 1 else name for i, name in enumerate(short)]


def task_folder(folder: Path | None, index: int, n_task: int) -> Path | None:
    """Where one of several tasks keeps its split and references."""
    return folder and (folder / f"task{index}" if n_task > 1 else folder)


def _n_train(name: str, options: dict) -> int:
    rule = options.get("split_rule", "auto")
    spec, store = open_upstream(name, options.get("data_root"), options.get("cache_dir"), rule)
    return len(task_split(name, spec, store, rule).train)

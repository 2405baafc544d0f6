"""`--upstream a,b,c --mix ...`: the tasks of a run, each with its share of the N structures."""

from pathlib import Path

from experiments import tasks
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.mixing import mix_counts, split_names
from jaxatoms.data.splits import make_split
from jaxatoms.types import InputError


def prepare_mixture(
    upstream: str, n: int | str, mix: str, seed: int, *, val_samples: int, save_to: Path | None, **options
) -> list[tasks.TaskData]:
    """The tasks that a comma-separated list names, in its order.

    Args:
      n: structures of all tasks together.
      mix: see `mixing.mix_counts`; without effect for a single task.
      val_samples: validation structures of all tasks together, at most.
      save_to: folder for splits and references; a subfolder per task where there are several.
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
            val_samples=-(-val_samples // len(names)),
            save_to=save_to and (save_to / f"task{i}" if len(names) > 1 else save_to),
            **options,
        )
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]


def family(name: str) -> str:
    """The name without variant and path."""
    return name.partition("@")[0].partition(":")[0]


def task_names(data: list[tasks.TaskData]) -> list[str]:
    """Short names for metrics: without paths, numbered where that leaves them equal."""
    names = [d.task.name.partition("@")[0].partition("#")[0].rpartition("/")[2] for d in data]
    return [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _n_train(name: str, options: dict) -> int:
    rule = options.get("split_rule")
    spec, store = open_upstream(name, options.get("data_root"), options.get("cache_dir"), rule)
    return len(make_split(store, rule or spec.split_rule, seed=0, held_out=spec.held_out).train)

"""Checkpoints: a pytree of arrays and a JSON record enter, a verified directory on disk leaves.

    checkpoints/step_00001000/arrays/        orbax arrays, one flat dict keyed by tree path ("params/w")
                             /meta.json      step, loader state, config, references, scale factors, ...
                             /complete.json  written last: size and SHA-256 of every file, dtype and shape
    checkpoints/last, checkpoints/best       text files holding the name of a step directory

A checkpoint is built under a hidden name and renamed when it is whole, so that a kill at any moment leaves
the previous one as the newest. Flat paths instead of pickled structure: optimiser NamedTuples come back
through the tree the program builds itself, and a checkpoint can be read by path without any of our classes.
What goes into the arrays and the record is not decided here.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxatoms.io import finite, sync, write_text
from jaxatoms.training import flat as flat_params
from jaxatoms.training.checkpoint_files import (
    ARRAYS,
    MARKER,
    META,
    POINTERS,
    file_digest,
    find_damage,
    one_line,
    read_meta,
    read_pointer,
    resolve_checkpoint,
    step_dirs,
)
from jaxatoms.types import InputError

_ECHO = 1.0  # s in which the threads of a failed write have reported
_LOGGER = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
      directory: the `checkpoints` directory; created by the first save.
      keep: how many of the newest steps to keep; the best one is always kept besides.
      asynchronous: write in a background thread. Arrays are copied to the host before `save` returns, so
        their device buffers may be donated; an error surfaces at the next `save` or `wait`.
      notify: receives one-line messages for the user (default: a warning in the log).

    Use as a context manager, or call `close`, so that a background save ends before the program does.

    Raises:
      ValueError: keep < 1.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        asynchronous: bool = False,
        notify: Callable[[str], None] = _LOGGER.warning,
    ):
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.directory = Path(directory)
        self._keep = keep
        self._notify = notify
        self._pool = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def save(
        self, step: int, arrays: Any, meta: Mapping[str, Any], kind: Literal["last", "best"] = "last"
    ) -> Path:
        """Saves everything a run needs to continue and makes it `last`; with kind="best" also `best`.

        A step saved before is replaced. Directories of later steps belong to a continuation that was given
        up (a damaged checkpoint, a run restarted from an earlier one): they are renamed, not deleted.

        Args:
          step: training steps done.
          arrays: pytree of arrays and numbers, e.g. {"params": ..., "ema": ..., "opt_state": ...}. Parameters as one
            vector (`FlatParams`) are saved as the arrays they stand for.
          meta: JSON values with string keys; NumPy values are converted. "step" is added where missing.
          kind: "best" moves both pointers, "last" one.

        Returns:
          The step directory (for an asynchronous save: where it will be).

        Raises:
          ValueError, TypeError: arrays or meta cannot be saved exactly (of typed PRNG keys, save key_data).
          InputError: the disk refuses; earlier checkpoints are untouched.
        """
        if kind not in POINTERS:
            raise ValueError(f"kind must be 'last' or 'best', got {kind!r}")
        flat = {
            name: _to_host(name, leaf, copy=self._pool is not None)
            for name, leaf in _flatten(flat_params.unpacked(arrays)).items()
        }
        text = _encode_meta({"step": int(step), **meta})
        self.wait()
        target = self.directory / f"step_{int(step):08d}"
        if self._pool is None:
            self._write(target, flat, text, kind)
        else:
            self._pending = self._pool.submit(self._write, target, flat, text, kind)
        return target

    def wait(self) -> None:
        """Blocks until a background save is on disk.

        Raises:
          InputError: that save failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finishes a background save; the store must not be used afterwards."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def steps(self) -> list[int]:
        """Steps that have a directory here, ascending; damaged ones included."""
        return sorted(step_dirs(self.directory))

    def restore_latest(self, abstract_tree: Any = None) -> tuple[Any, dict] | None:
        """Restores the newest complete checkpoint; passes over damaged ones and says so through `notify`.

        Args:
          abstract_tree: as in `restore`.

        Returns:
          (arrays, meta), or None where nothing was ever saved.

        Raises:
          InputError: every checkpoint is damaged, or the newest complete one does not fit abstract_tree.
        """
        self.wait()
        _put_back_replaced(self.directory)
        found = step_dirs(self.directory)
        problems = []
        for step in sorted(found, reverse=True):
            problem = find_damage(found[step])
            if problem is None:
                if problems:
                    self._notify(f"{'; '.join(problems)}; falling back to {found[step]}")
                return _read(found[step], abstract_tree, None)
            problems.append(f"checkpoint {found[step]} is damaged ({problem})")
        if problems:
            raise InputError(
                f"{'; '.join(problems)}; no complete checkpoint is left, start a new run directory"
            )
        return None

    def _write(self, target: Path, flat: dict[str, np.ndarray], meta_text: str, kind: str) -> None:
        """Builds the step directory, moves it into place, then the pointers, then removes old steps."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _put_back_replaced(self.directory)
            _clear_leftovers(self.directory)
            _put_in_place(_build(target, flat, meta_text), target)
            _set_aside_later(self.directory, target)
            for name in ("last", "best") if kind == "best" else ("last",):
                write_text(self.directory / name, target.name + "\n")
            self._prune()
        except (OSError, ValueError) as error:
            _clear_drafts(self.directory)
            what = _reason(error)
            raise InputError(
                f"cannot write checkpoint {target}: {what}; earlier checkpoints are kept, "
                "free disk space or choose another run directory"
            ) from error

    def _prune(self) -> None:
        found = step_dirs(self.directory)
        kept: set[str | None] = {found[step].name for step in sorted(found)[-self._keep :]}
        kept |= {read_pointer(self.directory / name) for name in POINTERS}
        for path in found.values():
            if path.name not in kept:
                _remove(path)


def restore(
    path: str | Path, abstract_tree: Any = None, only: Collection[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads one checkpoint, bit for bit, after checking every file of it.

    Args:
      path: anything `resolve_checkpoint` accepts.
      abstract_tree: tree of jax.ShapeDtypeStruct or arrays. It may leave out top-level entries of what was
        saved (say, the optimiser state), but those it has must agree in every path, shape and dtype. NumPy
        and Python leaves come back as such, others as jax arrays with the leaf's sharding, and parameters
        as one vector (`FlatParams`) as such. None: no structure needed, the result is a flat dict
        {"params/w": np.ndarray}; see `nest`.
      only: without abstract_tree, the top-level entries to read, e.g. ("ema",).

    Returns:
      (arrays, meta).

    Raises:
      InputError: no such checkpoint, damaged, or it does not fit abstract_tree.

    Example:
      arrays, meta = restore("runs/x/checkpoints/best", only=("ema",))
    """
    directory = resolve_checkpoint(path)
    problem = find_damage(directory)
    if problem is not None:
        raise InputError(
            f"checkpoint {directory} is damaged: {problem}; use another step directory beside it"
        )
    return _read(directory, abstract_tree, only)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"ema/layer/w": x} -> {"ema": {"layer": {"w": x}}}, the nested dicts flax parameters are made of."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return tree


# --- arrays -------------------------------------------------------------------------------------------


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path, "opt_state/0/mu/w"."""
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not path or path in flat:
            raise ValueError(f"cannot save the leaf {path!r}: paths must be unique and not empty")
        flat[path] = leaf
    return flat


def _to_host(path: str, leaf: Any, copy: bool) -> np.ndarray:
    """A leaf as NumPy. `copy` because on a CPU the NumPy array may share the device buffer."""
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"cannot save {path!r}: a typed key; save jax.random.key_data of it")
    array = np.array(leaf) if copy else np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind in "SUMm":
        raise ValueError(f"cannot save {path!r}: {type(leaf).__name__} is not an array; put it into meta")
    return array


def _checkpointer() -> ocp.Checkpointer:
    """Orbax for this process alone; by default it waits for all processes of a run, of which only one writes."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _write_arrays(directory: Path, flat: dict[str, np.ndarray]) -> None:
    """Orbax refuses arrays without elements; those live in the marker's table alone."""
    solid = {path: array for path, array in flat.items() if array.size}
    if solid:
        _reserve(directory.with_name(".room"), sum(array.nbytes for array in solid.values()))
        with _without_echo(), _checkpointer() as checkpointer:
            checkpointer.save(directory.absolute(), solid)


def _reserve(path: Path, size: int) -> None:
    """Raises the plain OSError of a full or limited disk before orbax begins, whose own errors are long and many."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + size // 20 + (1 << 20))  # orbax's tables come to the arrays
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system without this call
            raise
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Keeps off the terminal what orbax's threads say of a failed write: the failure itself is raised.

    Each logs a traceback, or reports to an event loop that is closed by then, for a second or so.
    """
    before, logger = sys.unraisablehook, logging.getLogger("absl")

    def hook(told):
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    def is_no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    sys.unraisablehook = hook
    logger.addFilter(is_no_error)
    try:
        yield
    except BaseException:
        time.sleep(_ECHO)
        raise
    finally:
        sys.unraisablehook = before
        logger.removeFilter(is_no_error)


def _read_arrays(directory: Path, table: dict[str, list], paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads the named arrays; `table` is the marker's {path: [dtype, shape]}."""
    flat = {path: np.empty(table[path][1], table[path][0]) for path in paths}
    args = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path, array in flat.items() if array.size}
    if args:
        with _checkpointer() as checkpointer:
            request = ocp.args.PyTreeRestore(
                item=dict.fromkeys(args, 0), restore_args=args, partial_restore=True
            )
            flat |= checkpointer.restore((directory / ARRAYS).absolute(), args=request)
    return flat


def _read(directory: Path, abstract_tree: Any, only: Collection[str] | None) -> tuple[Any, dict[str, Any]]:
    """Arrays and record of a directory that was found whole."""
    table = json.loads((directory / MARKER).read_text())["arrays"]
    if abstract_tree is None:
        wanted = [path for path in table if only is None or path.split("/")[0] in only]
        return _read_checked(directory, table, wanted), read_meta(directory)
    named = flat_params.placeholders(abstract_tree)
    target = _flatten(named)
    _check_fit(directory, table, target)
    flat = _read_checked(directory, table, target)
    leaves = [_place(flat[path], leaf) for path, leaf in target.items()]
    arrays = jax.tree.unflatten(jax.tree.structure(named), leaves)
    return flat_params.packed_like(abstract_tree, arrays), read_meta(directory)


def _read_checked(directory: Path, table: dict[str, list], paths: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        return _read_arrays(directory, table, paths)
    except Exception as error:  # orbax and tensorstore raise many types; the user needs the place
        raise InputError(f"checkpoint {directory} cannot be read: {one_line(error)}") from error


def _check_fit(directory: Path, table: dict[str, list], target: dict[str, Any]) -> None:
    """Raises InputError unless every requested top-level entry agrees with what was saved."""
    tops = {path.split("/")[0] for path in target}
    saved = {path for path in table if path.split("/")[0] in tops}
    prefix = f"checkpoint {directory} does not fit this model or optimiser"
    for difference, words in (
        (target.keys() - saved, "lacks"),
        (saved - target.keys(), "has the unexpected"),
    ):
        if difference:
            raise InputError(
                f"{prefix}: it {words} {min(difference)!r} (and {len(difference) - 1} more); "
                "use the configuration it was saved with"
            )
    for path, leaf in target.items():
        dtype, shape = table[path]
        want_dtype, want_shape = _signature(leaf)
        if shape != want_shape or want_dtype not in (None, dtype):
            raise InputError(
                f"{prefix}: {path!r} is {dtype}{shape} there and {want_dtype or ''}{want_shape} here; "
                "use the configuration it was saved with"
            )


def _signature(leaf: Any) -> tuple[str | None, list[int]]:
    """(dtype or None for a Python number, shape) under which a leaf is stored."""
    return (np.dtype(leaf.dtype).name if hasattr(leaf, "dtype") else None), list(np.shape(leaf))


def _place(array: np.ndarray, leaf: Any) -> Any:
    """The stored array as the kind of thing `leaf` is."""
    if isinstance(leaf, bool | int | float):
        return type(leaf)(array.item())
    if isinstance(leaf, np.ndarray | np.generic):
        return array if isinstance(leaf, np.ndarray) else array[()]
    sharding = leaf.sharding if getattr(leaf, "committed", True) else None
    return jax.device_put(array, sharding)


# --- files --------------------------------------------------------------------------------------------


def _build(target: Path, flat: dict[str, np.ndarray], meta_text: str) -> Path:
    """Writes a whole checkpoint under a hidden name and returns that directory."""
    draft = target.with_name(f".{target.name}.tmp")
    draft.mkdir()
    _write_arrays(draft / ARRAYS, flat)
    write_text(draft / META, meta_text)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    marker = {
        "files": {str(path.relative_to(draft)): [path.stat().st_size, file_digest(path)] for path in files},
        "arrays": {path: [array.dtype.name, list(array.shape)] for path, array in flat.items()},
    }
    write_text(draft / MARKER, json.dumps(marker, indent=1))
    for path in [*(path for path in draft.rglob("*") if path.is_dir()), draft]:
        sync(path)
    return draft


def _put_in_place(draft: Path, target: Path) -> None:
    """Renames; a checkpoint of the same step steps aside until the new one stands."""
    replaced = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(replaced)
    draft.rename(target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _put_back_replaced(directory: Path) -> None:
    """Undoes a replacement that a kill interrupted between its two renames."""
    for replaced in directory.glob(".step_*.old"):
        original = directory / replaced.name[1 : -len(".old")]
        if not original.exists():
            replaced.rename(original)


def _clear_drafts(directory: Path) -> None:
    """Removes what a failed save has written, as far as the disk allows."""
    for path in directory.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for name in POINTERS:
        with contextlib.suppress(OSError):
            (directory / f".{name}.tmp").unlink()


def _clear_leftovers(directory: Path) -> None:
    """Removes what a killed save or removal left behind."""
    for pattern in (".step_*.tmp", ".step_*.old"):
        for path in directory.glob(pattern):
            shutil.rmtree(path)


def _set_aside_later(directory: Path, target: Path) -> None:
    """Renames steps after `target` to superseded_step_...; a pointer to one follows it."""
    found = step_dirs(directory)
    current = int(target.name.removeprefix("step_"))
    for step in sorted(step for step in found if step > current):
        aside = directory / f"superseded_{found[step].name}"
        if aside.exists():
            shutil.rmtree(aside)
        was_best = read_pointer(directory / "best") == found[step].name
        found[step].rename(aside)
        if was_best:
            write_text(directory / "best", aside.name + "\n")


def _remove(path: Path) -> None:
    """Deletes a step directory so that a kill half-way does not leave something that looks damaged."""
    doomed = path.with_name(f".{path.name}.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _encode_meta(meta: Mapping[str, Any]) -> str:
    _check_keys(meta, "meta")
    return json.dumps(finite(meta), indent=1, default=_plain)


def _check_keys(value: Any, where: str) -> None:
    """JSON would turn the key 6 into "6" without a word."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys must be strings")
            _check_keys(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item, where)


def _plain(value: Any) -> Any:
    """NumPy, jax and path values as JSON ones."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"meta holds a {type(value).__name__}, which JSON cannot express")


def _reason(error: Exception) -> str:
    """What the system said, also where orbax wraps it in a page of its own."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or one_line(error)

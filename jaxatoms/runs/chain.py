"""Runs a chain of commands that can be stopped and started again: finished steps are skipped, begun ones resumed.

    steps = [Step("pretrain", ("experiments.pretrain", "--upstream", "ani1x", "--run-dir", "out/pre"),
                  proof=Path("out/pre/summary.json"), begun=Path("out/pre/config.json"), resume=("--resume",))]
    run_chain(steps, Path("out"))

A step is finished when its proof exists: a file whose field "finished", where it is JSON and has one, is true.
chain.json in the folder of the chain records the command of every step and the identity of its data sets, checkpoints
and files. A step that was made with other settings, or from inputs that have changed since, is refused and not taken
for this one.
"""

import dataclasses
import functools
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from jaxatoms.inference import inputs
from jaxatoms.io import write_json
from jaxatoms.tools import cli, lock
from jaxatoms.types import InputError

MANIFEST = "chain.json"


@dataclasses.dataclass(frozen=True)
class Step:
    """Describes one command.

    Attributes:
      name: identifies the step within its chain.
      argv: the module and its arguments, as they follow `python -m`.
      proof: this file shows that the step is finished.
      begun: this file shows that an earlier attempt began; `resume` is then added to the arguments.
      places: further arguments that do not affect the result and may change between attempts, such as data folders.
      together: consecutive steps that share this word are independent of each other and may run at the same time.
    """

    name: str
    argv: tuple[str, ...]
    proof: Path
    begun: Path | None = None
    resume: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    together: str = ""

    def command(self) -> str:
        """Returns the command as one would type it."""
        return f"python -m {shlex.join((*self.argv, *self.places))}"


def is_done(step: Step) -> bool:
    """Returns whether the proof exists and is complete."""
    if not step.proof.is_file():
        return False
    if step.proof.suffix != ".json":
        return True
    try:
        record = json.loads(step.proof.read_text())
    except (OSError, ValueError):
        return False
    return not (isinstance(record, dict) and record.get("finished") is False)


def start_process(argv: Sequence[str], slot: int, jobs: int, output: IO | None = None) -> subprocess.Popen:
    """Starts `python -m ...`; where several jobs run at a time, each is confined to its share of the cores.

    Args:
      output: receives what the process prints; None leaves it where this process prints.
    """
    share = functools.partial(_take_cores, slot, jobs) if jobs > 1 and hasattr(os, "sched_setaffinity") else None
    streams: dict[str, Any] = {} if output is None else {"stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-m", *argv], preexec_fn=share, **streams)


def _take_cores(slot: int, jobs: int) -> None:
    # Without this every process starts as many threads as there are cores, and they wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[slot::jobs] or cores)


def run_chain(
    steps: Sequence[Step],
    folder: Path,
    start: Callable[[Sequence[str], int, int], Any] | None = None,
    say: Callable[[str], None] = print,
    jobs: int = 1,
    ended: Callable[[Step], None] = lambda step: None,
) -> None:
    """Runs the unfinished steps in order, each in a process of its own, which frees its memory at the end.

    Args:
      folder: holds chain.json, and must exist.
      start: maps (arguments, slot, jobs) to a process with `poll` and `terminate`; the default is `start_process`.
      jobs: number of steps that run at the same time where they are marked `together`.
      ended: is called for every finished step, whether it ran now or before.

    Raises:
      InputError: a step failed or was stopped (run the chain again to continue), or was made from other inputs.
    """
    with lock.hold(folder):
        check_settings(steps, folder)
        check_inputs(steps, folder)
        numbered = [(f"[{i + 1}/{len(steps)}] {step.name}", step) for i, step in enumerate(steps)]
        for group in _groups(numbered):
            check_inputs([step for _, step in group], folder)  # earlier steps may have changed their results just now
            _run_group(group, folder, start or start_process, say, jobs, ended)


def _groups(numbered: Iterable[tuple[str, Step]]) -> list[list[tuple[str, Step]]]:
    """Groups consecutive steps that share a non-empty `together`; every other step is a group of its own."""
    groups = []
    for word, members in itertools.groupby(numbered, lambda pair: pair[1].together):
        found = list(members)
        groups += [found] if word else [[pair] for pair in found]
    return groups


def _run_group(group: list[tuple[str, Step]], folder: Path, start, say, jobs: int, tell_end) -> None:
    """Runs independent steps, `jobs` at a time; after a failure no further one is started."""
    waiting, running, ended, told = list(group), {}, [], False
    with cli.StopFlag() as stop:
        while running or (waiting and not stop and not _failures(ended)):
            while waiting and len(running) < jobs and not stop and not _failures(ended):
                label, step = waiting.pop(0)
                if is_done(step):
                    say(f"{label}: done already")
                    tell_end(step)
                    continue
                slot = min(set(range(jobs)) - set(running))
                running[slot] = (label, step, _begin(label, step, folder, start, say, slot, jobs), time.perf_counter())
            if stop and not told:
                told = True
                for _, _, process, _ in running.values():
                    process.terminate()  # a training step saves and ends
            for slot, (label, step, process, began) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[slot]
                    ended.append((step, 128 + int(stop.signal) if stop.signal else code))
                    say(f"{label}: {time.perf_counter() - began:.0f} s")
                    if not _failures(ended[-1:]):
                        tell_end(step)
            if running:
                time.sleep(0.1)
    for step, what in _failures(ended):
        raise InputError(f"step {step.name} {what}: no {step.proof} yet; the same command goes on from here")


def _begin(label: str, step: Step, folder: Path, start, say, slot: int, jobs: int):
    """Announces, records and starts a step, with its `resume` arguments where an earlier attempt began."""
    say(f"{label}: {step.command()}")
    _note(step, folder)
    resumed = step.begun is not None and step.begun.exists()
    return start([*step.argv, *step.places, *(step.resume if resumed else ())], slot, jobs)


def _failures(ended: Sequence[tuple[Step, int]]) -> list[tuple[Step, str]]:
    """Returns the steps that left no proof or ended with an error, each with a description of what happened."""
    return [
        (step, "was stopped" if code > 128 else f"failed with exit code {code}" if code else "ended early")
        for step, code in ended
        if code or not is_done(step)
    ]


def check_settings(steps: Sequence[Step], folder: Path) -> None:
    """Refuses a step whose arguments differ from those that it began with.

    Raises:
      InputError: the message names the step and the first argument that changed.
    """
    names = [step.name for step in steps]
    assert len(set(names)) == len(names), names
    known = _manifest(folder)
    for step in steps:
        before = known[step.name]["argv"] if step.name in known else None
        if before is None or before == list(step.argv) or not (is_done(step) or _has_begun(step)):
            continue
        changed = [word for word in step.argv if word not in before] or [w for w in before if w not in step.argv]
        what = " ".join(changed[:2]) or "their order"
        raise InputError(
            f"step {step.name} in {folder} ran with other settings: {what} changed; use the same, or another folder"
        )


def check_inputs(steps: Sequence[Step], folder: Path) -> None:
    """Refuses finished or begun steps whose inputs have changed since, or are about to be made again.

    Inputs that did not exist when the step began, or cannot be read now, are not compared.

    Raises:
      InputError: the message names the first such step, its input with both identities, and what to remove.
    """
    if stale := _stale(steps, folder):
        step, name, old, new = stale[0]
        shown = list(dict.fromkeys(str(one.proof.parent) for one, *_ in stale))
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        raise InputError(f"step {step.name} was made from another {name} ({old} then, {new} now); to make it anew "
                         f"remove {', '.join(shown[:5])}{more}, or use another --out")  # fmt: skip


def _stale(steps: Sequence[Step], folder: Path) -> list[tuple[Step, str, str, str]]:
    """Lists (step, its input, identity then, identity now) of every step whose inputs have changed."""
    known, look = _manifest(folder), functools.cache(inputs.dataset)
    unfinished = [step.proof.absolute() for step in steps if not is_done(step)]
    stale: list[tuple[Step, str, str, str]] = []
    for step in steps:
        before = {k: v for k, v in known.get(step.name, {}).get("inputs", {}).items() if v is not None}
        if before and (is_done(step) or _has_begun(step)):
            now = {name: _identity(name, value, unfinished) for name, value in _inputs(step, look).items()}
            others = inputs.changed(before, {k: v for k, v in now.items() if v is not None and k in before})
            stale += [(step, others[0], before[others[0]], str(now[others[0]]))] if others else []
    return stale


def _identity(name: str, value: str | None, unfinished: Sequence[Path]) -> str | None:
    """Returns the identity of an input now, or "to be made" for a run folder that an unfinished step will write."""
    place = Path(name.partition(" ")[2]).absolute()
    return "to be made" if value is None and any(place in proof.parents for proof in unfinished) else value


def _inputs(step: Step, look: Callable = inputs.dataset) -> inputs.Inputs:
    return inputs.of_command([*step.argv, *step.places], look)


def _has_begun(step: Step) -> bool:
    return step.begun is not None and step.begun.exists()


def _note(step: Step, folder: Path) -> None:
    known = _manifest(folder)
    before = known.get(step.name, {}).get("inputs", {}) if _has_begun(step) else {}
    made_from = {name: before.get(name) if value is None else value for name, value in _inputs(step).items()}
    record = {step.name: {"argv": list(step.argv), "inputs": made_from}}
    write_json(folder / MANIFEST, known | record)


def _manifest(folder: Path) -> dict[str, dict]:
    """Reads {name of a step: its arguments and inputs}; older chains recorded the arguments alone."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST} is not JSON ({error}); delete it") from None
    return {name: {"argv": kept, "inputs": {}} if isinstance(kept, list) else kept for name, kept in found.items()}


def print_chain(steps: Sequence[Step], folder: Path, say=print) -> None:
    """Prints every step with its state and runs none; steps that were made from other inputs are "stale"."""
    stale = {step.name for step, *_ in _stale(steps, folder)}
    for step in steps:
        state = "done " if is_done(step) else "begun" if _has_begun(step) else "to do"
        state = "stale" if step.name in stale else state
        say(f"[{state}] {step.name}: {step.command()}")

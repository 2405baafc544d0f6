"""A chain of commands that can be stopped and run again: what is done is skipped, what had begun is resumed.

    steps = [Step("pretrain", ("experiments.pretrain", "--upstream", "ani1x", "--run-dir", "out/pre"),
                  proof=Path("out/pre/summary.json"), begun=Path("out/pre/config.json"), resume=("--resume",))]
    run_chain(steps, Path("out"))

A step is done when its proof is there: a file, and where it is JSON with a field "finished", that field is true.
chain.json in the chain's folder keeps the words of every step, so that a step done under other settings is refused
instead of passing for this one.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import cli
from jaxatoms.types import InputError

MANIFEST = "chain.json"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
      name: unique within its chain.
      argv: module and arguments, as after `python -m`.
      proof: the file that shows it is done.
      begun: the file that shows that an earlier try began; then `resume` is added to the arguments.
      places: more arguments, which do not enter the result and may change between tries (where data lie).
    """

    name: str
    argv: tuple[str, ...]
    proof: Path
    begun: Path | None = None
    resume: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def command(self) -> str:
        """What one would type."""
        return f"python -m {shlex.join((*self.argv, *self.places))}"


def is_done(step: Step) -> bool:
    """Whether the proof is there and whole."""
    if not step.proof.is_file():
        return False
    if step.proof.suffix != ".json":
        return True
    try:
        record = json.loads(step.proof.read_text())
    except (OSError, ValueError):
        return False
    return not (isinstance(record, dict) and record.get("finished") is False)


def run_chain(
    steps: Sequence[Step], folder: Path, run: Callable[[Sequence[str]], int] | None = None, say=print
) -> None:
    """Run the steps that are not done, in order.

    Args:
      folder: of chain.json; must exist.
      run: arguments -> exit code; default: a process of its own for each step, which frees its memory at the end.

    Raises:
      InputError: a step failed or was stopped (run the chain again to go on), or was done with other settings.
    """
    check_settings(steps, folder)
    for i, step in enumerate(steps):
        label = f"[{i + 1}/{len(steps)}] {step.name}"
        if is_done(step):
            say(f"{label}: done already")
            continue
        say(f"{label}: {step.command()}")
        _note(step, folder)
        resumed = step.begun is not None and step.begun.exists()
        began = time.perf_counter()
        code = (run or run_process)([*step.argv, *step.places, *(step.resume if resumed else ())])
        if code or not is_done(step):
            what = "was stopped" if code > 128 else f"failed with exit code {code}" if code else "ended early"
            raise InputError(f"step {step.name} {what}: no {step.proof} yet; the same command goes on from here")
        say(f"{label}: {time.perf_counter() - began:.0f} s")


def run_process(argv: Sequence[str]) -> int:
    """Run `python -m ...` in a process of its own; a signal to stop is passed on so that the step can save."""
    process = subprocess.Popen([sys.executable, "-m", *argv])
    passed_on = False
    with cli.StopFlag() as stop:
        while True:
            try:
                code = process.wait(timeout=0.5)
                return 128 + int(stop.signal) if stop.signal else code
            except subprocess.TimeoutExpired:
                if stop and not passed_on:
                    process.terminate()
                    passed_on = True


def check_settings(steps: Sequence[Step], folder: Path) -> None:
    """Refuse a step whose words differ from those it began with.

    Raises:
      InputError: naming the step and the first word that changed.
    """
    names = [step.name for step in steps]
    assert len(set(names)) == len(names), names
    known = _manifest(folder)
    for step in steps:
        before = known.get(step.name)
        if before is None or before == list(step.argv) or not (is_done(step) or _has_begun(step)):
            continue
        changed = [word for word in step.argv if word not in before] or [w for w in before if w not in step.argv]
        what = " ".join(changed[:2]) or "their order"
        raise InputError(
            f"step {step.name} in {folder} ran with other settings: {what} changed; use the same, or another folder"
        )


def _has_begun(step: Step) -> bool:
    return step.begun is not None and step.begun.exists()


def _note(step: Step, folder: Path) -> None:
    draft = folder / f".{MANIFEST}.tmp"
    draft.write_text(json.dumps(_manifest(folder) | {step.name: list(step.argv)}, indent=1) + "\n")
    draft.replace(folder / MANIFEST)


def _manifest(folder: Path) -> dict[str, list[str]]:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST} is not JSON ({error}); delete it") from None


def print_chain(steps: Sequence[Step], say=print) -> None:
    """Every step with its state, without running any."""
    for step in steps:
        state = "done " if is_done(step) else "begun" if _has_begun(step) else "to do"
        say(f"[{state}] {step.name}: {step.command()}")

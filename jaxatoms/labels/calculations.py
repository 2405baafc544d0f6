"""Structures in, results out: in this process or in workers, in the order of the input; failures are told apart."""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError

from jaxatoms.data.workers import end_with_parent
from jaxatoms.labels.methods import Method
from jaxatoms.types import InputError

AHEAD = 4  # structures a worker that are read ahead, so that one slow structure stops no other
MAX_REASON = 300  # characters of a calculator's message that are kept

Results = dict[str, Any]  # energy eV, forces [n_node, 3] eV/A, stress [6] eV/A^3 (Voigt) where there is one


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one structure."""

    index: int  # its place in the file
    atoms: ase.Atoms
    results: Results | None  # None: the calculation failed
    reason: str = ""  # why it failed


def label_all(
    method: Method, structures: Iterable[tuple[int, ase.Atoms]], workers: int
) -> Generator[Outcome, None, None]:
    """Yields an outcome for each (place in the file, structure), in their order.

    Args:
      workers: processes, each with a calculator of its own; 1 stays in this process.

    Raises:
      InputError: the calculator cannot be made, or a worker died.
    """
    if workers > 1:
        yield from _in_workers(method, structures, workers)
        return
    calculator = None
    for index, atoms in structures:
        calculator = method.calculator() if calculator is None else calculator
        yield Outcome(index, atoms, *attempt(calculator, atoms))


def attempt(calculator: Any, atoms: ase.Atoms) -> tuple[Results | None, str]:
    """(results, "") or (None, the reason of the failure)."""
    try:
        return compute(calculator, atoms), ""
    except Exception as error:  # whatever a calculator raises is a failure of this structure
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]


def compute(calculator: Any, atoms: ase.Atoms) -> Results:
    """Energy, forces and, where the structure is periodic and the calculator has it, stress.

    Forces are the calculator's own: constraints of the structure do not change them.

    Raises:
      ValueError: a result is missing, of another shape, or not finite; the calculator raises what it likes.
    """
    own = atoms.copy()
    own.calc = calculator
    results: Results = {
        "energy": own.get_potential_energy(apply_constraint=False),
        "forces": own.get_forces(apply_constraint=False),
    }
    if "stress" in calculator.implemented_properties and own.pbc.any() and own.cell.rank == 3:
        with contextlib.suppress(PropertyNotImplementedError):  # how a calculator says that it has none here
            results["stress"] = own.get_stress(apply_constraint=False)
    shapes = {"energy": (), "forces": (len(own), 3), "stress": (6,)}
    checked = {name: _checked(name, value, shapes[name]) for name, value in results.items()}
    return checked | {"energy": float(checked["energy"])}


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if value is None:
        raise ValueError(f"the calculator gives no {name}")
    array = np.array(value, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape} instead of {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"NaN or infinity in {name}")
    return array


def batches(outcomes: Iterable[Outcome], seconds: float, most: int) -> Iterator[list[Outcome]]:
    """The stream in lists, each ended when `most` are together or `seconds` have passed."""
    batch: list[Outcome] = []
    began = time.monotonic()
    for outcome in outcomes:
        batch.append(outcome)
        if len(batch) >= most or time.monotonic() - began >= seconds:
            yield batch
            batch, began = [], time.monotonic()
    if batch:
        yield batch


# --- worker processes -----------------------------------------------------------------------------------


def _in_workers(
    method: Method, structures: Iterable[tuple[int, ase.Atoms]], workers: int
) -> Generator[Outcome, None, None]:
    # Spawned, not forked: the parent may hold threads of other libraries.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        waiting: deque[tuple[int, ase.Atoms, Future]] = deque()
        stream = iter(structures)
        try:
            while True:
                for index, atoms in itertools.islice(stream, workers * AHEAD - len(waiting)):
                    waiting.append((index, atoms, pool.submit(_attempt, method, atoms.copy())))
                if not waiting:
                    return
                index, atoms, future = waiting.popleft()
                yield Outcome(index, atoms, *future.result())
        except BrokenProcessPool:
            at = [index, *(i for i, _, _ in waiting)]
            where = f"one of the structures {min(at)} to {max(at)}"
            remedy = "run the same command again, with fewer --workers or without that structure"
            raise InputError(f"a worker process died (out of memory?) at {where}; {remedy}") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Called by every worker at its start: it ends with its parent, and without a word when the user interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def _attempt(method: Method, atoms: ase.Atoms) -> tuple[Results | None, str]:
    return attempt(_calculator(method), atoms)  # a calculator that cannot be made ends the command


@functools.cache
def _calculator(method: Method) -> Any:
    """The one calculator of a worker."""
    return method.calculator()

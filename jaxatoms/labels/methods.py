"""What labels structures: an ASE calculator named as `module:factory`, or a checkpoint of this library.

JAX is loaded where a checkpoint is, and nowhere else, so that workers with another calculator do without it.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Protocol

import ase

from jaxatoms.inference import inputs
from jaxatoms.training.checkpoint_files import read_meta, resolve_checkpoint
from jaxatoms.types import InputError

NEEDED = ("energy", "forces")
# Keys of a method's record; those of an earlier labelling are not copied from the input.
RECORDED = ("label_method", "label_options", "label_package", "label_ase", "label_checkpoint", "label_weights",
            "label_task")  # fmt: skip
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Method(Protocol):
    """What computes the labels; it is sent to worker processes, its calculator is not."""

    def calculator(self) -> Any:
        """A new calculator, which has energies and forces.

        Raises:
          InputError: it is not installed, cannot be made with these options, or has no energies and forces.
        """

    def record(self) -> dict[str, str]:
        """What files say of it: `label_method`, versions, options."""


@dataclasses.dataclass(frozen=True)
class CalculatorMethod:
    """An ASE calculator."""

    name: str  # module:factory
    options: str = "{}"  # JSON object of the factory's keyword arguments

    def calculator(self) -> Any:
        """See `Method`."""
        factory = self._factory()
        try:
            made = factory(**json.loads(self.options))
        except ModuleNotFoundError as error:
            raise _not_installed(self.name, error) from error
        except Exception as error:
            what = f"cannot be made with the options {self.options} ({type(error).__name__}: {error})"
            raise InputError(f"--with {self.name}: {what}; check --options") from error
        return _with_energy_and_forces(made, self.name)

    def record(self) -> dict[str, str]:
        """See `Method`."""
        return {"label_method": self.name, "label_options": self.options,
                "label_package": _package(self.name.partition(":")[0]), **_ase()}  # fmt: skip

    def _factory(self) -> Any:
        module, _, name = self.name.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise _not_installed(self.name, error) from error
        except AttributeError:
            raise InputError(f"--with {self.name}: the module {module} has no {name}; check its name") from None


@dataclasses.dataclass(frozen=True)
class CheckpointMethod:
    """A checkpoint of this library."""

    path: str  # anything that `resolve_checkpoint` accepts
    task: str | None = None  # whose head is used; needed where there are several

    def calculator(self) -> Any:
        """See `Method`."""
        from jaxatoms.ase import JaxAtomsCalculator  # here: it loads JAX

        return _with_energy_and_forces(JaxAtomsCalculator(self.path, self.task, refuse_open_zero=True), self.path)

    def record(self) -> dict[str, str]:
        """See `Method`; names the weights by their content."""
        tasks = [task["name"] for task in read_meta(self.path)["tasks"]]
        return {"label_method": "jaxatoms.ase:JaxAtomsCalculator", "label_checkpoint": self.path,
                "label_weights": str(inputs.weights(self.path)), "label_task": self.task or tasks[0],
                "label_package": _package("jaxatoms"), **_ase()}  # fmt: skip


def find_method(name: str, options: str = "{}", task: str | None = None) -> CalculatorMethod | CheckpointMethod:
    """The method that `--with` names; no calculator is made, but its module is looked for.

    Args:
      name: `module:factory`, or a run folder, RUN@last, a converted folder or a step folder.
      options: JSON object of the factory's keyword arguments.
      task: the head of a checkpoint.

    Raises:
      InputError: nothing of that name, a module that is not installed, or options that are no JSON object.
    """
    if _FACTORY.fullmatch(name) and not Path(name).exists():
        method = CalculatorMethod(name, _canonical(options))
        method._factory()
        return method
    try:
        resolve_checkpoint(name)
    except InputError as error:
        known = "a calculator is named as module:factory, such as ase.calculators.emt:EMT"
        raise InputError(f"--with {name}: {error}; {known}") from error
    return CheckpointMethod(name, task)


def _canonical(options: str) -> str:
    """The same JSON object, spelt in one way."""
    try:
        found = json.loads(options)
    except ValueError as error:
        raise InputError(f"--options {options} is not JSON: {error}; write it as '{{\"name\": value}}'") from error
    if not isinstance(found, dict):
        raise InputError(f"--options {options} is no JSON object; write it as '{{\"name\": value}}'")
    return json.dumps(found, sort_keys=True)


def _with_energy_and_forces(calculator: Any, name: str) -> Any:
    missing = [label for label in NEEDED if label not in getattr(calculator, "implemented_properties", ())]
    if missing:
        raise InputError(f"--with {name}: it has no {' and no '.join(missing)}; choose another one")
    return calculator


def _not_installed(name: str, error: ModuleNotFoundError) -> InputError:
    missing = error.name or str(error)
    package = missing.partition(".")[0]
    if package != missing and importlib.util.find_spec(package) is not None:
        return InputError(f"--with {name}: the installed {package} has no module {missing}; check its name")
    remedy = f"install it, as in `pip install {package}`, or check the name"
    return InputError(f"--with {name}: the module {missing} is not installed; {remedy}")


def _package(module: str) -> str:
    """The package that a module comes from, with its version: "ase 3.26.0"."""
    top = module.partition(".")[0]
    found = _distributions().get(top)
    return f"{found[0]} {importlib.metadata.version(found[0])}" if found else f"{top} (no version)"


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _ase() -> dict[str, str]:
    return {"label_ase": f"ase {ase.__version__}"}

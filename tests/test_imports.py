"""Imports point one way, and the packages that data workers use never load JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[1]
# What each package of `jaxatoms` may import of the others.
ALLOWED = {
    "types": set(),
    "units": set(),
    "io": {"types"},
    "plots": {"types", "io"},
    "tools": {"types", "io"},
    "ops": {"kernels"},
    "pickles": set(),
    "graphs": {"types"},
    "data": {"types", "units", "io", "graphs", "pickles"},
    "models": {"types", "graphs", "ops"},
    "csi": {"types", "io"},
    "uncertainty": {"types", "io", "plots"},
    "training": {"types", "io", "plots", "graphs", "ops"},
    "interop": {"types", "units", "graphs", "models", "pickles"},
    "inference": {"types", "io", "plots", "tools", "data", "graphs", "models", "training", "uncertainty"},
    "features": {"types", "io", "data", "graphs", "models", "csi", "interop", "training", "inference"},
    "runs": {"types", "io", "tools", "ops", "data", "graphs", "models", "csi", "training", "inference"},
    "ase": {"types", "data", "graphs", "models", "inference"},
    # Of `inference` and `training` only the identity of a checkpoint; `ase` where one labels.
    "labels": {"types", "units", "io", "tools", "data", "training", "inference", "ase"},
    "api": {"types", "data", "csi", "features", "inference", "ase"},
}
# What commands import: the library, and of their own folder what is no command.
COMMANDS = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
OURS = ("jaxatoms", "kernels", "experiments", "benchmarks", "scripts", "tests")
ACCELERATOR = ("jax", "jaxlib", "flax", "optax", "orbax", "e3nn_jax", "jraph")
FILES = sorted((ROOT / "jaxatoms").rglob("*.py"))


def _imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _package(path):
    return path.relative_to(ROOT / "jaxatoms").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_the_packages_below_it(path):
    package = _package(path)
    if package == "__init__":
        assert not any(name.split(".")[0] in OURS for name in _imports(path))
        return
    assert package in ALLOWED, f"add the package {package!r} to the table"
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top not in OURS:
            continue
        other = rest.split(".")[0] if top == "jaxatoms" else top
        assert other in ALLOWED[package] | {package, ""}, f"{package} must not import {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_import_nothing_of_ours(path):
    assert not any(n.split(".")[0] in OURS and not n.startswith("kernels") for n in _imports(path))


def _commands_in(path) -> set[str]:
    """Commands that a file imports."""
    found = [name.split(".") for name in _imports(path) if name.startswith("experiments.")]
    return {parts[1] for parts in found} & COMMANDS


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.py")), ids=lambda p: p.name)
def test_commands_do_not_import_each_other(path):
    assert not _commands_in(path)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: p.name)
def test_benchmarks_import_the_library_alone(path):
    assert not any(name.split(".")[0] == "experiments" for name in _imports(path))


_LIBRARY_TESTS = ["csi", "data", "features", "graphs", "inference", "interop", "labels", "models", "pickles", "runs",
                  "tools", "training", "uncertainty"]  # fmt: skip


@pytest.mark.parametrize("package", _LIBRARY_TESTS)
def test_tests_of_the_library_run_no_command(package):
    for path in (ROOT / "tests" / package).rglob("*.py"):
        assert not _commands_in(path), path


@pytest.mark.parametrize("package", ["types", "units", "io", "pickles", "graphs", "data"])
def test_packages_for_data_workers_do_not_mention_jax(package):
    files = [path for path in FILES if _package(path) == package]
    assert files
    for path in files:
        assert not any(name.split(".")[0] in ACCELERATOR for name in _imports(path)), path


@pytest.mark.parametrize("module", [
    "jaxatoms.data.loader", "jaxatoms.graphs.batch", "jaxatoms.data.store", "jaxatoms.training.checkpoint_files",
    "jaxatoms.csi.distances.registry",
    "experiments.tables", "experiments.reproduce", "experiments.study", "experiments.data", "experiments.label",
])  # fmt: skip
def test_importing_it_does_not_load_jax(module):
    code = f"import sys, {module}; assert 'jax' not in sys.modules, 'jax was loaded'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_kernels_are_those_of_this_repository():
    assert Path(kernels.__file__).is_relative_to(ROOT)

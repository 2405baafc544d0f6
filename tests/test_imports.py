"""Imports point one way, and the rooms that data workers use never load JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[1]
# What each room of `jaxatoms` may import of the others.
ALLOWED = {
    "types": set(),
    "units": set(),
    "ops": {"kernels"},
    "pickles": set(),
    "graphs": {"types"},
    "data": {"types", "units", "graphs", "pickles"},
    "models": {"types", "graphs", "ops"},
    "csi": {"types"},
    "training": {"types", "graphs"},
    "interop": {"types", "units", "graphs", "models", "pickles"},
    "inference": {"types", "data", "graphs", "models", "training"},
    "compiled": {"data", "graphs"},
    "ase": {"types", "data", "graphs", "models", "inference", "compiled"},
}
OURS = ("jaxatoms", "kernels", "experiments", "benchmarks", "tests")
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


def _room(path):
    return path.relative_to(ROOT / "jaxatoms").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path):
    room = _room(path)
    if room == "__init__":
        assert not any(name.split(".")[0] in OURS for name in _imports(path))
        return
    assert room in ALLOWED, f"add the room {room!r} to the table"
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top not in OURS:
            continue
        other = rest.split(".")[0] if top == "jaxatoms" else top
        assert other in ALLOWED[room] | {room, ""}, f"{room} must not import {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_import_nothing_of_ours(path):
    assert not any(n.split(".")[0] in OURS and not n.startswith("kernels") for n in _imports(path))


@pytest.mark.parametrize("room", ["types", "units", "pickles", "graphs", "data"])
def test_rooms_for_data_workers_do_not_mention_jax(room):
    files = [path for path in FILES if _room(path) == room]
    assert files
    for path in files:
        assert not any(name.split(".")[0] in ACCELERATOR for name in _imports(path)), path


@pytest.mark.parametrize("module", ["jaxatoms.data.loader", "jaxatoms.graphs.batch", "jaxatoms.data.store",
                                    "jaxatoms.csi.distances.registry"])  # fmt: skip
def test_importing_it_does_not_load_jax(module):
    code = f"import sys, {module}; assert 'jax' not in sys.modules, 'jax was loaded'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_kernels_are_those_of_this_repository():
    assert Path(kernels.__file__).is_relative_to(ROOT)

"""Only `jaxatoms.models` asks which backbone it has before it."""

import ast
from pathlib import Path

import pytest

from jaxatoms.models.registry import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {architecture.config.__name__ for architecture in ARCHITECTURES.values()}
FILES = [path for room in ("jaxatoms", "experiments", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))
         if "models" not in path.relative_to(ROOT).parts]  # fmt: skip


def _names(node) -> set[str]:
    found = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
    return {n.id if isinstance(n, ast.Name) else n.attr for n in found}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_room_asks_for_the_type_of_dimensions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "type"):
            assert not CONFIGS & _names(node), f"{path}:{node.lineno} asks for an architecture; give it a field instead"

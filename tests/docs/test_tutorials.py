"""The tutorials do what they say: their fenced blocks are run, in order, in one folder.

Commands run in this process, which has JAX loaded already; a `bash` block holds only commands of this package.
"""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a reader would stand: the small network, and the tiny file of JMP's layout as jmp-s.pt."""
    folder = tmp_path_factory.mktemp("tutorials")
    shutil.copy(FOLDER / "nano.json", folder)
    shutil.copy(ROOT / "tests" / "fixtures" / "torch" / "jmp.pt", folder / "jmp-s.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JAXATOMS_CACHE", str(folder / "cache"))
        yield folder


def run_bash(text: str):
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[:2] == ["python", "-m"] and words[2].startswith("experiments."), line
            assert importlib.import_module(words[2]).main(words[3:]) == 0, line


def test_there_are_tutorials():
    assert len(TUTORIALS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(place, path):
    names: dict = {"__name__": "__main__"}
    for language, text in BLOCK.findall(path.read_text()):
        if language == "bash":
            run_bash(text)
        else:
            assert language == "python", f"{path.name}: a block of {language} is not tested"
            exec(compile(text, path.name, "exec"), names)

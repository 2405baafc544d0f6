"""The tutorials do what they say: their fenced blocks are run, in order, in one folder."""

import shutil
from pathlib import Path

import pytest
from fixtures.documents import BLOCK, run_blocks

from scripts import make_notebooks

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.md"))


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


def test_there_are_tutorials():
    assert len(TUTORIALS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(place, path):
    languages = run_blocks(path.read_text(), path.name)
    assert languages and set(languages) <= {"bash", "python"}, f"{path.name} has a block that is not tested"
    drawn = [name for _, block in BLOCK.findall(path.read_text()) for name in make_notebooks.pictures(block)]
    assert all((place / name).is_file() for name in drawn), f"the notebook of {path.name} shows other pictures"

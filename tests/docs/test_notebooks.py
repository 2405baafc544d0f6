"""The notebooks of the tutorials: they hold what the pages hold, and a kernel runs them.

What is in the blocks is run by test_tutorials.py, so that only the quickest notebook is executed here.
"""

import sys
from pathlib import Path

import nbformat
import pytest
from fixtures.documents import BLOCK
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scripts import make_notebooks

PAGES = make_notebooks.tutorials()
QUICKEST = "2_pretrain_on_your_own_data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the notebooks, as `make notebooks` writes it."""
    out = tmp_path_factory.mktemp("notebooks")
    make_notebooks.write(out)
    return out


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Executes a notebook in a folder, apart from what a user has set up for Jupyter; the notebook gets its outputs."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JAXATOMS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(notebook, place: Path):
        resources = {"metadata": {"path": str(place)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()

    return run


def outputs(notebook) -> str:
    """Everything that the cells have printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def of_text(text: str, folder: Path, monkeypatch):
    """The notebook of a page that is not among the tutorials."""
    monkeypatch.setattr(make_notebooks, "ROOT", folder.resolve())
    page = folder / "page.md"
    page.write_text(text)
    return make_notebooks.notebook(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_notebook_holds_the_blocks_of_its_page_in_order(folder, page):
    notebook = nbformat.read(folder / f"{page.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    own = [cell for cell in notebook.cells if "added" not in cell.metadata.get("tags", [])]
    starts = {"bash": "%%bash -e\n", "python": ""}
    blocks = [starts[language] + block.rstrip() for language, block in BLOCK.findall(page.read_text())]
    assert [cell.source for cell in own if cell.cell_type == "code"] == blocks
    first, title = notebook.cells[0].source, own[0].source
    assert f"docs/tutorials/{page.name}" in first and "pip install" in first
    assert title.splitlines()[0] == page.read_text().splitlines()[0]
    assert not any("```" in cell.source for cell in notebook.cells)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_what_is_there(folder, page):
    notebook = nbformat.read(folder / f"{page.stem}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = make_notebooks.LINK.findall(text)
    assert targets and all((folder / target).is_file() for target in targets)
    assert not any("tutorials/" in target for target in targets)  # other tutorials are opened as notebooks


def test_making_them_again_changes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_notebooks.write(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()} and "nano.json" in before


def test_pictures_of_commands_are_shown(tmp_path, monkeypatch):
    pretrain = "python -m experiments.pretrain --lr 1 \\\n    --run-dir runs/a  # a comment"
    block = f"{pretrain}\njaxatoms csi --out b\nls --out c\n"
    notebook = of_text(f"Text.\n\n```bash\n{block}```\n\n```text\nnot a command\n```\n", tmp_path, monkeypatch)
    commands, shown, text = notebook.cells[3:]
    assert commands.source == f"%%bash -e\n{block}".rstrip()
    assert shown.source.splitlines()[2:] == ['display(Image("runs/a/curves.png"))', 'display(Image("b/csi.png"))']
    assert text.cell_type == "markdown" and "not a command" in text.source


def test_commands_use_the_python_of_the_kernel_and_a_failure_stops_the_notebook(tmp_path, monkeypatch, execute):
    lines = ["python -c 'import sys; print(sys.executable)'", "python -c 'raise SystemExit(3)'", "echo went on"]
    notebook = of_text("```bash\n" + "\n".join(lines) + "\n```\n", tmp_path, monkeypatch)
    with pytest.raises(CellExecutionError):
        execute(notebook, tmp_path)
    assert sys.executable in outputs(notebook) and "went on" not in outputs(notebook)


@pytest.mark.slow
def test_a_notebook_runs(folder, execute):
    notebook = nbformat.read(folder / f"{QUICKEST}.ipynb", as_version=4)
    execute(notebook, folder)
    assert "force MAE" in outputs(notebook)
    kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("image/png") == 1

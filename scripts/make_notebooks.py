"""The tutorials as Jupyter notebooks: one for every page of docs/tutorials, made from its text.

    python -m scripts.make_notebooks --out notebooks

Text becomes markdown cells, `python` blocks become code cells, and `bash` blocks become `%%bash -e` cells, which fail
as soon as a command fails. Three kinds of cells are added, with the tag `added`: where the notebook comes from, the
settings that its commands need, and the pictures that its commands have drawn.
"""

import argparse
import os
import re
import shlex
import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")  # the path of a relative link; addresses have a colon
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# What a command draws: the option that names its folder, and the pictures in there worth looking at.
PICTURES = {
    "pretrain": ("--run-dir", ["curves.png"]),
    "finetune": ("--run-dir", ["curves.png"]),
    "evaluate": ("--run", ["test_parity_last_ema.png"]),
    "csi": ("--out", ["csi.png"]),
}
ORIGIN = """\
*This notebook is made from the page `{page}` by `make notebooks`. Changes belong there: the notebook is written anew.*

It needs jaxatoms, which `pip install --editable .` installs from a copy of the sources ([Install]({install})), and
Jupyter in the same environment: `pip install jupyterlab`. Cells that begin with `%%bash -e` hold commands for a
terminal. Run the cells in order, in the folder of the notebook."""
SETTINGS = """\
import os, sys

# Commands are started with the Python of this notebook, and share a GPU with it.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")"""


def tutorials() -> list[Path]:
    """The pages that become notebooks, in reading order."""
    return sorted(FOLDER.glob("[0-9]*.md"))


def notebook(page: Path, out: Path) -> nbformat.NotebookNode:
    """The notebook of a page, to lie in the folder `out`: relative links to other pages are written from there."""
    install = os.path.relpath(ROOT / "docs" / "start" / "install.md", out)
    origin = ORIGIN.format(page=page.resolve().relative_to(ROOT).as_posix(), install=Path(install).as_posix())
    cells = [_added(new_markdown_cell(origin)), _added(new_code_cell(SETTINGS)), *_cells(page, out)]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # otherwise random: the same page gives the same file
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})


def pictures(block: str) -> list[str]:
    """Paths of what the commands of a `bash` block draw, in order; only of commands that name their folder."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        match words:
            case ["python", "-m", module, *_]:
                command = module.removeprefix("experiments.")
            case ["jaxatoms", command, *_]:
                pass
            case _:
                continue
        option, names = PICTURES.get(command, ("", []))
        if option in words:
            folder = words[words.index(option) + 1]
            found += [f"{folder}/{name}" for name in names]
    return found


def write(out: Path) -> list[Path]:
    """Write every notebook into the folder `out`, and beside them the files that the tutorials read."""
    out.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        shutil.copy(path, out)
    written = []
    for page in tutorials():
        written.append(out / f"{page.stem}.ipynb")
        nbformat.write(notebook(page, out), written[-1])
    return written


def _cells(page: Path, out: Path):
    """The cells of a page's own text and blocks, and pictures after the commands that draw them."""
    parts = iter(BLOCK.split(page.read_text(encoding="utf-8")))
    for text in parts:  # text, language, block, text, language, block, ..., text
        if text.strip():
            yield new_markdown_cell(LINK.sub(lambda found: _link(found[0], page, out), text.strip()))
        language, block = next(parts, ""), next(parts, "")
        if language == "python":
            yield new_code_cell(block.rstrip())
        elif language == "bash":
            yield new_code_cell(f"%%bash -e\n{block.rstrip()}")
            if drawn := pictures(block):
                shown = "\n".join(f'display(Image("{path}"))' for path in drawn)
                yield _added(new_code_cell(f"from IPython.display import Image, display\n\n{shown}"))


def _link(target: str, page: Path, out: Path) -> str:
    """A relative link of a page as it has to be in the notebook."""
    path = (page.parent / target).resolve()
    if path in tutorials():
        return f"{path.stem}.ipynb"
    if path.parent == FOLDER:  # copied
        return path.name
    return Path(os.path.relpath(path, out)).as_posix()


def _added(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    cell.metadata["tags"] = ["added"]
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks", help="folder for the notebooks")
    for path in write(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()

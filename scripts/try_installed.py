"""Tries an installed jaxatoms as a user would, in a folder of its own: the console command, the demo, Python.

Run by `make dist` with the interpreter of an environment that holds the wheel and nothing of the checkout.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("jaxatoms"))
SMALL = ["--upstream", "demo:organic", "--no-mixed", "--no-scratch", "--no-csi", "--n", "40", "--epochs", "1",
         "--finetune-steps", "10", "--n-train", "20", "--n-val", "10", "--test-samples", "20"]  # fmt: skip
PYTHON = """
import ase.build, jaxatoms
model = jaxatoms.load_model("study/finetune/aspirin/organic-s0")
print(model, model.predict(ase.build.molecule("CH3CH2OH"))[0].forces.shape)
"""


def main() -> None:
    """Each command must end well, and the package must not be the checkout's."""
    import jaxatoms

    installed = Path(jaxatoms.__file__).parents[1]
    assert installed.name == "site-packages", f"{installed} is not an installation"
    packages = {file.parts[0] for file in importlib.metadata.files("jaxatoms") or () if file.suffix == ".py"}
    assert packages == {"jaxatoms", "experiments", "kernels"}, f"the wheel installs {packages}"
    with tempfile.TemporaryDirectory() as folder:
        demo = ["demo", *SMALL, "--out", "study"]
        for words in (["--version"], ["--help"], ["data", "list"], ["pretrain", "--help"], demo):
            print("$ jaxatoms", *words, flush=True)
            subprocess.run([COMMAND, *words], cwd=folder, check=True)
        subprocess.run([sys.executable, "-c", PYTHON], cwd=folder, check=True)
    print("the installed package works")


if __name__ == "__main__":
    main()

"""The block of Python in docs/prediction.md does what the text says of it."""

import re
from pathlib import Path

import ase
import jraph
import numpy as np
import pytest
from fixtures import checkpoints
from fixtures.nano import NANO

from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "prediction.md"
SECTION = PAGE.read_text().split("## From jraph")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("from_jraph")
    checkpoints.write(folder / "runs" / "ani1x", GemNetOCConfig(**NANO), {"only": {"energy_std": 2.0}})
    return folder


def test_from_jraph(checkpoint, monkeypatch):
    """Energies and forces are those of the calculator, in the places of their graphs and nodes."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(checkpoint)
    names: dict = {}
    exec(compile(block, PAGE.name, "exec"), names)
    graph = names["graph"]
    calculator, node = JaxAtomsCalculator("runs/ani1x"), 0
    for i, part in enumerate(jraph.unbatch_np(jraph.unpad_with_graphs(graph))):
        atoms = ase.Atoms(part.nodes["atomic_numbers"], part.nodes["positions"], calculator=calculator)
        assert graph.globals["energy"][i] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(graph.nodes["forces"][node : node + len(atoms)], atoms.get_forces(), atol=1e-4)
        assert np.abs(atoms.get_forces()).max() > 1e-2
        node += len(atoms)
    assert node == 8 and graph.nodes["forces"].shape == (16, 3) and not graph.nodes["forces"][8:].any()
    assert graph.globals["energy"].shape == (4,) and not graph.globals["energy"][2:].any()

"""A backbone of sixty lines, registered here, does everything that the commands and the calculator do.

docs/how-to/backbone.md explains it line by line.
"""

import dataclasses
import json

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import csi, finetune, predict, pretrain
from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.models import registry
from jaxatoms.models.architecture import Architecture
from jaxatoms.models.common.indexing import edge_slots, sum_rows
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.reductions import reduce_atoms

# --- the backbone -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShellConfig:
    """Dimensions: Gaussians of the distances to the neighbours, per element of the sender."""

    width: int = 8
    num_elements: int = 90
    remat: bool = False


class Shells(nnx.Module):
    """Sums over neighbours of (embedding of the sender) x (Gaussians of the distance): invariant features."""

    def __init__(self, config, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (config.num_elements + 1, config.width)))
        self.width = config.width

    def __call__(self, batch, positions):
        graph = batch.main
        mask = edge_slots(graph.in_table, graph.receivers) < graph.in_table.size
        shift = jnp.einsum("ei,eij->ej", graph.shifts.astype(positions.dtype),
                           batch.cell[batch.node_graph[graph.receivers]], precision="highest")  # fmt: skip
        vector = positions[graph.receivers] - positions[graph.senders] + shift
        vector = jnp.where(mask[:, None], vector, 1.0)
        distance = jnp.linalg.norm(vector, axis=-1, keepdims=True)
        gaussians = jnp.exp(-((distance - jnp.linspace(0.5, 5.0, self.width)) ** 2))
        message = gaussians * self.table[...][batch.atomic_numbers[graph.senders]]
        message = jnp.where(mask[:, None], message, 0)
        node = sum_rows(message, graph.in_table, graph.receivers) + self.table[...][batch.atomic_numbers]
        return jnp.where(batch.node_mask[:, None], node, 0), message, vector / distance


class ShellModel(nnx.Module):
    """Energy and direct forces per task, or the one head of a fine-tuned model."""

    def __init__(self, config, rngs, reductions=None, head=None):
        self.backbone, self.reductions, self.head = Shells(config, rngs), reductions, head
        n = 1 if reductions is None else len(reductions)
        self.out_energy = nnx.Linear(config.width, n, rngs=rngs)
        self.out_forces = nnx.Linear(config.width, n, use_bias=False, rngs=rngs)

    @property
    def gradient_forces(self):
        return self.head is not None and self.head.kind == "gradient"

    def node_features(self, batch):
        return self.backbone(batch, batch.positions)[0]

    def energy(self, batch, positions):
        values = self.out_energy(self.backbone(batch, positions)[0])[:, 0]
        return reduce_atoms(values, batch, self.head.reduction)

    def __call__(self, batch, *, edge_dropout=0.0, key=None):
        node, message, direction = self.backbone(batch, batch.positions)
        per_edge = self.out_forces(message)[:, None] * direction[..., None]
        forces = sum_rows(per_edge.reshape(len(per_edge), -1), batch.main.in_table, batch.main.receivers)
        forces = forces.reshape(len(node), 3, -1)
        if self.head is None:
            values = self.out_energy(node)
            energy = [reduce_atoms(values[:, i], batch, r) for i, r in enumerate(self.reductions)]
            return ModelOutput(jnp.stack(energy, axis=-1), forces)
        if self.head.kind == "direct":
            return ModelOutput(None, forces[..., 0])
        if self.head.kind == "scalar":
            return ModelOutput(self.energy(batch, batch.positions), None)
        gradient = jax.grad(lambda p: self.energy(batch, p).sum())(batch.positions)
        return ModelOutput(self.energy(batch, batch.positions), -gradient)


SHELLS = Architecture(
    name="shells",
    config=ShellConfig,
    presets={"shells_tiny": ShellConfig()},
    graphs=NEAREST_GRAPH,
    build=lambda config, reductions, rngs, precision: ShellModel(config, rngs, reductions=reductions),
    build_finetuned=lambda config, head, rngs, precision: ShellModel(config, rngs, head=head),
    feature_width=lambda config: config.width,
    largest_atomic_number=lambda config: config.num_elements,
)

# --- what it does -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished pretraining run in `pretrained`, with the backbone registered while the tests run."""
    root = tmp_path_factory.mktemp("shells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXATOMS_CACHE", str(root / "cache"))
        patch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
        registry.register(SHELLS)
        done = pretrain.main(["--upstream", "demo:organic", "--model", "shells_tiny", "--n", "40", "--epochs", "2",
                              "--batch-size", "10", "--lr", "1e-2", "--val-samples", "20", "--quiet",
                              "--run-dir", str(root / "pretrained")])  # fmt: skip
        assert done == 0
        yield root


def test_pretraining_learns(folder):
    summary = json.loads((folder / "pretrained" / "summary.json").read_text())
    assert summary["finished"] and summary["validation"]["loss"] < summary["validation_before"]["loss"]
    resolved = json.loads((folder / "pretrained" / "resolved.json").read_text())
    assert resolved["model"]["architecture"] == "shells"


@pytest.mark.parametrize("forces", ["gradient", "direct"])
def test_fine_tuning_prediction_and_calculator(folder, forces):
    run = folder / forces
    assert finetune.main(["--downstream", "demo:aspirin", "--init", str(folder / "pretrained"), "--forces", forces,
                          "--max-steps", "4", "--n-train", "12", "--n-val", "4", "--test-samples", "4", "--quiet",
                          "--run-dir", str(run)]) == 0  # fmt: skip
    assert np.isfinite(json.loads((run / "test.json").read_text())["last_ema"]["mae"])
    atoms = ase.build.molecule("CH3CH2OH")
    ase.io.write(folder / "in.xyz", [atoms, atoms])
    out = folder / f"{forces}.extxyz"
    words = ["--checkpoint", str(run), "--structures", str(folder / "in.xyz"), "--out", str(out), "--quiet"]
    assert predict.main(words) == 0
    predicted = ase.io.read(out, ":")[1].get_forces()
    atoms.calc = JaxAtomsCalculator(str(run))
    np.testing.assert_allclose(atoms.get_forces(), predicted, atol=1e-5)


def test_the_chemical_similarity_index(folder):
    assert csi.main(["--upstream", "demo:organic", "demo:slab", "--downstream", "demo:aspirin", "--n", "40",
                     "--checkpoint", str(folder / "pretrained"), "--out", str(folder / "csi"),
                     "--quiet"]) == 0  # fmt: skip
    found = json.loads((folder / "csi" / "csi.json").read_text())
    assert found["extractor"].startswith("shells:") and len(found["rows"]) == 2


def test_a_name_can_be_taken_once_only(folder):
    with pytest.raises(ValueError, match="shells_tiny is the name"):
        registry.register(dataclasses.replace(SHELLS, name="other"))

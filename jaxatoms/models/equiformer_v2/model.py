"""EquiformerV2 with its heads; normalised outputs, zero on padding.

`EquiformerV2Model` has an energy head and a direct force head per task (pretraining). For fine-tuning there are
`EquiformerV2Scalar` (one property) and `EquiformerV2Forces` (direct forces alone).
Source: specification 12 (heads), released code of arXiv 2306.12059 and of arXiv 2502.11085.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.equiformer_v2.attention import GraphAttention
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.edges import EdgeFrames
from jaxatoms.models.equiformer_v2.feed_forward import FeedForward
from jaxatoms.models.equiformer_v2.network import EquiformerV2, SphereFeatures
from jaxatoms.models.heads import reduce_atoms, squared_distances
from jaxatoms.models.model import ModelOutput
from jaxatoms.models.precision import Precision


class EnergyHead(nnx.Module):
    """A feed-forward network with one output; the energy of an atom is its l = 0 row."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision):
        self.energy_block = FeedForward(config, 1, rngs, precision, hidden=config.energy_hidden)

    def __call__(self, node: jax.Array) -> jax.Array:
        """[n_node, K, c] -> [n_node]."""
        return self.energy_block(node)[:, 0, 0]


class ForceHead(nnx.Module):
    """An attention layer with one output; the force is its l = 1 rows, which are (x, y, z)."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision):
        self.force_block = GraphAttention(config, 1, rngs, precision, hidden=config.force_hidden)

    def __call__(self, node: jax.Array, edges: EdgeFrames, observe=None) -> jax.Array:
        """[n_node, K, c] -> [n_node, 3]."""
        return self.force_block(node, edges, observe=observe)[:, 1:4, 0]


class Heads(nnx.Module):
    """An energy head and a force head for every task."""

    def __init__(self, config: EquiformerV2Config, n_task: int, rngs, precision: Precision):
        self.out_energy = nnx.List([EnergyHead(config, rngs, precision) for _ in range(n_task)])
        self.out_forces = nnx.List([ForceHead(config, rngs, precision) for _ in range(n_task)])

    def __call__(self, features: SphereFeatures, batch: GraphBatch, reductions: tuple[str, ...]) -> ModelOutput:
        pairs = zip(self.out_energy, reductions, strict=True)
        energy = [reduce_atoms(head(features.node), batch, reduction) for head, reduction in pairs]
        forces = [head(features.node, features.edges) for head in self.out_forces]
        forces = [jnp.where(batch.node_mask[:, None], f, 0) for f in forces]
        return ModelOutput(jnp.stack(energy, axis=-1), jnp.stack(forces, axis=-1))


class WithBackbone(nnx.Module):
    """What every EquiformerV2 has: `backbone`, and the features that its heads read."""

    backbone: EquiformerV2

    def node_features(self, batch: GraphBatch) -> jax.Array:
        """[n_node, (lmax+1)**2 * channels] flattened node embedding, the feature of the Chemical Similarity Index.

        Column (l*l + l + m) * channels + c; zero for padding. Only the first `channels` columns are invariant.
        """
        node = self.backbone(batch).node
        return node.reshape(len(node), -1)


class EquiformerV2Model(WithBackbone):
    """Energies [n_graph, T] and direct forces [n_node, 3, T] of T tasks; every head sees every structure.

    Args:
      reductions: per task "sum" or "mean" of the atoms' energies. The released OC20 model divides the sum by
        `avg_num_nodes`; converted checkpoints fold that into the task's energy unit.
    """

    def __init__(self, config: EquiformerV2Config, reductions: tuple[str, ...], rngs, precision=Precision()):
        self.backbone = EquiformerV2(config, rngs, precision)
        self.output = Heads(config, len(reductions), rngs, precision)
        self.reductions = reductions

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        """`edge_dropout` is ignored: nothing here is rescaled for lost edges. `key` switches dropout on."""
        del edge_dropout
        return self.output(self.backbone(batch, key=key), batch, self.reductions)


class EquiformerV2Scalar(WithBackbone):
    """One property per structure: `ModelOutput.energy` is [n_graph]; no forces.

    Args:
      reduction: "sum", "mean" or "max" of the atoms' outputs, or "extent", as in `models.model.ScalarModel`.
    """

    def __init__(self, config: EquiformerV2Config, reduction: str, rngs, precision: Precision = Precision()):
        if reduction not in ("sum", "mean", "max", "extent"):
            raise ValueError(f"reduction must be sum, mean, max or extent, got {reduction!r}")
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_energy = EnergyHead(config, rngs, precision)
        self.reduction = reduction

    def __call__(self, batch: GraphBatch, *, dropout_key: jax.Array | None = None) -> ModelOutput:
        """`dropout_key` switches dropout and stochastic depth on."""
        values = self.out_energy(self.backbone(batch, key=dropout_key).node)
        if self.reduction == "extent":
            return ModelOutput(reduce_atoms(values * squared_distances(batch), batch, "sum"), None)
        return ModelOutput(reduce_atoms(values, batch, self.reduction), None)


class EquiformerV2Forces(WithBackbone):
    """Forces [n_node, 3] from an attention layer; no energy, so that nothing untrained is predicted."""

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision = Precision()):
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_forces = ForceHead(config, rngs, precision)

    def __call__(self, batch: GraphBatch, *, dropout_key: jax.Array | None = None) -> ModelOutput:
        """`dropout_key` switches dropout and stochastic depth on."""
        features = self.backbone(batch, key=dropout_key)
        forces = self.out_forces(features.node, features.edges)
        return ModelOutput(None, jnp.where(batch.node_mask[:, None], forces, 0))

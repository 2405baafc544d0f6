"""Whole EquiformerV2 models: backbone and heads; normalised outputs, zero on padding.

`EquiformerV2Model` has an energy head and a direct force head per task (pretraining). For fine-tuning there are
`EquiformerV2Scalar` (one property) and `EquiformerV2Forces` (direct forces, with or without an energy).
`key` switches dropout and stochastic depth on; `edge_dropout` is ignored, since nothing is rescaled for lost edges.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.output import ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import check_reduction, reduce_property
from jaxatoms.models.equiformer_v2.config import EquiformerV2Config
from jaxatoms.models.equiformer_v2.heads import EnergyHead, ForceHead, Heads
from jaxatoms.models.equiformer_v2.network import EquiformerV2


class WithBackbone(nnx.Module):
    """What every EquiformerV2 has: `backbone`, and the features that its heads read."""

    gradient_forces = False
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
        del edge_dropout
        return self.output(self.backbone(batch, key=key), batch, self.reductions)


class EquiformerV2Scalar(WithBackbone):
    """One property per structure: `ModelOutput.energy` is [n_graph]; no forces.

    Args:
      reduction: "sum", "mean" or "max" of the atoms' outputs, or "extent", as in GemNet-OC's `ScalarModel`.
    """

    def __init__(self, config: EquiformerV2Config, reduction: str, rngs, precision: Precision = Precision()):
        check_reduction(reduction)
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_energy = EnergyHead(config, rngs, precision)
        self.reduction = reduction

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        del edge_dropout
        values = self.out_energy(self.backbone(batch, key=key).node)
        return ModelOutput(reduce_property(values, batch, self.reduction), None)


class EquiformerV2Forces(WithBackbone):
    """Forces [n_node, 3] from an attention layer.

    Args:
      energy: also an energy [n_graph], the sum of a head over the atoms; without, nothing untrained is predicted.
    """

    def __init__(self, config: EquiformerV2Config, rngs, precision: Precision = Precision(), *, energy=False):
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_forces = ForceHead(config, rngs, precision)
        self.out_energy = EnergyHead(config, rngs, precision) if energy else None

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        del edge_dropout
        features = self.backbone(batch, key=key)
        forces = jnp.where(batch.node_mask[:, None], self.out_forces(features.node, features.edges), 0)
        if self.out_energy is None:
            return ModelOutput(None, forces)
        return ModelOutput(reduce_property(self.out_energy(features.node), batch, "sum"), forces)

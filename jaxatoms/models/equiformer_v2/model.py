"""Whole EquiformerV2 models: backbone and heads; normalised outputs, zero on padding.

`EquiformerV2Model` has an energy head and a direct force head per task (pretraining). For fine-tuning there are
`EquiformerV2Scalar` (one property) and `EquiformerV2Forces` (direct forces, with or without an energy).
`key` switches dropout and stochastic depth on; `edge_dropout` is ignored, since nothing is rescaled for lost edges.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.head_choice import make_heads, own_head
from jaxatoms.models.common.output import HeadSpec, ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import check_reduction, reduce_properties, reduce_property
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


class Finetuned(WithBackbone):
    """What the models of fine-tuning have besides: energy heads whose last layers are linear."""

    out_energy: nnx.Module | None
    reduction = "sum"  # of the atoms' energies

    def energy_features(self, batch: GraphBatch) -> jax.Array:
        """[n_graph, d] what the last layer of each structure's own energy head reads, combined over its atoms.

        The energy is this times the layer's weights and bias, with every reduction but "max"; zero for padding.
        """
        task, node = batch.task[batch.node_graph], self.backbone(batch).node
        values = own_head(self.out_energy, task, node, of=EnergyHead.last_features)
        return reduce_property(values, batch, self.reduction)


class EquiformerV2Scalar(Finetuned):
    """One property per structure: `ModelOutput.energy` is [n_graph]; no forces.

    Args:
      head: its `reduction` is "sum", "mean" or "max" of the atoms' outputs, or "extent", as in GemNet-OC.
    """

    def __init__(self, config: EquiformerV2Config, head: HeadSpec, rngs, precision: Precision = Precision()):
        check_reduction(head.reduction)
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_energy = make_heads(head, lambda: EnergyHead(config, rngs, precision))
        self.reduction = head.reduction

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        del edge_dropout
        values = own_head(self.out_energy, batch.task[batch.node_graph], self.backbone(batch, key=key).node)
        return ModelOutput(reduce_property(values, batch, self.reduction), None)


class EquiformerV2Properties(WithBackbone):
    """Several properties of structures [n_graph, P] and atoms [n_node, Q] from a head that they share.

    Args:
      head: its `outputs` say how each follows from the atoms' values.
    """

    def __init__(self, config: EquiformerV2Config, head: HeadSpec, rngs, precision: Precision = Precision()):
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_energy = make_heads(head, lambda: EnergyHead(config, rngs, precision, len(head.outputs)))
        self.outputs = head.outputs

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        del edge_dropout
        values = own_head(self.out_energy, batch.task[batch.node_graph], self.backbone(batch, key=key).node)
        values = values.reshape(len(values), len(self.outputs))
        return ModelOutput(None, None, None, *reduce_properties(values, batch, self.outputs))


class EquiformerV2Forces(Finetuned):
    """Forces [n_node, 3] from an attention layer.

    Args:
      head: with `energy` there is also an energy [n_graph], the sum of a head over the atoms; without, nothing
        untrained is predicted.
    """

    def __init__(self, config: EquiformerV2Config, head: HeadSpec, rngs, precision: Precision = Precision()):
        self.backbone = EquiformerV2(config, rngs, precision)
        self.out_forces = make_heads(head, lambda: ForceHead(config, rngs, precision))
        self.out_energy = make_heads(head, lambda: EnergyHead(config, rngs, precision)) if head.energy else None

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        del edge_dropout
        features, task = self.backbone(batch, key=key), batch.task[batch.node_graph]
        forces = own_head(self.out_forces, task, features.node, features.edges)
        forces = jnp.where(batch.node_mask[:, None], forces, 0)
        if self.out_energy is None:
            return ModelOutput(None, forces)
        return ModelOutput(reduce_property(own_head(self.out_energy, task, features.node), batch, "sum"), forces)

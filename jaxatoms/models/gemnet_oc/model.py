"""Whole GemNet-OC models: atom embedding, backbone and heads.

`MultiTaskModel` predicts an energy and direct forces per task (pretraining). For fine-tuning there are
`GradientModel` (an energy, forces as its negative gradient, stress), `DirectForceModel` (forces, with or without an
energy), `ScalarModel` (any one property) and `PropertiesModel` (several, of structures and of atoms). All return
normalised quantities, zero on padding; what a model lacks is None.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.models.common.head_choice import make_heads, own_head
from jaxatoms.models.common.output import HeadSpec, ModelOutput
from jaxatoms.models.common.precision import Precision
from jaxatoms.models.common.reductions import check_reduction, reduce_atoms, reduce_properties, reduce_property
from jaxatoms.models.common.strain import strained, stress_of
from jaxatoms.models.gemnet_oc.blocks import silent
from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.models.gemnet_oc.heads import NUM_EXTENT_LAYERS, HeadMLP, direct_forces
from jaxatoms.models.gemnet_oc.network import Features, GemNetOC


class Embedding(nnx.Module):
    """One vector per element; row Z - 1 of `kernel` [num_elements, n]."""

    def __init__(self, num_elements: int, n: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (num_elements, n), jnp.float32))

    def __call__(self, atomic_numbers: jax.Array) -> jax.Array:
        """[n_node] int32 (0 = padding, gives zeros) -> [n_node, n].

        A product with a one-hot matrix: its gradient is a matmul, where a lookup's would be a colliding scatter.
        """
        one_hot = jax.nn.one_hot(atomic_numbers - 1, self.kernel.shape[0], dtype=self.kernel.dtype)
        return jnp.matmul(one_hot, self.kernel[...], precision="highest")


class AtomEmbedding(nnx.Module):
    """The embedding one level deeper, as multi-task checkpoints name it."""

    def __init__(self, num_elements: int, n: int, rngs: nnx.Rngs):
        self.atom_embedding = Embedding(num_elements, n, rngs)

    def __call__(self, atomic_numbers: jax.Array) -> jax.Array:
        return self.atom_embedding(atomic_numbers)


class Output(nnx.Module):
    """An energy head and a direct force head for every task."""

    def __init__(self, config: GemNetOCConfig, n_task: int, rngs: nnx.Rngs, precision: Precision):
        def make(n):
            return nnx.List([HeadMLP(n, rngs, precision) for _ in range(n_task)])

        self.out_energy, self.out_forces = make(config.emb_size_atom), make(config.emb_size_edge)

    @jax.named_scope("heads")
    def __call__(self, features: Features, batch: GraphBatch, reductions: tuple[str, ...]) -> ModelOutput:
        energy = [reduce_atoms(h(features.node), batch, r) for h, r in zip(self.out_energy, reductions, strict=True)]
        forces = [direct_forces(h(features.edge), features.directions, batch) for h in self.out_forces]
        return ModelOutput(jnp.stack(energy, axis=-1), jnp.stack(forces, axis=-1))


class GemNetOCModel(nnx.Module):
    """What every model here has: an embedding and a backbone, whose features its heads read."""

    gradient_forces = False  # whether forces are the negative gradient of the energy
    embedding: nnx.Module
    backbone: GemNetOC

    def features(self, batch: GraphBatch, *, positions=None, edge_dropout: float = 0.0, observe=silent) -> Features:
        """Backbone features of a batch; arguments as of `GemNetOC`."""
        h = self.embedding(batch.atomic_numbers)
        return self.backbone(batch, h, positions=positions, edge_dropout=edge_dropout, observe=observe)

    def node_features(self, batch: GraphBatch) -> jax.Array:
        """[n_node, emb_size_atom], the feature of the Chemical Similarity Index; zero for padding."""
        return self.features(batch).node


class MultiTaskModel(GemNetOCModel):
    """Energies [n_graph, T] and direct forces [n_node, 3, T] of T tasks; every head sees every structure."""

    def __init__(self, config: GemNetOCConfig, reductions: tuple[str, ...], rngs, precision=Precision()):
        if not config.direct_forces:
            raise ValueError("MultiTaskModel has direct force heads; config.direct_forces must be True")
        self.embedding = AtomEmbedding(config.num_elements, config.emb_size_atom, rngs)
        self.backbone = GemNetOC(config, rngs, precision)
        self.output = Output(config, len(reductions), rngs, precision)
        self.reductions = reductions

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key=None, observe=silent) -> ModelOutput:
        """`edge_dropout`: the rate with which the graphs lost edges. `key` is not used: nothing here is random."""
        del key
        return self.output(self.features(batch, edge_dropout=edge_dropout, observe=observe), batch, self.reductions)


class FinetunedModel(GemNetOCModel):
    """What the models of fine-tuning have besides: energy heads whose last layers are linear."""

    out_energy: nnx.Module | None
    reduction = "sum"  # of the atoms' energies

    def energy_features(self, batch: GraphBatch) -> jax.Array:
        """[n_graph, emb_size_atom] what the last layer of each structure's own energy head reads, combined over its
        atoms.

        The energy is this times the layer's weights, with every reduction but "max"; zero for padding.
        """
        task, node = batch.task[batch.node_graph], self.features(batch).node
        return reduce_property(own_head(self.out_energy, task, node, of=HeadMLP.last_features), batch, self.reduction)


class ScalarModel(FinetunedModel):
    """One property per structure: `ModelOutput.energy` is [n_graph], or [n_graph, n_class] logits; no forces.

    Args:
      head: its `reduction` is "sum", "mean" or "max" of the atoms' outputs, or "extent": their sum weighted by the
        squared distance to the centre of mass (electronic spatial extent), by a head of six layers without biases;
        `n_class` is 0 for regression; `dropout` is of the features that the head reads, in training.

    Source: docs/reference/gemnet_oc.md, Fine-tuning heads.
    """

    def __init__(self, config: GemNetOCConfig, head: HeadSpec, rngs: nnx.Rngs, precision: Precision = Precision()):
        if config.direct_forces:
            raise ValueError("ScalarModel needs config.direct_forces=False: nothing would read the edge branch")
        check_reduction(head.reduction)
        self.embedding = Embedding(config.num_elements, config.emb_size_atom, rngs)
        self.backbone = GemNetOC(config, rngs, precision)
        extent = head.reduction == "extent"
        shape = dict(bias=False, n_layers=NUM_EXTENT_LAYERS) if extent else dict(n_out=max(head.n_class, 1))
        self.out_energy = make_heads(
            head, lambda: HeadMLP(config.emb_size_atom, rngs, precision, dropout=head.dropout, **shape)
        )
        self.reduction = head.reduction

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        """`key` switches dropout on."""
        features = self.features(batch, edge_dropout=edge_dropout).node
        values = own_head(self.out_energy, batch.task[batch.node_graph], features, key)
        return ModelOutput(reduce_property(values, batch, self.reduction), None)


class PropertiesModel(GemNetOCModel):
    """Several properties of structures and atoms, each from one output of a head that they share.

    `ModelOutput.properties` is [n_graph, P] and `atom_properties` [n_node, Q].

    Args:
      head: its `outputs` say how each follows from the atoms' values.
    """

    def __init__(self, config: GemNetOCConfig, head: HeadSpec, rngs: nnx.Rngs, precision: Precision = Precision()):
        self.embedding = Embedding(config.num_elements, config.emb_size_atom, rngs)
        self.backbone = GemNetOC(config, rngs, precision)
        n_out = len(head.outputs)
        self.out_energy = make_heads(head, lambda: HeadMLP(config.emb_size_atom, rngs, precision, n_out=n_out))
        self.outputs = head.outputs

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key: jax.Array | None = None) -> ModelOutput:
        """`key` is not used: nothing here is random."""
        del key
        features = self.features(batch, edge_dropout=edge_dropout).node
        values = own_head(self.out_energy, batch.task[batch.node_graph], features)
        values = values.reshape(len(values), len(self.outputs))
        return ModelOutput(None, None, None, *reduce_properties(values, batch, self.outputs))


class DirectForceModel(FinetunedModel):
    """Forces [n_node, 3] from a head on the edges.

    Args:
      head: with `energy` there is also an energy [n_graph], the sum of a head over the atoms; without, nothing
        untrained is predicted.
    """

    def __init__(self, config: GemNetOCConfig, head: HeadSpec, rngs: nnx.Rngs, precision: Precision = Precision()):
        if not config.direct_forces:
            raise ValueError("DirectForceModel reads the edge branch; config.direct_forces must be True")
        self.embedding = Embedding(config.num_elements, config.emb_size_atom, rngs)
        self.backbone = GemNetOC(config, rngs, precision)
        self.out_forces = make_heads(head, lambda: HeadMLP(config.emb_size_edge, rngs, precision))
        energy = lambda: HeadMLP(config.emb_size_atom, rngs, precision)  # noqa: E731
        self.out_energy = make_heads(head, energy) if head.energy else None

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key=None) -> ModelOutput:
        """`key` is not used: nothing here is random."""
        del key
        features, task = self.features(batch, edge_dropout=edge_dropout), batch.task[batch.node_graph]
        scalars = own_head(self.out_forces, task[batch.main.receivers], features.edge)
        forces = direct_forces(scalars, features.directions, batch)
        if self.out_energy is None:
            return ModelOutput(None, forces)
        return ModelOutput(reduce_atoms(own_head(self.out_energy, task, features.node), batch, "sum"), forces)


class GradientModel(FinetunedModel):
    """One energy [n_graph] (bias-free head, summed over atoms) and forces [n_node, 3] = -dE/dpositions.

    Args:
      head: with `stress` there is also the stress [n_graph, 3, 3] = dE/dstrain per volume, in the unit of the energy
        per A^3.
    """

    gradient_forces = True

    def __init__(
        self,
        config: GemNetOCConfig,
        rngs: nnx.Rngs,
        precision: Precision = Precision(),
        head: HeadSpec = HeadSpec(kind="gradient"),
    ):
        if config.direct_forces:
            raise ValueError("GradientModel needs config.direct_forces=False: nothing would read the edge branch")
        self.embedding = Embedding(config.num_elements, config.emb_size_atom, rngs)
        self.backbone = GemNetOC(config, rngs, precision)
        self.out_energy = make_heads(head, lambda bias=False: HeadMLP(config.emb_size_atom, rngs, precision, bias=bias))
        self.stress = head.stress

    def energy(self, batch: GraphBatch, positions: jax.Array, *, edge_dropout: float = 0.0, observe=silent):
        """[n_graph] at `positions` [n_node, 3] A."""
        features = self.features(batch, positions=positions, edge_dropout=edge_dropout, observe=observe)
        return reduce_atoms(own_head(self.out_energy, batch.task[batch.node_graph], features.node), batch, "sum")

    def __call__(self, batch: GraphBatch, *, edge_dropout: float = 0.0, key=None) -> ModelOutput:
        """`key` is not used: nothing here is random."""
        del key
        if self.stress:
            return self._with_stress(batch, edge_dropout)

        def total(positions):
            energy = self.energy(batch, positions, edge_dropout=edge_dropout)
            return jnp.sum(energy), energy

        gradient, energy = jax.grad(total, has_aux=True)(batch.positions)
        return ModelOutput(energy, -gradient)

    def _with_stress(self, batch: GraphBatch, edge_dropout: float) -> ModelOutput:
        def total(positions, strain):
            energy = self.energy(*strained(batch, positions, strain), edge_dropout=edge_dropout)
            return jnp.sum(energy), energy

        derivative = jax.grad(total, argnums=(0, 1), has_aux=True)
        (gradient, virial), energy = derivative(batch.positions, jnp.zeros_like(batch.cell))
        return ModelOutput(energy, -gradient, stress_of(virial, batch))

"""Terms on values per structure: energies and other scalars, and classes."""

import jax
import jax.numpy as jnp

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.training.losses.tasks import of_structures
from jaxatoms.training.losses.terms import Term


def absolute_error(scales: jax.Array | None = None) -> Term:
    """Mean over labelled structures of s |E - y|.

    Args:
      scales: [T] weight s of each task; None: 1.
    """

    def total(output, batch: GraphBatch) -> jax.Array:
        error = jnp.abs(of_structures(output.energy, batch) - batch.energy)
        error = error if scales is None else error * scales[batch.task]
        return jnp.sum(jnp.where(batch.energy_mask, error, 0))

    return Term("energy", total, lambda batch: jnp.sum(batch.energy_mask))


def cross_entropy(class_weights: tuple[float, ...]) -> Term:
    """Weighted cross entropy of logits [n_graph, n_class], summed over the step; classes lie in `batch.energy`."""

    def total(output, batch: GraphBatch) -> jax.Array:
        logits = output.energy
        label = jax.nn.one_hot(batch.energy.astype(jnp.int32), logits.shape[-1])
        per_graph = -jnp.sum(label * jax.nn.log_softmax(logits) * jnp.asarray(class_weights), axis=-1)
        return jnp.sum(jnp.where(batch.energy_mask, per_graph, 0))

    return Term("class", total, lambda batch: jnp.sum(batch.energy_mask), summed=True)

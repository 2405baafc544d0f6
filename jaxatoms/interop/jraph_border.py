"""Our padded batches as jraph graphs, for users of jraph's tools; nothing inside the library needs this."""

import jax.numpy as jnp
import jraph

from jaxatoms.graphs.batch import GraphBatch


def to_graphs_tuple(batch: GraphBatch) -> jraph.GraphsTuple:
    """The main graph of a batch as a `jraph.GraphsTuple`; the last graph holds all padding, as jraph expects.

    Nodes carry `atomic_numbers`, `positions` [n_node, 3] A and `forces`; edges `shifts`; globals `energy`, `cell`.
    Real graphs that are absent from a part-filled batch appear as graphs without nodes.
    """
    n_graph, n_nodes = batch.node_table.shape[0], batch.atomic_numbers.shape[0]
    n_node = jnp.sum(batch.node_table < n_nodes, axis=1)
    in_degree = jnp.sum(batch.main.in_table < len(batch.swap), axis=1)
    n_edge = jnp.zeros(n_graph, jnp.int32).at[batch.node_graph].add(in_degree)
    return jraph.GraphsTuple(
        nodes={"atomic_numbers": batch.atomic_numbers, "positions": batch.positions, "forces": batch.forces},
        edges={"shifts": batch.main.shifts},
        senders=batch.main.senders,
        receivers=batch.main.receivers,
        globals={"energy": batch.energy, "cell": batch.cell},
        n_node=n_node.at[-1].add(n_nodes - jnp.sum(n_node)),
        n_edge=n_edge.at[-1].add(len(batch.swap) - jnp.sum(n_edge)),
    )

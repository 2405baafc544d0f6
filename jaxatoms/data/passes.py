"""Every sample once, in full batches of one shape: how features, test errors and predictions are computed."""

from typing import NamedTuple

import numpy as np

from jaxatoms.data import loader, packing
from jaxatoms.data.corpus import Corpus, Samples
from jaxatoms.graphs.batch import BatchBudget, GraphBatch


class Pass(NamedTuple):
    """Batches of a fixed set of samples."""

    corpus: Corpus
    samples: Samples
    groups: list[np.ndarray]  # positions in `samples` of each batch
    budget: BatchBudget
    edge_dropout: float
    seed: int

    def batch(self, step: int) -> GraphBatch:
        """The padded batch of group `step`."""
        rng = np.random.default_rng([self.seed, 3, step])
        systems, graphs, targets = self.corpus.build(self.samples.at(self.groups[step]), rng, self.edge_dropout)
        return loader.collate_smallest(systems, graphs, targets, [self.budget])

    def batches(self):
        """All batches, built ahead by a thread."""
        return loader.prefetch(self.batch, range(len(self.groups)))


def plan_pass(
    corpus, samples: Samples, batch_edges: int, shapes: list[BatchBudget], edge_dropout: float = 0.0, seed: int = 0
) -> Pass:
    """Bins of about `batch_edges` main edges and the one budget that holds each, if possible one of `shapes`.

    No samples make no batch.
    """
    if not len(samples.record):
        smallest = packing.make_budget(dict.fromkeys(("n_graph", *packing.ADDITIVE, *packing.MAXIMA), 1))
        return Pass(corpus, samples, [], smallest, edge_dropout, seed)
    loader.largest_structure(corpus, samples)
    sizes = loader.measure(corpus, samples, 0.0, limit=None)
    capacity = int(max(sizes["n_main"].max(), batch_edges, 1))
    groups = packing.pack(sizes["n_main"], capacity)
    batches = packing.group_sizes(sizes, groups)
    need = packing.make_budget({name: values.max() for name, values in batches.items()} | {"n_main": capacity})
    return Pass(corpus, samples, groups, packing.shared_budget(need, shapes), edge_dropout, seed)

"""The batches of a training run: how many structures or edges each has, and the fixed sizes that they are padded to."""

from typing import Any

from jaxatoms.data import loader, packing, shards
from jaxatoms.data.corpus import Corpus, Samples
from jaxatoms.runs import fleet

Batches = loader.TrainBatches | shards.ShardedBatches


def make_batches(
    config: Any,
    corpus: Corpus,
    samples: Samples,
    devices: fleet.Fleet,
    *,
    epochs: int,
    batch_size: int,
    edge_dropout: float = 0.0,
    round_up: bool = False,
) -> Batches:
    """The batches of `epochs` passes, in parts where several devices or several batches make one update.

    Sizes are measured on a sample of the structures.

    Args:
      config: settings of the run, of which those of its batches and its devices are read.
      batch_size: structures of one batch, unless `config.batch_edges` fills batches up to a number of edges.
      edge_dropout: rate at which training loses edges.
      round_up: the last batch of an epoch is a short one, and not the first of the next.
    """
    sizes = loader.measure(corpus, samples, edge_dropout, config.seed)
    largest = loader.largest_structure(corpus, samples)
    args: dict = dict(corpus=corpus, samples=samples, epochs=epochs, seed=config.seed, edge_dropout=edge_dropout)
    batch_size *= config.accumulate
    capacity = None if config.batch_edges is None else config.batch_edges * config.accumulate
    per_epoch = -(-len(samples.record) // batch_size) if round_up else len(samples.record) / batch_size
    steps = max(1, int(per_epoch * epochs))
    shapes = config.batch_shapes or packing.shapes_worth_compiling(steps)
    parts: dict = dict(batch_edges=capacity, shapes=shapes, headroom=config.part_headroom,
                       accumulate=config.accumulate, alike=config.steps_per_call)  # fmt: skip
    if capacity is None:
        budgets = packing.fixed_budgets(sizes, batch_size, largest, steps, config.seed, shapes, config.steps_per_call)
        whole = loader.TrainBatches(budgets=budgets, batch_size=batch_size, round_up=round_up, **args)
        return devices.share(whole, sizes, shards.expected_edges(sizes, corpus.n_node(samples)), **parts)
    weights = loader.measure(corpus, samples, edge_dropout, config.seed, limit=None)["n_main"]
    budgets = packing.packed_budgets(sizes, capacity, largest, weights)
    return devices.share(loader.TrainBatches(budgets=budgets, weights=weights, **args), sizes, weights, **parts)


def samples_seen(batches: Batches, config: Any, batch_size: int, done: int) -> int:
    """Structures that the first `done` steps trained on, each as often as it came."""
    whole = batches.whole if isinstance(batches, shards.ShardedBatches) else batches
    if config.batch_edges is None and not whole.round_up:
        return done * batch_size * config.accumulate
    return sum(len(batches.indices(step)) for step in range(done))

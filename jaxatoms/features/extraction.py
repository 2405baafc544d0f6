"""Node features of a sample of a data set, streamed into moments: what the Chemical Similarity Index is made of."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

import jaxatoms
from jaxatoms.csi.aggregation import aggregate, check_aggregation
from jaxatoms.csi.features import FeatureSet, check_features, feature_arrays, feature_info, load_features
from jaxatoms.csi.moments import Moments, empty_moments, load_moments, to_host, update_part
from jaxatoms.csi.sampling import check_strategy, sample, sample_random
from jaxatoms.csi.uncertainty import block_moments
from jaxatoms.data.classes import structure_classes
from jaxatoms.data.corpus import Corpus, UpstreamTask, samples_of
from jaxatoms.data.downstream_task import PUBLISHED, open_downstream
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.passes import Pass, plan_pass
from jaxatoms.data.references import LinearReference, Normalization
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.store import Store
from jaxatoms.data.subset import parse_count
from jaxatoms.data.task_split import task_split
from jaxatoms.features.extractors import Extractor
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.inference import inputs
from jaxatoms.io import open_npz, save_npz
from jaxatoms.types import InputError

BATCH_EDGES, N_BLOCKS, N_STRUCTURES = 4096, 32, "10000"  # defaults of options
MIN_ATOMS = 4  # quadruplets need four; the reference skips smaller structures too
_RECORDS_PER_CHUNK = 16_384  # whose [n, 121] counts of elements are in memory together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Which structures, and what is made of their features."""

    dataset: str
    n: str = N_STRUCTURES  # structures; "all" takes the whole train split
    sampling: str = "random"
    seed: int = 0
    aggregation: str = "flat"  # flat (one row per atom), mean, sum or max (one row per structure)
    edge_dropout: float = 0.0  # the reference drops 0.1 of the upstream edges by accident
    n_blocks: int | None = None  # random groups of structures, for intervals; None: 32, fewer where a set is smaller
    clamp: bool = False  # take a smaller set whole instead of refusing it
    repeat: bool = False  # draw n from a smaller set too, some several times: the reference's balanced sampler

    def __post_init__(self):
        check_aggregation(self.aggregation)
        if self.repeat and self.sampling != "balanced":
            raise InputError(f"--repeat has no effect on --sampling {self.sampling}; leave it out")


class Sample(NamedTuple):
    """What an extraction reads: structures of a data set, and everything that its result is made from."""

    request: Request
    store: Store
    corpus: Corpus
    classes: np.ndarray  # [n_record] of the whole data set
    records: np.ndarray  # [n] chosen records, some of them several times where the sampler repeats
    n_blocks: int
    batch_edges: int
    info: dict[str, Any]  # counts
    made_from: inputs.Inputs


class Extracted(NamedTuple):
    """Features of one data set, as moments of blocks of whole structures."""

    info: dict[str, Any]  # how they were made: the fields of `Request`, extractor, counts, `made_from`
    blocks: Moments  # leading axis n_blocks
    features: FeatureSet | None = None  # every row, when kept


def sample_for(config, request: Request, extractor: Extractor) -> Sample:
    """`draw_sample` with the options that all commands share: batch_edges, data_root and cache_dir of `config`."""
    return draw_sample(request, extractor, config.batch_edges or BATCH_EDGES, config.data_root, config.cache_dir)


def extract_for(config, sample: Sample, extractor: Extractor, keep: bool, path: Path | None = None) -> Extracted:
    """`extract` with the option `quiet` of `config`, written to `path`."""
    data = extract(sample, extractor, keep, config.quiet)
    if path is not None:
        save_extracted(path, data)
    return data


def reusable(path: Path, sample: Sample, keep: bool, quiet: bool = False) -> Extracted | None:
    """What an earlier run left at `path`, if it was made from the inputs of `sample`."""
    info = feature_info(path)
    if not info:
        return None
    if others := inputs.changed(info.get("made_from"), sample.made_from):
        if not quiet:
            print(f"{path}: made anew, for it was made from other inputs ({', '.join(others)})")
        return None
    found = load_extracted(path)
    if keep and found.features is None:
        if not quiet:
            print(f"{path}: made anew, for it holds moments without their rows")
        return None
    if not quiet:
        print(f"{path}: made from the same inputs, used again")
    # Equal content may go by another name now.
    return found._replace(info=found.info | {"dataset": sample.request.dataset})


def draw_sample(
    request: Request, extractor: Extractor, batch_edges: int, data_root: str | None = None, cache_dir: str | None = None
) -> Sample:
    """Open a data set and choose structures of its train split.

    Args:
      batch_edges: edge slots of a batch, at most; less where the set is too small for so large blocks.

    Raises:
      InputError: unknown data set or strategy, too few structures.
    """
    spec, store = open_upstream(request.dataset, data_root, cache_dir, must_validate=False)
    corpus, train = opened(request.dataset, spec, store, extractor.graphs, extractor.graph_rules, data_root, cache_dir)
    classes, source = classes_of(spec, store)
    records, replaced = choose_records(store, train, classes[train], request, extractor.num_elements)
    n_blocks = _number_of_blocks(request, len(records))
    made_from = _options(request) | {
        "blocks": n_blocks,
        "batch_edges": batch_edges,
        "extractor": extractor.identity,
        "version": jaxatoms.__version__,
        "data": store.fingerprint,
        "train split": inputs.digest(train),
        "classes": f"{source} {inputs.digest(classes[train])}",
        "graph": graph_of(corpus),
    }
    n_distinct = len(np.unique(records))
    info = {
        "sampling": "all" if n_distinct == len(records) == len(train) - replaced else request.sampling,
        "n_structure": len(records),
        "n_distinct": n_distinct,
        "n_available": len(train),
        "n_atom": int(store.n_node[records].sum()),
        "n_replaced": replaced,
    }
    return Sample(request, store, corpus, classes, records, n_blocks, batch_edges, info, made_from)


def _options(request: Request) -> dict:
    """The fields of a request that enter the result: not the data set's name, for its content does."""
    fields = dataclasses.asdict(request)
    return {name: value for name, value in fields.items() if name not in ("dataset", "n_blocks", "clamp")}


def graph_of(corpus) -> list:
    """Cutoff (A) and rule of the neighbours of a corpus of one data set, and the kind of its graphs."""
    rule = corpus.tasks[0].graph
    return [rule.cutoff, rule.max_neighbors, rule.conditional, corpus.graphs.name]


def _number_of_blocks(request: Request, n_structure: int) -> int:
    if request.n_blocks is not None and request.n_blocks > n_structure:
        raise InputError(f"{request.dataset}: {n_structure} structures cannot fill {request.n_blocks} blocks; "
                         "lower --blocks")  # fmt: skip
    return min(request.n_blocks or N_BLOCKS, n_structure)


def extract(sample: Sample, extractor: Extractor, keep: bool, quiet: bool = False) -> Extracted:
    """Run the extractor over a sample of a data set.

    Args:
      keep: also return every feature row.

    Raises:
      InputError: features that are not finite.
    """
    request, samples = sample.request, samples_of(0, sample.records)
    stream = plan_pass(
        sample.corpus, samples, sample.batch_edges, extractor.shapes, request.edge_dropout, request.seed
    )
    blocks, rows = _stream(stream, extractor, sample, keep, quiet)
    info = dataclasses.asdict(request) | sample.info | {
        "n_blocks": sample.n_blocks,
        "extractor": extractor.identity,
        "fingerprint": sample.store.fingerprint,
        "made_from": sample.made_from,
    }
    return Extracted(info, blocks, _feature_set(rows, sample) if keep else None)


def classes_of(spec: DatasetSpec, store: Store) -> tuple[np.ndarray, str]:
    """([n] class of every record, where it comes from).

    The group of a record, with a warning, where the mapping file of an OC set is not at hand.
    """
    try:
        return structure_classes(spec, store), spec.mapping or "store"
    except InputError as error:
        warnings.warn(f"{error}; until then each system is a class of its own", stacklevel=2)
        codes, names = store.groups
        return np.array(names)[codes], "groups"


def choose_records(
    store: Store, train: np.ndarray, classes: np.ndarray, request: Request, num_elements: int
) -> tuple[np.ndarray, int]:
    """(record indices, how many were replaced): the sampler's choice; what the extractor cannot take is replaced.

    A set of at most n structures is taken whole, each structure once, whatever the strategy.

    Raises:
      InputError: more asked for than there are; nothing left that the extractor takes.
    """
    picked = train[_positions(classes, request)]
    good = _fits(store, picked, num_elements)
    if good.all():
        return picked, 0
    spare = np.random.RandomState(request.seed).permutation(np.setdiff1d(train, picked))
    spare = spare[_fits(store, spare, num_elements)][: int((~good).sum())]
    records = np.concatenate([picked[good], spare])
    if len(records) < 2:
        raise InputError(f"{request.dataset}: no structures with {MIN_ATOMS} atoms and elements up to {num_elements}")
    return records, int((~good).sum())


def _positions(classes: np.ndarray, request: Request) -> np.ndarray:
    """Places in the train split, whose classes these are."""
    count, available = parse_count(request.n), len(classes)
    check_strategy(request.sampling)
    n = available if count == "all" else int(count)
    if n > available and not (request.clamp or request.repeat):
        raise InputError(f"{request.dataset}: asked for {n} structures, its train split has {available}; use --n all")
    if count == "all" or (n >= available and not request.repeat):
        return sample_random(available, available, request.seed)
    return sample(request.sampling, classes, n, request.seed)


def _fits(store: Store, records: np.ndarray, num_elements: int) -> np.ndarray:
    """[n] bool: which of the records the extractor takes."""
    known = np.empty(len(records), bool)
    for first in range(0, len(records), _RECORDS_PER_CHUNK):
        chunk = slice(first, first + _RECORDS_PER_CHUNK)
        known[chunk] = ~store.element_counts(records[chunk])[:, num_elements + 1 :].any(axis=1)
    return known & (store.n_node[records] >= MIN_ATOMS)


def opened(
    name: str, spec: DatasetSpec, store: Store, graphs: GraphSpec, rules: Mapping, data_root=None, cache_dir=None
):
    """(corpus, train records): graphs and split of fine-tuning for downstream sets, else those of pretraining."""
    if spec.family in PUBLISHED:
        cutoff, max_neighbors = rules.get(spec.family, (None, None))
        task, split = open_downstream(name, data_root, cache_dir, cutoff=cutoff, max_neighbors=max_neighbors)
        return Corpus((task,), graphs), split.train
    return Corpus((_unlabelled(name, store, spec),), graphs), task_split(name, spec, store).train


def _unlabelled(name: str, store: Store, spec) -> UpstreamTask:
    everything = LinearReference(np.zeros(121), np.ones(121, bool))
    return UpstreamTask(name, store, everything, Normalization(1.0, 1.0), spec.cutoff, spec.max_neighbors)


def _stream(stream: Pass, extractor: Extractor, sample: Sample, keep: bool, quiet: bool):
    """(block moments, [(features, sample index)] when kept); nothing is fetched while the device works."""
    how, n_blocks = sample.request.aggregation, sample.n_blocks
    per_batch = -(-n_blocks // len(stream.groups))
    parts, rows = empty_moments(extractor.width, n_blocks), []
    title = f"features of {sample.request.dataset}"
    steps = track(stream.batches(), title, len(stream.groups), disable=quiet, transient=True)
    for step, batch in enumerate(steps):
        features = extractor.features(jax.device_put(batch))
        values, mask, graph = features, batch.node_mask, batch.node_graph
        if how != "flat":
            values, mask, graph = _aggregated(features, batch, how)
        for i in range(per_batch):  # where batches are fewer than blocks, each serves several
            parts = update_part(parts, (step * per_batch + i) % n_blocks, values, mask & (graph % per_batch == i))
        if keep:
            index = stream.groups[step][batch.node_graph[batch.node_mask]]
            rows.append((np.asarray(features)[batch.node_mask], index))
    return to_host(parts), rows


def _aggregated(features, batch: GraphBatch, how: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row per structure, padded to the number of graph slots, which are real, and their numbers."""
    real = batch.node_mask
    values, _ = aggregate(np.asarray(features)[real], batch.node_graph[real], how)
    out = np.zeros((len(batch.graph_mask), values.shape[1]), values.dtype)
    out[: len(values)] = values
    return out, batch.graph_mask, np.arange(len(out))


def _feature_set(rows: list, sample: Sample) -> FeatureSet:
    """All rows in the order of the sample; rows carry the record of the data set."""
    features, index = (np.concatenate(part) for part in zip(*rows, strict=True))
    order = np.argsort(index, kind="stable")
    elements = sample.store.take(sample.records).atomic_numbers
    draw, records = index[order], sample.records[index[order]]
    repeats = sample.info["n_distinct"] < len(sample.records)
    optional = sample.classes[records], elements, sample.request.dataset, draw if repeats else None
    return check_features(FeatureSet(features[order], records, *optional))


def save_extracted(path: Path, data: Extracted) -> None:
    """One .npz: block moments, how they were made, and the feature rows where kept; whole or not at all."""
    arrays = {**data.blocks._asdict(), "info": np.array(json.dumps(data.info))}
    if data.features is not None:
        arrays |= feature_arrays(data.features)
    save_npz(path, arrays)


def load_extracted(
    path: Path, aggregation: str | None = None, n_blocks: int | None = None, seed: int | None = None
) -> Extracted:
    """What `save_extracted` wrote, or anybody's `features.npz` (see `jaxatoms.csi.features`).

    Args:
      aggregation, n_blocks, seed: of the blocks; None: as the file has them, or flat, at most 32, and 0. Others than
        the file's are made from its rows.

    Raises:
      InputError: neither, or a file without rows whose blocks were made in another way.
    """
    with open_npz(path, "is not a features file", "write it with experiments.extract") as archive:
        info = json.loads(str(archive["info"])) if "info" in archive else None
        has_features = "features" in archive
    features = load_features(path) if has_features or info is None else None
    if info is None:
        given = {"dataset": path.stem, "extractor": None, "sampling": "given", "seed": None}
        return grouped(given, features, aggregation or "flat", n_blocks, seed or 0)
    found = Extracted(info, load_moments(path), features)
    wanted = {"aggregation": aggregation, "n_blocks": n_blocks, "seed": seed}
    has = info | {"n_blocks": len(found.blocks.count)}
    other = [name for name, value in wanted.items() if value is not None and value != has[name]]
    if not other or (features is None and other == ["seed"]):  # a sample of another seed is not in the file
        return found
    if features is None:
        options = {"aggregation": "--aggregation", "n_blocks": "--blocks"}
        name = next(name for name in other if name in options)
        raise InputError(f"{path} holds moments made with {options[name]} {has[name]}, not {wanted[name]}, and "
                         "no rows to make them from; extract it with --store, which keeps the rows")  # fmt: skip
    has |= {name: value for name, value in wanted.items() if value is not None}
    return grouped(info, features, has["aggregation"], has["n_blocks"], has["seed"])


def grouped(info: dict, features: FeatureSet | None, how: str, n_blocks: int | None, seed: int) -> Extracted:
    """Moments of rows in memory, in random blocks of whole structures."""
    assert features is not None
    rows, structure = aggregate(features.features, features.draws, how)
    n_structure = len(np.unique(structure))
    try:
        blocks = block_moments(rows, structure, n_blocks or min(N_BLOCKS, n_structure), seed)
    except InputError as error:
        raise InputError(f"{features.name}: {error}") from None
    counts = {"n_structure": n_structure, "n_atom": len(features.features), "n_blocks": len(blocks.count)}
    return Extracted(info | counts | {"aggregation": how}, blocks, features)

"""Node features of a sample of a data set, streamed into moments: what the Chemical Similarity Index is made of."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from experiments.extractors import Extractor
from experiments.passes import Pass, plan_pass
from experiments.recipes import extraction_graph
from jaxatoms.csi.aggregation import aggregate
from jaxatoms.csi.features import FeatureSet, check_features, load_features
from jaxatoms.csi.moments import Moments, empty_moments, load_moments, to_host, update_part
from jaxatoms.csi.sampling import sample
from jaxatoms.csi.uncertainty import block_moments
from jaxatoms.data.classes import structure_classes
from jaxatoms.data.corpus import Corpus, Task, samples_of
from jaxatoms.data.downstream_corpus import PUBLISHED, open_downstream
from jaxatoms.data.joined import open_upstream
from jaxatoms.data.references import LinearReference, Normalization
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.splits import make_split
from jaxatoms.data.store import Store
from jaxatoms.data.subset import parse_count
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.types import InputError

MIN_ATOMS = 4  # quadruplets need four; the reference skips smaller structures too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Which structures, and what is made of their features."""

    dataset: str
    n: str = "10000"  # structures; "all" takes the whole train split
    sampling: str = "random"
    seed: int = 0
    aggregation: str = "flat"  # flat (one row per atom), mean, sum or max (one row per structure)
    edge_dropout: float = 0.0  # the reference drops 0.1 of the upstream edges by accident
    n_blocks: int = 32  # random groups of structures, for intervals
    clamp: bool = False  # take a smaller set whole instead of refusing it


class Extracted(NamedTuple):
    """Features of one data set, as moments of blocks of whole structures."""

    info: dict[str, Any]  # how they were made: the fields of `Request`, extractor, counts
    blocks: Moments  # leading axis n_blocks
    features: FeatureSet | None = None  # every row, when kept


def extract_for(config, request: Request, extractor: Extractor, keep: bool) -> Extracted:
    """`extract` with the options that all commands share: batch_edges, data_root, cache_dir, quiet of `config`."""
    shared = {name: getattr(config, name) for name in ("batch_edges", "data_root", "cache_dir", "quiet")}
    return extract(request, extractor, keep=keep, **shared)


def extract(
    request: Request,
    extractor: Extractor,
    *,
    keep: bool,
    batch_edges: int,
    data_root: str | None = None,
    cache_dir: str | None = None,
    quiet: bool = False,
) -> Extracted:
    """Run the extractor over a sample of the train split.

    Args:
      keep: also return every feature row.
      batch_edges: edge slots of a batch, at most; less where the set is too small for so large blocks.

    Raises:
      InputError: unknown data set or strategy, too few structures, features that are not finite.
    """
    spec, store = open_upstream(request.dataset, data_root, cache_dir, must_validate=False)
    corpus, train = opened(request.dataset, spec, store, extractor.nearest, data_root, cache_dir)
    classes = classes_of(spec, store)
    records, replaced = choose_records(store, train, classes[train], request, extractor.num_elements)
    samples = samples_of(0, records)
    stream = plan_pass(corpus, samples, batch_edges, extractor.shapes, request.edge_dropout, request.seed)
    blocks, rows = _stream(stream, extractor, request, keep, quiet)
    info = dataclasses.asdict(request) | {
        "extractor": extractor.identity,
        "fingerprint": store.fingerprint,
        "n_structure": len(records),
        "n_available": len(train),
        "n_atom": int(store.n_node[records].sum()),
        "n_replaced": replaced,
    }
    features = _feature_set(rows, store, records, classes[records], request) if keep else None
    return Extracted(info, blocks, features)


def classes_of(spec: DatasetSpec, store: Store) -> np.ndarray:
    """[n] class of every record; its group, with a warning, where the mapping file of an OC set is not at hand."""
    try:
        return structure_classes(spec, store)
    except InputError as error:
        warnings.warn(f"{error}; until then each system is a class of its own", stacklevel=2)
        codes, names = store.groups
        return np.array(names)[codes]


def choose_records(
    store: Store, train: np.ndarray, classes: np.ndarray, request: Request, num_elements: int
) -> tuple[np.ndarray, int]:
    """(record indices, how many were replaced): the sampler's choice; what the extractor cannot take is replaced.

    Raises:
      InputError: more asked for than there are; nothing left that the extractor takes.
    """
    n = parse_count(request.n)
    if n != "all" and n > len(train) and not request.clamp:
        raise InputError(f"{request.dataset}: asked for {n} structures, its train split has {len(train)}; use --n all")
    n = len(train) if n == "all" else min(n, len(train))
    picked = train[sample(request.sampling, classes, n, request.seed)]
    good = _fits(store, picked, num_elements)
    if good.all():
        return picked, 0
    spare = np.random.RandomState(request.seed).permutation(np.setdiff1d(train, picked))
    spare = spare[_fits(store, spare, num_elements)][: int((~good).sum())]
    records = np.concatenate([picked[good], spare])
    if len(records) < 2:
        raise InputError(f"{request.dataset}: no structures with {MIN_ATOMS} atoms and elements up to {num_elements}")
    return records, int((~good).sum())


def _fits(store: Store, records: np.ndarray, num_elements: int) -> np.ndarray:
    known = ~store.element_counts(records)[:, num_elements + 1 :].any(axis=1)
    return known & (store.n_node[records] >= MIN_ATOMS)


def opened(name: str, spec: DatasetSpec, store: Store, nearest: bool, data_root=None, cache_dir=None):
    """(corpus, train records): graphs and split of fine-tuning for downstream sets, else those of pretraining."""
    if spec.family in PUBLISHED:
        graph = extraction_graph(name, nearest)
        limits = dict(cutoff=graph and graph.cutoff, max_neighbors=graph and graph.max_neighbors)
        corpus, split = open_downstream(name, data_root, cache_dir, **limits)
        return dataclasses.replace(corpus, nearest=nearest), split.train
    train = make_split(store, spec.split_rule, seed=0, held_out=spec.held_out).train
    return Corpus((_unlabelled(name, store, spec),), nearest), train


def _unlabelled(name: str, store: Store, spec) -> Task:
    everything = LinearReference(np.zeros(121), np.ones(121, bool))
    return Task(name, store, everything, Normalization(1.0, 1.0), spec.cutoff, spec.max_neighbors)


def _stream(stream: Pass, extractor: Extractor, request: Request, keep: bool, quiet: bool):
    """(block moments, [(features, sample index)] when kept); nothing is fetched while the device works."""
    n_blocks = min(request.n_blocks, len(stream.samples.record))
    per_batch = -(-n_blocks // len(stream.groups))
    parts, rows = empty_moments(extractor.width, n_blocks), []
    steps = track(stream.batches(), f"features of {request.dataset}", len(stream.groups), disable=quiet, transient=True)
    for step, batch in enumerate(steps):
        features = extractor.features(jax.device_put(batch))
        values, mask, graph = features, batch.node_mask, batch.node_graph
        if request.aggregation != "flat":
            values, mask, graph = _aggregated(features, batch, request.aggregation)
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


def _feature_set(
    rows: list, store: Store, records: np.ndarray, per_structure: np.ndarray, request: Request
) -> FeatureSet:
    features, index = (np.concatenate(part) for part in zip(*rows, strict=True))
    order = np.argsort(index, kind="stable")
    elements = store.take(records).atomic_numbers
    ids = records[index[order]]  # rows carry the record of the data set
    return check_features(FeatureSet(features[order], ids, per_structure[index[order]], elements, request.dataset))


def save_extracted(path: Path, data: Extracted) -> None:
    """One .npz: block moments, how they were made, and the feature rows where kept; whole or not at all."""
    arrays = {**data.blocks._asdict(), "info": np.array(json.dumps(data.info))}
    if data.features is not None:
        f = data.features
        arrays |= {"features": f.features, "structure": f.structure, "class": f.classes, "element": f.element}
    draft = path.with_name(f".{path.stem}.tmp.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(draft, **arrays)
        draft.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def load_extracted(path: Path, n_blocks: int = 32, seed: int = 0) -> Extracted:
    """What `save_extracted` wrote, or anybody's `features.npz` (see `jaxatoms.csi.features`).

    Raises:
      InputError: neither.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            info = json.loads(str(archive["info"])) if "info" in archive else None
            has_features = "features" in archive
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a features file ({error}); write it with experiments.extract") from None
    features = load_features(path) if has_features or info is None else None
    if info is not None:
        return Extracted(info, load_moments(path), features)
    assert features is not None
    n_structure = len(np.unique(features.structure))
    blocks = block_moments(features.features, features.structure, min(n_blocks, n_structure), seed)
    info = {"dataset": path.stem, "extractor": None, "sampling": "given", "seed": seed, "aggregation": "flat",
            "n_structure": n_structure, "n_atom": len(features.features)}
    return Extracted(info, blocks, features)


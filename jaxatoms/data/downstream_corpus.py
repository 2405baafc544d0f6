"""Structures of one downstream data set -> graphs and normalised targets, as `loader` wants them.

The counterpart of `corpus.Corpus`: one data set, published constants, graphs by the fine-tuning rules.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxatoms.data.corpus import Samples
from jaxatoms.data.downstream import PUBLISHED, ForceData, Graph, ScalarData, downstream
from jaxatoms.data.labels import label_hint
from jaxatoms.data.references import LinearReference, labels_in
from jaxatoms.data.registry import find_spec
from jaxatoms.data.splits import Split
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.data.task_split import task_split
from jaxatoms.graphs.batch import Targets
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS
from jaxatoms.graphs.spec import GraphSpec
from jaxatoms.types import Graphs, InputError, SystemBatch, naming

_SAMPLE = 20_000  # structures for standard deviations of unpublished sets


@dataclasses.dataclass(frozen=True)
class DownstreamCorpus:
    """A data set ready to be trained on; `build` is a drop-in for that of `Corpus`."""

    facts: ForceData | ScalarData
    store: Store
    mean: float  # of the target: energies, or the scalar after its references
    std: float
    graphs: GraphSpec = GEMNET_GRAPHS  # of the backbone

    def n_node(self, samples: Samples) -> np.ndarray:
        """[n] atoms of each sample."""
        return self.store.n_node[samples.record].astype(np.int64)

    def build(self, samples: Samples, rng=None, edge_dropout: float = 0.0) -> tuple[SystemBatch, Graphs, Targets]:
        """Structures, graphs and targets of some samples, in their order.

        Raises:
          InputError: a structure that no model takes, by file and record.
        """
        systems = self.store.take(samples.record)
        targets = self._targets(systems, samples.record)
        with naming(lambda i: self.place(samples, i)):
            rule = self.facts.graph
            neighbors = rule.neighbors(systems.n_node)
            graphs = self.graphs.build_batch(systems, rule.cutoff, neighbors, rng, edge_dropout)
        return systems, graphs, targets

    def cells(self, samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cell [n, 3, 3] A, periodicity [n, 3] and cutoff [n] A of each sample."""
        cell, pbc = (self.store.column(name)[samples.record] for name in ("cell", "pbc"))
        return cell, pbc, np.full(len(cell), self.facts.graph.cutoff)

    def place(self, samples: Samples, i: int) -> str:
        """File and number of the i-th sample."""
        return self.store.where(int(samples.record[i]))

    def _targets(self, systems: SystemBatch, records: np.ndarray) -> Targets:
        n = len(records)
        task = np.zeros(n, np.int32)
        if isinstance(self.facts, ForceData):
            energy = (systems.energy - self.mean) / self.std  # float64: totals reach -1e5 eV
            forces = (systems.forces - np.float32(self.facts.force_mean)) / np.float32(self.facts.force_std)
            return Targets(energy.astype(np.float32), forces.astype(np.float32), task)
        values = np.asarray(self.store.column(self.facts.column)[records], np.float64)
        if not self.facts.n_class:
            values = values - self.facts.reference(systems.atomic_numbers, systems.n_node)
            values = (values - self.mean) / self.std
        none = np.full((len(systems.positions), 3), np.nan, np.float32)
        return Targets(values.astype(np.float32), none, task)


def constants_record(corpus: DownstreamCorpus) -> dict:
    """The numbers that targets are normalised by, as JSON values; `with_constants` puts them back."""
    facts = corpus.facts
    if isinstance(facts, ForceData):
        own = {name: getattr(facts, name) for name in ("energy_mean", "energy_std", "force_mean", "force_std")}
    else:
        own = {"references": {str(z): value for z, value in facts.references.items()}}
    return {"mean": corpus.mean, "std": corpus.std, **own}


def with_constants(corpus: DownstreamCorpus, record: dict) -> DownstreamCorpus:
    """The corpus normalised by the numbers of a `constants_record`, whatever its data would give now."""
    own = {name: value for name, value in record.items() if name not in ("mean", "std")}
    if "references" in own:
        own["references"] = {int(z): value for z, value in own["references"].items()}
    facts = dataclasses.replace(corpus.facts, **own)
    return dataclasses.replace(corpus, facts=facts, mean=record["mean"], std=record["std"])


def open_downstream(
    name: str,
    data_root: str | None = None,
    cache_dir: str | None = None,
    *,
    target: str | None = None,
    rule: str = "auto",
    sizes: tuple[int, int] | None = None,
    cutoff: float | None = None,
    max_neighbors: int | None = None,
    split: Callable[[Store], Split] | None = None,
) -> tuple[DownstreamCorpus, Split]:
    """A downstream data set and its split.

    Published sets bring their constants; any other one (demo:aspirin, file:PATH) gets those of its train split. It
    learns forces by gradient, or `target`; without `target` what the data set is about, else forces, else energies.

    Args:
      target: "forces", "energy", or a scalar by the name of its column, with or without `target_` before it.
      rule, sizes: of the split, see `task_split.task_split`.
      split: gives the split of the store instead, such as one that was saved.

    Raises:
      InputError: unknown data set, missing target, a part of the split without labels, or a split larger than the data.
    """
    published = family_of(name) in PUBLISHED
    if published and target is not None:
        raise InputError(f"{name} names its own target; leave --target {target} out")
    spec, store = open_dataset(name, data_root, cache_dir)
    parts = task_split(name, spec, store, rule, sizes) if split is None else split(store)
    facts = downstream(name) if published else _own_facts(name, store, parts.train, spec, target)
    _check_labels(name, facts, store, parts)
    if cutoff or max_neighbors:
        graph = Graph(cutoff or facts.graph.cutoff, max_neighbors or facts.graph.max_neighbors, facts.graph.conditional)
        facts = dataclasses.replace(facts, graph=graph)
    return DownstreamCorpus(facts, store, *_constants(facts, store, parts.train)), parts


def _own_facts(name: str, store: Store, train: np.ndarray, spec, target: str | None) -> ForceData | ScalarData:
    """Facts of a set that nobody published constants for."""
    column, graph = _own_target(name, store, train, spec, target), Graph(spec.cutoff, spec.max_neighbors)
    if column == "energy":
        reference = LinearReference.fit(store, train)
        own = {int(z): float(reference.coeff[z]) for z in np.flatnonzero(reference.seen)}
        return ScalarData(name=name, column=column, graph=graph, unit="eV", reduction="sum", references=own,
                          table_unit="meV", table_scale=1000.0)  # fmt: skip
    if column != "forces":
        return ScalarData(name=name, column=column, graph=graph, unit="", reduction="mean")
    forces = store.take(_some(train)).forces
    forces = forces[np.isfinite(forces).all(axis=1)]
    if len(forces) == 0 or not forces.std() > 0:
        raise InputError(f"{name} has no forces to train on; {label_hint(store) or 'name a scalar with --target'}")
    energy = store.energy[train]
    energy = energy[np.isfinite(energy)]  # forces alone are enough
    return ForceData(
        name=name,
        graph=graph,
        energy_mean=float(energy.mean()) if len(energy) else 0.0,
        energy_std=(float(energy.std()) if len(energy) else 0.0) or 1.0,
        force_std=float(forces.std()),
    )


def _own_target(name: str, store: Store, train: np.ndarray, spec, target: str | None) -> str:
    """"forces", "energy" or a column."""
    scalars = [column for column in store.extra_columns if column.startswith("target_")]
    if target is None and spec.target:
        return spec.target
    if target is None:
        has_energy, has_forces = labels_in(store, train)
        if has_forces or not (has_energy or scalars):
            return "forces"
        if not has_energy and len(scalars) > 1:
            listed = ", ".join(column.removeprefix("target_") for column in scalars)
            raise InputError(f"{name} has no energies or forces, but the scalars {listed}; choose one with --target")
        return "energy" if has_energy else scalars[0]
    for column in (target, f"target_{target}"):
        if column in ("forces", "energy", *scalars):
            return column
    listed = ", ".join(scalars) or "energies and forces only"
    raise InputError(f"{name} has no column '{target}'; it has {listed}")


def _check_labels(name: str, facts: ForceData | ScalarData, store: Store, split: Split):
    """Every part of a split has labels: a run without would train on nothing and report NaN."""
    column = "forces" if isinstance(facts, ForceData) else facts.column
    for part in ("train", "val", "test"):
        some = _some(getattr(split, part))
        values = store.take(some).forces if column == "forces" else store.column(column)[some]
        if len(some) and not np.isfinite(np.asarray(values, np.float64)).any():
            raise InputError(f"{name}: no structure of the {part} split has a value of {column}; check the file")


def _constants(facts: ForceData | ScalarData, store: Store, train: np.ndarray) -> tuple[float, float]:
    if isinstance(facts, ForceData):
        return facts.energy_mean, facts.energy_std
    if facts.n_class:
        return 0.0, 1.0
    some = _some(train)
    systems = store.take(some)
    values = np.asarray(store.column(facts.column)[some], np.float64)
    return facts.normalization(values - facts.reference(systems.atomic_numbers, systems.n_node))


def _some(records: np.ndarray) -> np.ndarray:
    return records if len(records) <= _SAMPLE else np.random.RandomState(0).choice(records, _SAMPLE, replace=False)


def family_of(name: str) -> str:
    """"rmd17" of "rmd17:aspirin@PATH"; "file" and "demo" stand for themselves."""
    base = name.partition("@")[0]
    return base.partition(":")[0] if base.startswith(("file:", "demo:")) else find_spec(base).family

"""A downstream data set as a task: published constants, or those of its train split, and graphs by the fine-tuning
rules."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxatoms.data.downstream import PUBLISHED, ForceData, Graph, ScalarData, downstream
from jaxatoms.data.labels import label_hint
from jaxatoms.data.references import LinearReference, labels_in
from jaxatoms.data.registry import find_spec
from jaxatoms.data.splits import Split
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.data.task_split import task_split
from jaxatoms.types import InputError, SystemBatch

_SAMPLE = 20_000  # structures for standard deviations of unpublished sets


@dataclasses.dataclass(frozen=True)
class DownstreamTask:
    """A downstream data set as a `corpus.Task`."""

    facts: ForceData | ScalarData
    store: Store
    mean: float  # of the target: energies, or the scalar after its references
    std: float

    @property
    def graph(self) -> Graph:
        """Cutoff and rule of neighbours."""
        return self.facts.graph

    def targets(self, systems: SystemBatch, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised energies and forces; of a scalar, its values (classes as they are) and NaN for the forces."""
        if isinstance(self.facts, ForceData):
            energy = (systems.energy - self.mean) / self.std  # float64: totals reach -1e5 eV
            forces = (systems.forces - np.float32(self.facts.force_mean)) / np.float32(self.facts.force_std)
            return energy.astype(np.float32), forces.astype(np.float32)
        values = np.asarray(self.store.column(self.facts.column)[records], np.float64)
        if not self.facts.n_class:
            values = values - self.facts.reference(systems.atomic_numbers, systems.n_node)
            values = (values - self.mean) / self.std
        return values.astype(np.float32), np.full((len(systems.positions), 3), np.nan, np.float32)


def constants_record(task: DownstreamTask) -> dict:
    """The numbers that targets are normalised by, as JSON values; `with_constants` puts them back."""
    facts = task.facts
    if isinstance(facts, ForceData):
        own = {name: getattr(facts, name) for name in ("energy_mean", "energy_std", "force_mean", "force_std")}
    else:
        own = {"references": {str(z): value for z, value in facts.references.items()}}
    return {"mean": task.mean, "std": task.std, **own}


def with_constants(task: DownstreamTask, record: dict) -> DownstreamTask:
    """The task normalised by the numbers of a `constants_record`, whatever its data would give now."""
    own = {name: value for name, value in record.items() if name not in ("mean", "std")}
    if "references" in own:
        own["references"] = {int(z): value for z, value in own["references"].items()}
    facts = dataclasses.replace(task.facts, **own)
    return dataclasses.replace(task, facts=facts, mean=record["mean"], std=record["std"])


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
) -> tuple[DownstreamTask, Split]:
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
    return DownstreamTask(facts, store, *_constants(facts, store, parts.train)), parts


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

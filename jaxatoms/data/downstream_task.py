"""A downstream data set as a task: published constants, or those of its train split, and graphs by the fine-tuning
rules."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.atom_energies import AtomEnergies, atom_energies, isolated_atoms
from jaxatoms.data.downstream import PUBLISHED, Facts, ForceData, Graph, PropertiesData, ScalarData, downstream
from jaxatoms.data.labels import label_hint
from jaxatoms.data.properties import own_properties, property_labels, property_values, with_statistics
from jaxatoms.data.references import labels_in
from jaxatoms.data.registry import find_spec, split_targets
from jaxatoms.data.splits import Split
from jaxatoms.data.store import Store, open_dataset
from jaxatoms.data.targets import POTENTIAL, parse_targets, potential_weights
from jaxatoms.data.task_split import task_split
from jaxatoms.graphs.batch import Labels
from jaxatoms.types import InputError, SystemBatch

_SAMPLE = 20_000  # structures for standard deviations of unpublished sets


@dataclasses.dataclass(frozen=True)
class DownstreamTask:
    """A downstream data set as a `corpus.Task`."""

    facts: Facts
    store: Store
    mean: float  # of the target: energies, or the scalar after its references; 0 and 1 of several properties
    std: float
    energies: AtomEnergies | None = None  # where the references of own data come from

    @property
    def graph(self) -> Graph:
        """Cutoff and rule of neighbours."""
        return self.facts.graph

    def targets(self, systems: SystemBatch, records: np.ndarray) -> Labels:
        """Normalised labels; of a scalar, its values (classes as they are) and NaN for the forces."""
        facts = self.facts
        if isinstance(facts, ForceData):
            return self._of_potential(facts, systems, records)
        if isinstance(facts, PropertiesData):
            return property_labels(facts, self.store, systems, records)
        values = np.asarray(self.store.column(facts.column)[records], np.float64)
        if not facts.n_class:
            values = values - facts.reference(systems.atomic_numbers, systems.n_node)
            values = (values - self.mean) / self.std
        return Labels(values.astype(np.float32), np.full((len(systems.positions), 3), np.nan, np.float32))

    def _of_potential(self, facts: ForceData, systems: SystemBatch, records: np.ndarray) -> Labels:
        # float64: totals reach -1e5 eV
        energy = (systems.energy - facts.reference(systems.atomic_numbers, systems.n_node) - self.mean) / self.std
        forces = (systems.forces - np.float32(facts.force_mean)) / np.float32(facts.force_std)
        stress = None
        if facts.learns_stress:
            known = "stress" in self.store.extra_columns  # not in a set that is replayed
            values = self.store.column("stress")[records] if known else np.full((len(records), 3, 3), np.nan)
            stress = (values / facts.force_std).astype(np.float32)
        return Labels(energy.astype(np.float32), forces.astype(np.float32), stress)


def constants_record(task: DownstreamTask) -> dict:
    """The numbers that targets are normalised by, as JSON values; `with_constants` puts them back."""
    facts = task.facts
    if isinstance(facts, ForceData):
        own = {name: getattr(facts, name) for name in ("energy_mean", "energy_std", "force_mean", "force_std")}
    elif isinstance(facts, PropertiesData):
        return {"mean": task.mean, "std": task.std, "parts": [[part.mean, part.std] for part in facts.parts]}
    else:
        own = {}
    references = {"references": {str(z): value for z, value in facts.references.items()}, "span": facts.span}
    return {"mean": task.mean, "std": task.std, **own, **references}


def with_constants(task: DownstreamTask, record: dict) -> DownstreamTask:
    """The task normalised by the numbers of a `constants_record`, whatever its data would give now."""
    own = {name: value for name, value in record.items() if name not in ("mean", "std")}
    if isinstance(task.facts, PropertiesData):
        pairs = zip(task.facts.parts, record["parts"], strict=True)
        own = {"parts": tuple(dataclasses.replace(part, mean=mean, std=std) for part, (mean, std) in pairs)}
    if "references" in own:
        own["references"] = {int(z): value for z, value in own["references"].items()}
    facts = dataclasses.replace(task.facts, **own)
    return dataclasses.replace(task, facts=facts, mean=record["mean"], std=record["std"])


def open_downstream(
    name: str,
    data_root: str | None = None,
    cache_dir: str | None = None,
    *,
    targets: str | None = None,
    e0s: str = "auto",
    rule: str = "auto",
    sizes: tuple[int, int] | None = None,
    cutoff: float | None = None,
    max_neighbors: int | None = None,
    split: Callable[[Store], Split] | None = None,
) -> tuple[DownstreamTask, Split]:
    """A downstream data set and its split.

    Published sets bring their constants; any other one (demo:aspirin, file:PATH) gets those of its train split. It
    learns forces by gradient, or `targets`; without them what the data set is about, else forces, else energies.

    Args:
      targets: see `targets.parse_targets`; properties by the names of their columns, with or without `target_`,
        `atom_` or `vector_` before them.
      e0s: where reference energies come from, see `atom_energies.atom_energies`.
      rule, sizes: of the split, see `task_split.task_split`.
      split: gives the split of the store instead, such as one that was saved.

    Raises:
      InputError: unknown data set, missing target, a part of the split without labels, or a split larger than the data.
    """
    wanted = None if targets is None else parse_targets(targets)
    published = _published(name, wanted)
    opened = next(iter(split_targets(name)), name)
    spec, store = open_dataset(opened, data_root, cache_dir)
    parts = task_split(opened, spec, store, rule, sizes) if split is None else split(store)
    facts = published or _own_facts(name, store, parts.train, spec, wanted)
    if isinstance(facts, ForceData) and wanted:
        facts = _potential_facts(facts, store, potential_weights(wanted))
    energies = None
    if _fits_energies(facts, published is not None):
        parts = _without(parts, isolated_atoms(store))
        energies = atom_energies(store, parts.train, e0s)
        facts = dataclasses.replace(facts, **_references(energies))
        _warn_of_elements(name, energies, store, np.concatenate(parts[1:]))
    elif e0s != "auto":
        raise InputError(f"{name}: no energies are learnt, so that --e0s {e0s} has no use; leave it out")
    _check_labels(name, facts, store, parts)
    if cutoff or max_neighbors:
        graph = Graph(cutoff or facts.graph.cutoff, max_neighbors or facts.graph.max_neighbors, facts.graph.conditional)
        facts = dataclasses.replace(facts, graph=graph)
    if isinstance(facts, PropertiesData):
        facts = with_statistics(facts, store, _some(parts.train))
    return DownstreamTask(facts, store, *_constants(facts, store, parts.train), energies), parts


def _fits_energies(facts: Facts, published: bool) -> bool:
    """Whether energies are learnt that have reference energies of the data's own."""
    if isinstance(facts, ForceData):
        return facts.learns_energy
    return isinstance(facts, ScalarData) and facts.column == "energy" and not published


def _published(name: str, wanted: Mapping[str, float | None] | None) -> Facts | None:
    """The published facts of a data set, of which only potentials take other targets; None for sets without any."""
    if family_of(name) not in PUBLISHED:
        return None
    facts = downstream(name)
    if wanted is not None and not (isinstance(facts, ForceData) and set(wanted) <= set(POTENTIAL)):
        raise InputError(f"{name} names its own target; leave --targets {','.join(wanted)} out")
    return facts


def _references(energies: AtomEnergies) -> dict:
    """Fields of the facts."""
    reference = energies.reference
    own = {int(z): float(reference.coeff[z]) for z in np.flatnonzero(reference.seen)}
    return {"references": own, "span": None if reference.span is None else reference.span.tolist()}


def _warn_of_elements(name: str, energies: AtomEnergies, store: Store, records: np.ndarray):
    """Says which elements of validation and test structures have no reference energy."""
    unknown = np.flatnonzero(store.elements(records) & ~energies.reference.seen)
    if len(unknown):
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        warnings.warn(f"{name}: validation or test structures hold {symbols}, which have no reference energy since no "
                      "training structure holds them; their energies are not compared", stacklevel=3)  # fmt: skip


def _without(parts: Split, records: np.ndarray) -> Split:
    """The split without some records."""
    return Split(*(part[~np.isin(part, records)] for part in parts))


def _potential_facts(facts: ForceData, store: Store, weights: dict[str, float]) -> ForceData:
    """The facts of a potential that learns labels with these weights.

    Energies have the unit of forces then, because both are derivatives of one function.

    Raises:
      InputError: no stress in the data, or stress of a structure without a cell.
    """
    facts = dataclasses.replace(facts, weights=weights)
    if facts.learns_stress:
        _check_stress(facts.name, store)
    if facts.learns_energy:
        facts = dataclasses.replace(facts, energy_mean=0.0, energy_std=facts.force_std)
    return facts


def _check_stress(name: str, store: Store):
    if "stress" not in store.extra_columns:
        named = f"{name.partition('#')[0]}#,,KEY"
        raise InputError(f"{name} has no stress; leave stress out of --targets, or name its key as {named}")
    labelled = np.isfinite(store.column("stress")).all(axis=(1, 2))
    bare = np.flatnonzero(labelled & ~store.column("pbc").all(axis=1))
    if len(bare):
        where = store.where(int(bare[0]))
        raise InputError(f"{where}: has a stress and no cell; remove its stress, or leave stress out of --targets")


def _own_facts(
    name: str, store: Store, train: np.ndarray, spec, wanted: Mapping[str, float | None] | None
) -> Facts:
    """Facts of a set that nobody published constants for."""
    graph = Graph(spec.cutoff, spec.max_neighbors)
    names = set(wanted or ())
    if wanted is not None and not names <= set(POTENTIAL) and (len(names) > 1 or not _is_scalar(store, wanted)):
        return own_properties(name, store, graph, wanted)
    potential = bool(names) and names <= set(POTENTIAL) and names != {"energy"}
    column = "forces" if potential else _own_target(name, store, train, spec, wanted)
    if column == "energy":
        return ScalarData(name=name, column=column, graph=graph, unit="eV", reduction="sum", table_unit="meV",
                          table_scale=1000.0)  # fmt: skip
    if column != "forces":
        return ScalarData(name=name, column=column, graph=graph, unit="", reduction="mean")
    force_std = _force_std(name, store, train, needed=not potential or "forces" in names)
    energy = store.energy[train]
    energy = energy[np.isfinite(energy)]  # forces alone are enough
    return ForceData(
        name=name,
        graph=graph,
        energy_mean=float(energy.mean()) if len(energy) else 0.0,
        energy_std=(float(energy.std()) if len(energy) else 0.0) or 1.0,
        force_std=force_std,
    )


def _force_std(name: str, store: Store, train: np.ndarray, needed: bool) -> float:
    """eV/A, of the components of the training forces; 1 where there are none and none are needed."""
    forces = store.take(_some(train)).forces
    forces = forces[np.isfinite(forces).all(axis=1)]
    if len(forces) and forces.std() > 0:
        return float(forces.std())
    if needed:
        raise InputError(f"{name} has no forces to train on; {label_hint(store) or 'name a scalar with --targets'}")
    return 1.0


def _own_target(name: str, store: Store, train: np.ndarray, spec, wanted: Mapping[str, float | None] | None) -> str:
    """"forces", "energy" or a column."""
    target = None if wanted is None else next(iter(wanted))
    scalars = [column for column in store.extra_columns if column.startswith("target_")]
    if target is None and spec.target:
        return spec.target
    if target is None:
        has_energy, has_forces = labels_in(store, train)
        if has_forces or not (has_energy or scalars):
            return "forces"
        if not has_energy and len(scalars) > 1:
            listed = ", ".join(column.removeprefix("target_") for column in scalars)
            raise InputError(f"{name} has no energies or forces, but the scalars {listed}; choose one with --targets")
        return "energy" if has_energy else scalars[0]
    return target if target in ("forces", "energy", *scalars) else f"target_{target}"


def _is_scalar(store: Store, wanted: Mapping[str, float | None]) -> bool:
    """Whether the one target is a number per structure."""
    (target,) = wanted
    scalars = [column for column in store.extra_columns if column.startswith("target_")]
    return target in scalars or f"target_{target}" in scalars


def _check_labels(name: str, facts: Facts, store: Store, split: Split):
    """Every part of a split has labels: a run without would train on nothing and report NaN.

    Of several kinds, validation and test need the one that the tables give first; training needs all of them.
    """
    for i, column in enumerate(_labels_of(facts)):
        for part in ("train", "val", "test") if i == 0 else ("train",):
            some = _some(getattr(split, part))
            if len(some) and not np.isfinite(_values_of(facts, column, store, some)).any():
                raise InputError(f"{name}: no structure of the {part} split has a value of {column}; check the file")


def check_any_label(name: str, facts: ForceData, store: Store, train: np.ndarray):
    """Refuses a set with nothing that is learnt, such as energies alone where a potential learns forces.

    Raises:
      InputError: naming the set and what is learnt.
    """
    some = _some(train)
    if not any(np.isfinite(_values_of(facts, column, store, some)).any() for column in facts.learnt):
        raise InputError(f"{name}: no structure has {' or '.join(facts.learnt)}, which are learnt; leave it out")


def _labels_of(facts: Facts) -> tuple[str, ...]:
    """Names of what is learnt."""
    return (facts.column,) if isinstance(facts, ScalarData) else facts.learnt


def _values_of(facts: Facts, column: str, store: Store, records: np.ndarray) -> np.ndarray:
    """Labels of some structures, NaN where missing."""
    if isinstance(facts, PropertiesData):
        return property_values(facts.part(column), store, store.take(records), records)
    values = store.take(records).forces if column == "forces" else store.column(column)[records]
    return np.asarray(values, np.float64)


def _constants(facts: Facts, store: Store, train: np.ndarray) -> tuple[float, float]:
    if isinstance(facts, ForceData):
        return facts.energy_mean, facts.energy_std
    if facts.n_class or isinstance(facts, PropertiesData):
        return 0.0, 1.0
    some = _some(train)
    systems = store.take(some)
    values = np.asarray(store.column(facts.column)[some], np.float64)
    return facts.normalization(values - facts.reference(systems.atomic_numbers, systems.n_node))


def _some(records: np.ndarray) -> np.ndarray:
    return records if len(records) <= _SAMPLE else np.random.RandomState(0).choice(records, _SAMPLE, replace=False)


def family_of(name: str) -> str:
    """"rmd17" of "rmd17:aspirin@PATH"; "file" and "demo" stand for themselves."""
    base = next(iter(split_targets(name)), name).partition("@")[0]
    return base.partition(":")[0] if base.startswith(("file:", "demo:")) else find_spec(base).family

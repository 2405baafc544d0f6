"""Several properties of one data set, of structures and of atoms: which columns they are, and their labels."""

import dataclasses
from collections.abc import Mapping

import ase.data
import numpy as np

from jaxatoms.data.downstream import Graph, PropertiesData, ScalarData
from jaxatoms.data.store import Store
from jaxatoms.data.targets import POTENTIAL
from jaxatoms.graphs.batch import Labels
from jaxatoms.graphs.properties import ATOM, DIPOLE, places, widths
from jaxatoms.types import InputError, SystemBatch

# Prefix of a column in the store -> how such a property follows from the atoms' values, and its unit.
_KINDS = {"target_": ("mean", ""), "atom_": (ATOM, ""), "vector_": (DIPOLE, "e A")}
_CHARGES = ("target_charge", "target_total_charge")  # columns of the charge of a structure, e
_MASSES = np.nan_to_num(ase.data.atomic_masses, nan=1.0)  # u
_ORIGIN = "vector_dipole_origin"  # the point, A, about which the dipole of a charged structure is taken


def property_columns(store: Store) -> list[str]:
    """The columns of a store that can be learnt as properties."""
    return [name for name in store.extra_columns if name.startswith(tuple(_KINDS)) and name != _ORIGIN]


def find_column(name: str, target: str, store: Store) -> str:
    """The column that a target names, with or without its prefix.

    Args:
      name: of the data set, for messages.

    Raises:
      InputError: no such column.
    """
    known = property_columns(store)
    for column in (target, *(f"{prefix}{target}" for prefix in _KINDS)):
        if column in known:
            return column
    listed = ", ".join(known) or "energies and forces only"
    raise InputError(f"{name} has no column '{target}'; it has {listed}")


def own_properties(
    name: str, store: Store, graph: Graph, wanted: Mapping[str, float | None]
) -> PropertiesData:
    """The facts of the properties that `--targets` names, without their statistics.

    Args:
      wanted: {target: weight in the loss; None: 1}.

    Raises:
      InputError: energies, forces or stress among them, no such column, or a dipole that has no fixed value.
    """
    if mixed := [target for target in wanted if target in POTENTIAL]:
        raise InputError(f"{name}: {mixed[0]} and {', '.join(t for t in wanted if t not in mixed)} cannot be learnt "
                         "together; give energy, forces and stress, or properties")  # fmt: skip
    columns = [find_column(name, target, store) for target in wanted]
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise InputError(f"{name}: --targets names {twice[0]} twice; name each property once")
    parts = []
    for column in columns:
        reduction, unit = next(kind for prefix, kind in _KINDS.items() if column.startswith(prefix))
        parts.append(ScalarData(name=name, column=column, graph=graph, unit=unit, reduction=reduction))
        _check_finite(store, column, reduction)
        if reduction == DIPOLE:
            _check_dipoles(store, column)
    weights = tuple(1.0 if weight is None else weight for weight in wanted.values())
    return PropertiesData(name=name, graph=graph, parts=tuple(parts), weights=weights)


def _check_finite(store: Store, column: str, reduction: str):
    """Refuse an infinite value; NaN marks a missing one.

    Raises:
      InputError: naming the first structure with one.
    """
    rows = np.flatnonzero(np.isinf(store.column(column)).reshape(len(store.column(column)), -1).any(axis=1))
    if len(rows):
        record = np.searchsorted(np.cumsum(store.n_node), rows[0], side="right") if reduction == ATOM else rows[0]
        raise InputError(f"{store.where(int(record))}: {column} is infinite; write nan where it is not known")


def _check_dipoles(store: Store, column: str):
    """Refuse dipoles that depend on something else than the structure.

    Raises:
      InputError: of a periodic structure, or of a charged one without an origin.
    """
    labelled = np.isfinite(store.column(column)).all(axis=1)
    where = lambda bad: store.where(int(np.flatnonzero(bad)[0]))  # noqa: E731
    if (bad := labelled & store.column("pbc").any(axis=1)).any():
        raise InputError(f"{where(bad)}: has a dipole and is periodic, so that it depends on the choice of the cell; "
                         "remove the dipole, or set pbc to F F F for a molecule")  # fmt: skip
    known = np.isfinite(store.column(_ORIGIN)).all(axis=1) if _ORIGIN in store.extra_columns else False
    if (bad := labelled & (_charge(store, slice(None)) != 0) & ~known).any():
        raise InputError(f"{where(bad)}: has a dipole and a charge, so that it depends on the origin; give the origin "
                         "in A as dipole_origin, or remove the dipole")  # fmt: skip


def _charge(store: Store, records) -> np.ndarray:
    """[n] e, the charges of structures; 0 where the data do not say."""
    column = next((name for name in _CHARGES if name in store.extra_columns), None)
    return np.zeros(len(store))[records] if column is None else np.nan_to_num(store.column(column)[records])


def with_statistics(facts: PropertiesData, store: Store, train: np.ndarray) -> PropertiesData:
    """The facts with mean and standard deviation of every property over the training structures.

    Raises:
      InputError: a property whose values do not vary.
    """
    systems = store.take(train)
    parts = []
    for part in facts.parts:
        values = _values(part, store, systems, train)
        if part.reduction == DIPOLE:  # the mean of a vector depends on how the structures are turned
            mean, std = 0.0, part.normalization(np.concatenate([values.ravel(), -values.ravel()]))[1]
        else:
            mean, std = part.normalization(values)
        parts.append(dataclasses.replace(part, mean=mean, std=std))
    return dataclasses.replace(facts, parts=tuple(parts))


def property_values(part: ScalarData, store: Store, systems: SystemBatch, records: np.ndarray) -> np.ndarray:
    """Labels of one property in its unit, NaN where missing: [n_graph], [n_node] or, of a dipole, [n_graph, 3]."""
    if part.reduction == ATOM:
        return store.take_per_atom(part.column, records)
    values = np.asarray(store.column(part.column)[records], np.float64)
    return _about_centre(values, store, systems, records) if part.reduction == DIPOLE else values


def _values(part: ScalarData, store: Store, systems: SystemBatch, records: np.ndarray) -> np.ndarray:
    """The same after what the atoms contribute to a scalar."""
    values = property_values(part, store, systems, records)
    if part.reduction in (ATOM, DIPOLE):
        return values
    return values - part.reference(systems.atomic_numbers, systems.n_node)


def _about_centre(dipole: np.ndarray, store: Store, systems: SystemBatch, records: np.ndarray) -> np.ndarray:
    """[n_graph, 3] e A, dipoles about the centre of mass: the dipole about O, and the charge times (O - centre)."""
    charge = _charge(store, records)
    if not charge.any():
        return dipole
    graph = np.repeat(np.arange(len(systems.n_node)), systems.n_node)
    mass = _MASSES[systems.atomic_numbers]
    total = np.bincount(graph, mass)
    centre = np.stack([np.bincount(graph, mass * axis) / total for axis in systems.positions.T.astype(np.float64)], 1)
    origin = np.asarray(store.column(_ORIGIN)[records], np.float64) if _ORIGIN in store.extra_columns else centre
    moved = dipole + charge[:, None] * (origin - centre)
    return np.where(charge[:, None] == 0, dipole, moved)


def property_labels(facts: PropertiesData, store: Store, systems: SystemBatch, records: np.ndarray) -> Labels:
    """Normalised labels of all properties; NaN energies and forces."""
    n_graph, n_node = len(systems.n_node), len(systems.positions)
    columns = widths(facts.reductions)
    arrays = {per_atom: np.full((n_node if per_atom else n_graph, columns[per_atom]), np.nan, np.float32)
              for per_atom in (False, True)}  # fmt: skip
    for part, place in zip(facts.parts, places(facts.reductions), strict=True):
        assert part.mean is not None and part.std is not None
        values = (_values(part, store, systems, records) - part.mean) / part.std
        arrays[place.per_atom][:, place.columns] = values.reshape(len(values), -1)
    none = np.full(n_graph, np.nan, np.float32), np.full((n_node, 3), np.nan, np.float32)
    return Labels(*none, None, arrays[False], arrays[True])

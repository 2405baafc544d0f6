"""What a checkpoint says of one of its heads: units, reference energies, graph, and what its training determined.

Pretraining, fine-tuning and conversion write the same record; prediction needs nothing else of them. No JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from jaxatoms.data.downstream import Graph, atoms_total
from jaxatoms.data.references import LinearReference
from jaxatoms.types import InputError, SystemBatch

LABELS = ("energy", "forces")
_NAMES = {"property": "target"}  # field of the JSON -> ours
_JSON = {ours: theirs for theirs, ours in _NAMES.items()}


class PropertyRecord(NamedTuple):
    """One of several properties that a head predicts.

    Attributes:
      column: its name in the data: `target_<name>` of a structure, `atom_<name>` of an atom, `vector_<name>` of a
        dipole.
      reduction: how it follows from the atoms' values, see `graphs.properties`.
      mean, std: of the labels, in its unit, after the references.
      unit: "" where it is not known.
      references: by atomic number, what each atom contributes beyond that.
    """

    column: str
    reduction: str
    mean: float
    std: float
    unit: str = ""
    references: Mapping[int, float] = {}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """As `TaskRecord.to_json` wrote it; JSON has text for the keys of `references`."""
        references = {int(z): value for z, value in record.get("references", {}).items()}
        return cls(**{**record, "references": references})

    def to_json(self) -> dict[str, Any]:
        """JSON values; the keys of `references` as text."""
        return self._asdict() | {"references": {str(z): value for z, value in self.references.items()}}

    def values(self, normalised: np.ndarray, systems: SystemBatch) -> np.ndarray:
        """float64 in the unit of the property, of normalised values [n_graph], [n_node] or [n_graph, 3]."""
        values = np.asarray(normalised, np.float64) * self.std + self.mean
        if not self.references:
            return values
        return values + atoms_total(self.column, self.references, systems.atomic_numbers, systems.n_node)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One head.

    Attributes:
      name: of the data set that it was trained on, or given by hand.
      energy_std: unit of the normalised energy, eV (of a scalar, its own unit); of gradient forces too, eV/A.
      force_std: unit of the normalised forces of a direct head, eV/A; None: it has none.
      cutoff, max_neighbors: A, and K of the main graph.
      reference: energies per element, eV, that were subtracted; the elements that it was trained on.
      energy_mean: what was subtracted after the reference, eV.
      conditional: fewer neighbours in large structures, see `Graph`.
      labels: kinds of labels that it was trained on, of "energy" and "forces".
      target: of a fine-tuned head "forces", "energy" or the column of a scalar; None: a head of pretraining. In JSON
        it is `property`.
      properties: of a head for several properties, which has no energy; `target` names their columns.
      energy_zero: of a potential that learnt forces alone: "fitted" to energies, or "unknown"; else None.
    """

    name: str
    energy_std: float
    force_std: float | None = None
    cutoff: float
    max_neighbors: int
    reference: LinearReference
    energy_mean: float = 0.0
    conditional: bool = False
    labels: tuple[str, ...] = LABELS
    target: str | None = None
    energy_zero: str | None = None
    properties: tuple[PropertyRecord, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> Self:
        """The record as `to_json` wrote it, or an earlier version without what has a default.

        Args:
          source: names the file in messages.

        Raises:
          InputError: a field that is missing or unknown.
        """
        record = {_NAMES.get(name, name): value for name, value in record.items()}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        head = f"the head {record.get('name', '?')!r}"
        if missing := [name for name in needed if name not in record]:
            raise InputError(f"{source}: {head} lacks {', '.join(missing)}; convert or train it again")
        if unknown := [name for name in record if name not in (*fields, "span")]:
            raise InputError(f"{source}: {head} has unknown fields ({', '.join(unknown)}); use a newer jaxatoms")
        own = {name: value for name, value in record.items() if name in fields}
        own |= {"reference": LinearReference.from_record(dict(record)), "labels": tuple(record.get("labels", LABELS))}
        own["properties"] = tuple(map(PropertyRecord.from_json, record.get("properties", ())))
        return cls(**own)

    def to_json(self) -> dict[str, Any]:
        """JSON values of the fields that are set; the reference as {"reference": {atomic number: eV}, "span": ...}."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["properties"] = [record.to_json() for record in self.properties] or None
        kept = {_JSON.get(k, k): value for k, value in plain.items() if value is not None and k != "reference"}
        return kept | self.reference.as_record() | {"labels": list(self.labels)}

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers that it was trained on, ascending."""
        return np.flatnonzero(self.reference.seen)

    def check_elements(self, atomic_numbers: np.ndarray, source: str):
        """Refuse elements that the head never saw.

        Raises:
          InputError: naming them.
        """
        unknown = np.setdiff1d(atomic_numbers, self.elements)
        if len(unknown):
            raise InputError(
                f"{source} was not trained on the elements {', '.join(map(str, unknown))} (atomic numbers); "
                "choose another head or checkpoint"
            )

    @property
    def graph(self) -> Graph:
        """Cutoff and rule of neighbours of its training."""
        return Graph(self.cutoff, self.max_neighbors, self.conditional)

    def energies(self, normalised, systems: SystemBatch) -> np.ndarray:
        """[n_graph] float64 eV (or the scalar's unit) of normalised values [n_graph]."""
        residual = np.asarray(normalised, np.float64) * self.energy_std + self.energy_mean
        return self.reference.add_back(residual, systems.atomic_numbers, systems.n_node)

    def forces(self, normalised, *, gradient: bool) -> np.ndarray:
        """[n_node, 3] float64 eV/A. Gradient forces are those of the energy, hence in its unit."""
        unit = self.energy_std if gradient else self.force_std
        assert unit is not None
        return np.asarray(normalised, np.float64) * unit

    def knows_energy(self, systems: SystemBatch) -> np.ndarray:
        """[n_graph] bool: whether its training fixes the zero of the energy of each structure's composition."""
        if self.energy_zero == "unknown" or "energy" not in self.labels:
            return np.zeros(len(systems.n_node), bool)
        return self.reference.determines(systems.atomic_numbers, systems.n_node)

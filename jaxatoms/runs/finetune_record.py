"""What prediction needs of the heads of a fine-tuned network, as its checkpoints record it."""

import dataclasses

import numpy as np

from jaxatoms.data.downstream import ForceData, PropertiesData, ScalarData
from jaxatoms.data.references import LinearReference
from jaxatoms.data.task_record import PropertyRecord, TaskRecord
from jaxatoms.models.common.output import HeadSpec
from jaxatoms.runs.energy_zero import learns_energy
from jaxatoms.runs.finetune_data import Part


def task_record(part: Part, head: HeadSpec, reference: LinearReference | None) -> TaskRecord:
    """What prediction needs of the head of one data set.

    Gradient forces fix the unit of the energy: it is that of the forces times A, not the data set's energy_std. Its
    zero is `reference`, fitted to training energies; None where there are none.
    """
    task, facts = part.task, part.task.facts
    seen = task.store.elements(part.split.train)
    several = isinstance(facts, PropertiesData)
    given = LinearReference(np.zeros(len(seen)), seen) if several else _given(facts, seen)
    record = TaskRecord(
        name=part.name,
        energy_std=task.std,
        energy_mean=task.mean,
        force_std=getattr(facts, "force_std", None),
        reference=given,
        cutoff=facts.graph.cutoff,
        max_neighbors=facts.graph.max_neighbors,
        conditional=facts.graph.conditional,
        target=getattr(facts, "column", "forces"),
        labels=_predicted(head),
        properties=_property_records(facts) if isinstance(facts, PropertiesData) else (),
    )
    if learns_energy(task):
        fitted = record.reference if reference is None else dataclasses.replace(record.reference, coeff=reference.coeff)
        return dataclasses.replace(record, reference=fitted)
    if head.kind != "gradient":
        return record
    assert record.force_std is not None
    record = dataclasses.replace(record, energy_std=record.force_std, energy_mean=0.0, energy_zero="unknown")
    if reference is None:
        return record
    return dataclasses.replace(record, reference=_of_trained(reference, seen), energy_zero="fitted")


def _given(facts: ForceData | ScalarData, seen: np.ndarray) -> LinearReference:
    """What each atom contributes by the data set's facts, of the elements `seen` [121]."""
    coeff = np.array([float(facts.references.get(z, 0.0)) if own else 0.0 for z, own in enumerate(seen)])
    return LinearReference(coeff, seen, None if facts.span is None else np.array(facts.span))


def _property_records(facts: PropertiesData) -> tuple[PropertyRecord, ...]:
    return tuple(
        PropertyRecord(part.column, part.reduction, float(part.mean or 0.0), float(part.std or 1.0), part.unit,
                       {int(z): float(value) for z, value in part.references.items()})
        for part in facts.parts
    )  # fmt: skip


def _of_trained(reference: LinearReference, seen: np.ndarray) -> LinearReference:
    """A fitted zero for all elements that were trained; energies with one outside the fit are not known."""
    span = reference.span
    if span is None and (seen & ~reference.seen).any():
        span = np.eye(len(seen))[reference.seen]
    return LinearReference(reference.coeff, seen, span)


def _predicted(head: HeadSpec) -> tuple[str, ...]:
    """Kinds of labels that a head predicts."""
    if head.kind == "properties":
        return ()
    if head.kind == "direct":
        return ("energy", "forces") if head.energy else ("forces",)
    return ("energy", "forces") if head.kind == "gradient" else ("energy",)

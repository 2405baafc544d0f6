"""What a fine-tuning run says: its reference energies, validation errors, and at its end those before and after."""

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.atom_energies import AtomEnergies
from jaxatoms.data.downstream import ForceData, PropertiesData, ScalarData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.references import LinearReference
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.inference.evaluation import property_rows, quantities, report_of, unit_of
from jaxatoms.training.losses.terms import Terms, mean_loss

MEASURES = {  # of a validation -> the quantity it is the error of
    "force_mae_mev_per_angstrom": "forces",
    "energy_mae_mev_per_atom": "energy",
    "stress_mae_mev_per_cubic_angstrom": "stress",
    "mae": "value",
    "balanced_accuracy": "value",
}
PROPERTY_MEASURE = "mae_"  # begins the names of the errors of several properties
LARGE_SHIFT = 1.0  # eV/atom; beyond it, energies of the checkpoint and of the data do not have one zero


def validation_metrics(sums: dict, task: DownstreamTask, terms: Terms) -> dict[str, float]:
    """The data set's metrics in the paper's units, and "loss" (what best means).

    Of a potential that learns several labels "loss" is that of training; otherwise it is the metric.
    """
    if "class_count" in sums:
        recall = float(np.mean(sums["class_right"] / np.maximum(sums["class_count"], 1)))
        return {"loss": 1 - recall, "balanced_accuracy": recall}
    facts = task.facts
    if isinstance(facts, PropertiesData):
        return {"loss": mean_loss(terms, sums)} | _property_errors(sums, facts)
    if not isinstance(facts, ForceData):
        mae = _mean(sums, "energy") * task.std
        return {"loss": mae, "mae": mae * unit_of(facts)[1]}
    scale = 1000 * facts.force_std
    if not facts.weights or set(facts.weights) == {"forces"}:
        mae = _mean(sums, "force") * scale
        return {"loss": mae / 1000, "force_mae_mev_per_angstrom": mae}
    errors = {measure: _SUMS[of] for measure, of in MEASURES.items() if of in facts.weights}
    labelled = {measure: name for measure, name in errors.items() if sums[f"{name}_count"].sum()}
    return {"loss": mean_loss(terms, sums)} | {measure: _mean(sums, name) * scale for measure, name in labelled.items()}


def _property_errors(sums: dict, facts: PropertiesData) -> dict[str, float]:
    """{"mae_<name>": mean absolute error in the unit of the tables} of the properties that are labelled."""
    out = {}
    for name, weight in zip(facts.learnt, facts.weights, strict=True):
        labels, part = float(sums[f"{name}_labels"]), facts.part(name)
        if labels:
            assert part.std is not None
            mae = float(sums[f"{name}_loss"]) / weight / labels
            out[f"{PROPERTY_MEASURE}{name}"] = mae * part.std * unit_of(facts, name)[1]
    return out


_SUMS = {"forces": "force", "energy": "energy_by_atom", "stress": "stress"}  # names in the sums of `error_sums`


def _mean(sums: dict, name: str) -> float:
    """NaN where nothing is labelled."""
    count = sums[f"{name}_count"].sum()
    return float(sums[f"{name}_error"].sum() / count) if count else float("nan")


def reference_table(energies: AtomEnergies, counts: np.ndarray, before: Mapping[str, LinearReference]) -> str:
    """The reference energies of the data beside those of the checkpoint's heads, and a sentence on a large shift.

    Args:
      counts: [n, 121] atoms of each element of some training structures.
      before: of every head of the checkpoint that learnt energies, by its name.
    """
    reference, kind, shift = energies
    words = {"fit": "fitted to the training structures", "isolated": "of isolated atoms", "file": "of the file given"}
    lines = [f"reference energies (eV), {words[kind]}"]
    if kind != "fit":
        lines[0] += f", and {shift:+.3f} eV per atom, which the training structures have on average beyond them"
    lines.append(f"{'':8s}{'data':>14s}" + "".join(f"{name[:14]:>16s}" for name in before))
    for z in np.flatnonzero(reference.seen):
        known = [f"{other.coeff[z]:16.3f}" if other.seen[z] else f"{'-':>16s}" for other in before.values()]
        lines.append(f"{chemical_symbols[z]:8s}{reference.coeff[z]:14.3f}{''.join(known)}")
    for name, moved in _shifts(reference, counts, before).items():
        if abs(moved) > LARGE_SHIFT:
            lines.append(
                f"energies of these data lie {moved:+.2f} eV per atom from those of {name}: another level of theory or "
                "another zero; energies before and after fine-tuning cannot be compared"
            )
    return "\n".join(lines)


def _shifts(reference: LinearReference, counts: np.ndarray, before: Mapping[str, LinearReference]) -> dict[str, float]:
    """Mean difference of the reference energies per atom, over the structures whose elements a head knows."""
    out = {}
    for name, other in before.items():
        known = counts[~counts[:, ~other.seen].any(axis=1)]
        if len(known):
            out[name] = float(np.mean(known @ (reference.coeff - other.coeff) / known.sum(axis=1)))
    return out


def mean_baselines(batches: Sequence[GraphBatch], task: DownstreamTask) -> dict[str, float]:
    """Errors of predicting the mean of the labels of these batches, by quantity, in the units of the tables.

    Energies are those after the references per element, as the model sees them. For classes it is the balanced
    accuracy of always naming one. Without what nothing is labelled with.
    """
    facts = task.facts
    if isinstance(facts, ScalarData) and facts.n_class:
        return {"value": 1 / facts.n_class}
    out = {}
    for quantity in quantities(facts):
        label = np.concatenate([_labels(quantity, batch, task) for batch in batches])
        if len(label):
            out[quantity] = float(np.abs(label - label.mean(axis=0)).mean()) * unit_of(facts, quantity)[1]
    return out


def _labels(quantity: str, batch: GraphBatch, task: DownstreamTask) -> np.ndarray:
    """Physical labels of a batch: [n, 3] eV/A or e A, [n, 6] eV/A^3, [n] eV per atom or [n] in a scalar's unit."""
    if isinstance(task.facts, ForceData) and quantity == "forces":
        return np.asarray(batch.forces, np.float64)[batch.force_mask & batch.free] * task.facts.force_std
    if isinstance(task.facts, ForceData) and quantity == "stress":
        rows, columns = np.triu_indices(3)
        return np.asarray(batch.stress, np.float64)[batch.stress_mask][:, rows, columns] * task.facts.force_std
    if isinstance(task.facts, PropertiesData):
        return property_rows(batch, batch, task.facts, quantity)[1]
    values = np.asarray(batch.energy, np.float64)[batch.energy_mask] * task.std
    if quantity == "value":
        return values
    return values / (batch.node_table < len(batch.atomic_numbers)).sum(axis=1)[batch.energy_mask]


def comparison(summary: Mapping, starts: Sequence[Mapping | None], tests: Sequence[Mapping]) -> str:
    """A table of validation and test errors, and a sentence where training did not help.

    Args:
      summary: summary.json of the run, with the validation before and after; new heads begin untrained.
      starts: of every data set of the run, the test errors before training; None where they are not known.
      tests: the same after it, of the last weights.
    """
    if len(tests) == 1:
        return _of_one(summary["validation_before"], summary["validation"],
                       summary.get("validation_mean_baselines", {}), starts[0] or {}, tests[0])  # fmt: skip
    tables = []
    for name, start, test in zip(summary["data_sets"], starts, tests, strict=True):
        before, after = (_named(summary[key], name) for key in ("validation_before", "validation"))
        tables.append(f"{name}\n{_of_one(before, after, {}, start or {}, test)}")
    return "\n\n".join(tables)


def _named(metrics: Mapping, name: str) -> dict:
    """The metrics of one of several data sets."""
    return {key.removesuffix(f"/{name}"): value for key, value in metrics.items() if key.endswith(f"/{name}")}


def _of_one(before: Mapping, after: Mapping, baselines: Mapping, start: Mapping, test: Mapping) -> str:
    measures = [name for name in dict.fromkeys((*MEASURES, *after)) if name in after and _quantity(name)]
    if not measures:
        return "no validation structure that was drawn has a label"
    first, lines, probes = measures[0], [], start.get("linear_probe", {})
    for measure in measures:
        if measure == first and first in MEASURES:
            own = start, test
        else:
            own = report_of(start, _quantity(measure)), report_of(test, _quantity(measure))
        lines += _table(measure, before, after, *own, baselines, probes)
    if first not in MEASURES:  # several properties, of which no one decides
        return "\n".join([*lines, *_verdict("loss", before, after, None)])
    return "\n".join([*lines, *_verdict(first, before, after, baselines.get(MEASURES[first]))])


def _quantity(measure: str) -> str:
    """What a metric of a validation is the error of; "" of any other metric."""
    if measure in MEASURES:
        return MEASURES[measure]
    return measure.removeprefix(PROPERTY_MEASURE) if measure.startswith(PROPERTY_MEASURE) else ""


def _table(
    measure: str, before: Mapping, after: Mapping, start: Mapping, test: Mapping, baselines: Mapping, probes: Mapping
) -> list[str]:
    higher = measure == "balanced_accuracy"
    quantity = _quantity(measure)
    of = "" if quantity == "value" else f" {quantity}"
    unit = f" ({test['unit']})" if test.get("unit") else ""
    title = "balanced accuracy" if higher else f"MAE{of}{unit}"
    name, tested = (measure, None) if higher else ("mae", test.get("mean_baseline_mae"))
    rows: list[tuple] = [
        (title, "before training", "after", "one class" if higher else "mean of the labels"),
        ("validation", before[measure], after[measure], baselines.get(quantity)),
        ("test", start.get(name), test.get(name), tested),
    ]
    if probe := probes.get(quantity):
        cells = ("linear in features", probe["validation"], probe["test"])
        rows = [(*row[:2], cell, *row[2:]) for row, cell in zip(rows, cells, strict=True)]
    return [f"{row[0]:22s}" + "".join(f"{_cell(value):>20s}" for value in row[1:]) for row in rows]


def _verdict(measure: str, before: Mapping, after: Mapping, baseline: float | None) -> list[str]:
    sign = -1 if measure == "balanced_accuracy" else 1
    if sign * after[measure] >= sign * before[measure]:
        return ["training did not improve the validation: try a lower --lr or more steps (docs/faq.md)"]
    if baseline is not None and sign * after[measure] >= sign * baseline:
        return ["no better than the mean of the labels: try more steps, more data or another --lr (docs/faq.md)"]
    return []


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"

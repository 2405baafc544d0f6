"""Errors of a fine-tuned model on a split, in the paper's units: overall, per component, element and size."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jax
import numpy as np
from ase.data import chemical_symbols
from ase.units import GPa

from jaxatoms.data.corpus import Corpus, samples_of
from jaxatoms.data.downstream import Facts, ForceData, PropertiesData, ScalarData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.data.passes import plan_pass
from jaxatoms.graphs.properties import ATOM, places
from jaxatoms.io import finite, write_json
from jaxatoms.plots import drawing
from jaxatoms.tools.provenance import provenance
from jaxatoms.types import InputError

BATCH_EDGES = 4096  # of a validation or test batch
SIZE_BINS = (0, 10, 20, 40, 80, 160, 320, 100_000)


_UNITS = {"energy": ("meV/atom", 1000.0), "stress": ("meV/A^3", 1000.0)}  # of potentials that learn them too


class Predictions(NamedTuple):
    """Physical predictions beside the labels, one row per label; only labelled, free atoms for forces."""

    predicted: np.ndarray  # [n, 3] eV/A or e A, [n] eV/atom, [n, 6] eV/A^3, [n] in a scalar's unit, or [n] classes
    label: np.ndarray  # the same
    size: np.ndarray  # [n] atoms of the structure
    element: np.ndarray | None  # [n] atomic numbers, for forces and properties of atoms


def assess(
    run_dir: Path,
    split: str,
    records: np.ndarray,
    of: int,
    forwards: Mapping[str, Callable],
    corpus: Corpus,
    index: int,
    shapes: list,
    batch_edges: int = BATCH_EDGES,
    steps: Mapping[str, int] | None = None,
) -> dict:
    """Errors of each of `forwards` (by name) on the records; written to <split>.json, and plots beside it.

    Of a further data set of the run the files are named <split>-<index>.

    Args:
      of: number of records in the whole split.
      forwards: batch -> ModelOutput, jitted.
      corpus: the data sets of the run; index: number of the one whose records they are.
      shapes: budgets that they were compiled for, to be used again; grows.
      steps: of training that each of the weights has, for the record; the run's own test is made when it has ended.
    """
    task, stem = corpus.tasks[index], result_name(split, index).removesuffix(".json")
    assert isinstance(task, DownstreamTask)
    facts = task.facts
    result: dict = {"data": facts.name, "split": split, "n_structure": len(records), "of": of}
    result |= {} if steps is None else {"steps": dict(steps)}
    for name, forward in forwards.items():
        found = predict_split(forward, corpus, index, records, shapes, batch_edges)
        if not found:
            what = f"none of the {len(records)} {split} structures that were drawn has a label"
            raise InputError(f"{facts.name}: {what}; draw more of them")
        first, result[name] = next(iter(found)), _reports(found, facts)
        for quantity, data in found.items():
            kind = "" if quantity == first else f"{quote(quantity, safe='')}_"
            names = {what: run_dir / f"{stem}_{kind}{what}_{name}.png" for what in ("parity", "errors")}
            plot(names, data, unit_of(facts, quantity), f"{facts.name}, {split}, {name}")
    write_json(run_dir / f"{stem}.json", finite(result | {"provenance": provenance()}))
    return result


def errors(forward: Callable, corpus: Corpus, index: int, records: np.ndarray, shapes: list) -> dict:
    """The errors of one set of weights on the records, as `assess` reports them; {} where none has a label."""
    found = predict_split(forward, corpus, index, records, shapes, BATCH_EDGES)
    return _reports(found, corpus.tasks[index].facts)  # type: ignore[attr-defined]


def _reports(found: dict[str, Predictions], facts: Facts) -> dict:
    """The errors of what a data set is about, and below its name those of every other quantity.

    Of several properties the first has its name under "property", and the others are below "properties".
    """
    reports = {quantity: report(data, facts, quantity) for quantity, data in found.items()}
    if not reports:
        return {}
    first = next(iter(reports))
    own = reports.pop(first)
    return {"property": first} | own | {"properties": reports} if isinstance(facts, PropertiesData) else own | reports


def report_of(result: Mapping, quantity: str) -> Mapping:
    """The errors of one quantity other than the first of a potential or a scalar, or of one property; {} without."""
    if result.get("property") == quantity:
        return result
    return result.get("properties", {}).get(quantity) or result.get(quantity, {})


def result_name(split: str, index: int) -> str:
    """The file of a data set's results: that of the first, which tables read, has the name of the split alone."""
    return f"{split}-{index}.json" if index else f"{split}.json"


def predict_split(
    forward: Callable, corpus: Corpus, index: int, records: np.ndarray, shapes: list, batch_edges: int
) -> dict[str, Predictions]:
    """Predictions of what is learnt for the records of a data set, padding left out; arguments as in `assess`.

    Returns:
      By "forces", "energy" and "stress", of a scalar by "value", or by the names of properties; what no record is
      labelled with is left out.
    """
    task = corpus.tasks[index]
    assert isinstance(task, DownstreamTask)
    plan = plan_pass(corpus, samples_of(index, records), batch_edges, shapes)
    rows: dict[str, list] = {}
    for batch in plan.batches():
        out = jax.device_get(forward(batch))
        size = (batch.node_table < len(batch.atomic_numbers)).sum(axis=1)
        for quantity in quantities(task.facts):
            make = _of_properties if isinstance(task.facts, PropertiesData) else _ROWS[quantity]
            rows.setdefault(quantity, []).append(make(out, batch, size, task, quantity))
    found = {quantity: _concatenated(parts) for quantity, parts in rows.items()}
    return {quantity: data for quantity, data in found.items() if len(data.label)}


def quantities(facts: Facts) -> tuple[str, ...]:
    """What is learnt, that which the tables give first."""
    return ("value",) if isinstance(facts, ScalarData) else facts.learnt


def _concatenated(rows: list) -> Predictions:
    columns = list(zip(*rows, strict=True))
    element = None if columns[3][0] is None else np.concatenate(columns[3])
    predicted, label, sizes = (np.concatenate(column) for column in columns[:3])
    return Predictions(predicted, label, sizes, element)


def _force_rows(out, batch, size, task, _):
    facts, keep = task.facts, batch.force_mask & batch.free
    predicted, label = (np.asarray(f, np.float64)[keep] * facts.force_std + facts.force_mean
                        for f in (out.forces, batch.forces))
    return predicted, label, size[batch.node_graph[keep]], batch.atomic_numbers[keep]


def _energy_rows(out, batch, size, task, _):
    keep = batch.energy_mask
    predicted, label = (np.asarray(e, np.float64)[keep] * task.std / size[keep] for e in (out.energy, batch.energy))
    return predicted, label, size[keep], None  # both after the atom references, which cancel


def _stress_rows(out, batch, size, task, _):
    keep, (rows, columns) = batch.stress_mask, np.triu_indices(3)
    predicted, label = (np.asarray(s, np.float64)[keep][:, rows, columns] * task.facts.force_std
                        for s in (out.stress, batch.stress))
    return predicted, label, size[keep], None


def _scalar_rows(out, batch, size, task, _):
    keep = batch.energy_mask
    if task.facts.n_class:
        return out.energy[keep].argmax(axis=-1), batch.energy[keep].astype(int), size[keep], None
    predicted, label = (np.asarray(e, np.float64)[keep] * task.std + task.mean for e in (out.energy, batch.energy))
    return predicted, label, size[keep], None  # both after the atom references, which cancel


def property_rows(out, batch, facts: PropertiesData, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Physical predictions and labels of one property, and the rows of its array that are labelled [n_graph or n_node].

    Args:
      out: with normalised `properties` and `atom_properties`.
    """
    place, part = places(facts.reductions)[facts.learnt.index(name)], facts.part(name)
    array = "atom_properties" if place.per_atom else "properties"
    known = getattr(batch, f"{array}_mask")[:, place.columns].all(axis=1)
    both = [np.asarray(getattr(values, array), np.float64)[known][:, place.columns] for values in (out, batch)]
    # Scalars stay after the atom references, which cancel in errors.
    predicted, label = ((v if v.shape[1] > 1 else v[:, 0]) * part.std + part.mean for v in both)
    return predicted, label, known


def _of_properties(out, batch, size, task, name):
    predicted, label, known = property_rows(out, batch, task.facts, name)
    if task.facts.part(name).reduction == ATOM:
        return predicted, label, size[batch.node_graph[known]], batch.atomic_numbers[known]
    return predicted, label, size[known], None


_ROWS = {"forces": _force_rows, "energy": _energy_rows, "stress": _stress_rows, "value": _scalar_rows}


def unit_of(facts: Facts, quantity: str = "") -> tuple[str, float]:
    """(unit of the paper's tables, factor from ours) of what a data set is about, or of another quantity."""
    quantity = quantity or quantities(facts)[0]
    if isinstance(facts, PropertiesData):
        return unit_of(facts.part(quantity))
    if quantity in _UNITS:
        return _UNITS[quantity]
    return (facts.unit if isinstance(facts, ForceData) else facts.table_unit or facts.unit), facts.table_scale


def draw(records: np.ndarray, n: int | str) -> np.ndarray:
    """At most `n` of the records, at random with seed 0, ascending; all of them for "all"."""
    if n == "all" or int(n) >= len(records):
        return records
    return np.sort(np.random.RandomState(0).choice(records, int(n), replace=False))


def describe(result: dict) -> str:
    """One line per set of weights of what `experiments.evaluate` found."""
    lines, on = [], f"{result['n_structure']:,} of {result['of']:,} {result['split']} structures"
    for name in ("last_ema", "best_ema"):
        r = result[name]
        what = f"balanced accuracy {r['balanced_accuracy']:.4f}" if "balanced_accuracy" in r else _mae(r)
        others = {other: r[other] for other in _UNITS if other in r} | r.get("properties", {})
        more = [f"{other} {_mae(own)}" for other, own in others.items()]
        first = f"{r['property']} " if "property" in r else ""
        lines.append(f"{name}: {', '.join([first + what, *more])} on {on}")
    return "\n".join(lines)


def _mae(r: dict) -> str:
    if r["mae"] is None or not np.isfinite(r["mae"]):
        return "MAE not known: a prediction is not finite"
    gpa = f" = {r['mae_gpa']:.3g} GPa" if "mae_gpa" in r else ""
    unit = f" {r['unit']}" if r["unit"] else ""
    return f"MAE {r['mae']:.4g}{unit}{gpa} (RMSE {r['rmse']:.4g}, mean baseline {r['mean_baseline_mae']:.4g})"


def report(data: Predictions, facts: Facts, quantity: str) -> dict:
    """Errors as JSON values."""
    unit, scale = unit_of(facts, quantity)
    if isinstance(facts, ScalarData) and facts.n_class:
        return _class_report(data)
    error = (data.predicted - data.label) * scale
    out: dict = {"unit": unit} | _errors(error)
    if quantity == "stress":
        out["mae_gpa"] = out["mae"] / scale / GPa
    out["mean_baseline_mae"] = _errors((data.label - data.label.mean(axis=0)) * scale)["mae"]
    out["by_size"] = _by_size(error, data.size)
    if data.element is not None:
        if error.ndim == 2:
            out["by_component"] = {axis: _errors(error[:, i]) for i, axis in enumerate("xyz")}
        elements = np.unique(data.element)
        out["by_element"] = {chemical_symbols[z]: _errors(error[data.element == z]) for z in elements}
    return out


def _errors(error: np.ndarray) -> dict:
    return {"n": len(error), "mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(np.mean(error**2)))}


def _by_size(error: np.ndarray, size: np.ndarray) -> dict:
    out = {}
    for low, high in itertools.pairwise(SIZE_BINS):
        own = (size > low) & (size <= high)
        if own.any():
            out[f"{low + 1}-{high}"] = _errors(error[own])
    return out


def _class_report(data: Predictions) -> dict:
    classes = np.unique(data.label)
    recall = [float((data.predicted[data.label == c] == c).mean()) for c in classes]
    return {
        "n": len(data.label),
        "unit": "",
        "balanced_accuracy": float(np.mean(recall)),
        "accuracy": float((data.predicted == data.label).mean()),
        "recall": dict(zip(map(str, classes.tolist()), recall, strict=True)),
    }


def plot(names: Mapping[str, Path], data: Predictions, unit_and_scale: tuple[str, float], title: str):
    """A parity plot and a histogram of errors, into the files `names["parity"]` and `names["errors"]`."""
    unit, scale = unit_and_scale
    predicted, label = (np.ravel(v) * scale for v in (data.predicted, data.label))
    known = np.isfinite(predicted)  # what is not stands in the file of errors
    predicted, label = predicted[known], label[known]
    if not known.any():
        return
    some = np.random.default_rng(0).permutation(len(label))[:20_000]
    with drawing(names["parity"], panel=(4, 4)) as (_, (axis,)):
        axis.plot(label[some], predicted[some], ".", markersize=1, rasterized=True)
        ends = [label.min(), label.max()]
        axis.plot(ends, ends, "k-", linewidth=0.5)
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid()
        mae = f"MAE {np.abs(predicted - label).mean():.4g} {unit}".rstrip()
        axis.text(0.04, 0.96, mae, transform=axis.transAxes, va="top", fontsize=8)
        axis.set_xlabel(f"reference ({unit})")
        axis.set_ylabel(f"predicted ({unit})")
        axis.set_title(title, fontsize=8)
    with drawing(names["errors"]) as (_, (axis,)):
        error = predicted - label
        width = max(float(np.ptp(error)), 1e-6 * (1 + float(np.abs(error).max())))  # of equal errors, too
        axis.hist(error, bins=100, range=(float(error.min()), float(error.min()) + width))
        axis.set_xlabel(f"predicted - reference ({unit})")
        axis.set_ylabel("count")
        axis.set_yscale("log")
        axis.set_title(title, fontsize=8)

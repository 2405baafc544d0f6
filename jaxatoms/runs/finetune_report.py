"""What a fine-tuning run says at its end: errors before and after it, beside the mean of the labels."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxatoms.data.downstream import ForceData
from jaxatoms.data.downstream_task import DownstreamTask
from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.inference.evaluation import unit_of


def mean_baseline(batches: Sequence[GraphBatch], task: DownstreamTask) -> float | None:
    """The error of predicting the mean of the labels of these batches, in the unit of the paper's tables.

    Energies are those after the references per element, as the model sees them. For classes it is the balanced
    accuracy of always naming one. None where nothing is labelled.
    """
    facts = task.facts
    if isinstance(facts, ForceData):
        labels = [np.asarray(b.forces, np.float64)[b.force_mask & b.free] * facts.force_std for b in batches]
    elif facts.n_class:
        return 1 / facts.n_class
    else:
        labels = [np.asarray(b.energy, np.float64)[b.energy_mask] * task.std for b in batches]
    label = np.concatenate(labels)
    return float(np.abs(label - label.mean(axis=0)).mean()) * unit_of(facts)[1] if len(label) else None


def comparison(summary: Mapping, test: Mapping) -> str:
    """A table of validation and test errors, and a sentence where training did not help.

    Args:
      summary: summary.json of the run, with the validation before and after; its heads begin untrained.
      test: the entry of test.json for the last weights.
    """
    before, after = summary["validation_before"], summary["validation"]
    baseline = summary.get("validation_mean_baseline")  # older runs noted none
    measure = next(name for name in after if name != "loss")
    higher = measure == "balanced_accuracy"
    title = "balanced accuracy" if higher else f"MAE ({test['unit']})"
    rows = [
        (title, "before training", "after", "one class" if higher else "mean of the labels"),
        ("validation", before[measure], after[measure], baseline),
        ("test", None, test[measure if higher else "mae"], None if higher else test.get("mean_baseline_mae")),
    ]
    lines = [f"{row[0]:18s}" + "".join(f"{_cell(value):>20s}" for value in row[1:]) for row in rows]
    sign = -1 if higher else 1
    if sign * after[measure] >= sign * before[measure]:
        lines.append("training did not improve the validation: try a lower --lr or more steps (docs/faq.md)")
    elif baseline is not None and sign * after[measure] >= sign * baseline:
        lines.append("no better than the mean of the labels: try more steps, more data or another --lr (docs/faq.md)")
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"

"""One row per atom (flat) or one row per structure (mean, sum, max).

Features and the structure of each row enter; rows and their structure ids leave. NumPy only.
"""

import difflib

import numpy as np

from jaxatoms.types import InputError

AGGREGATIONS = ("flat", "mean", "sum", "max")


def aggregate(
    features: np.ndarray, structure: np.ndarray, how: str = "flat"
) -> tuple[np.ndarray, np.ndarray]:
    """Reduces atom features over the atoms of each structure.

    Args:
      features: [n_row, d] one row per atom.
      structure: [n_row] integer structure ids, in any order.
      how: "flat" (the paper's method, rows untouched), "mean", "sum" or "max".

    Returns:
      rows [n_out, d] and their structure ids [n_out]; sorted by id unless flat. Means and sums accumulate and
      stay in float64, the others keep the type of `features`.

    Raises:
      InputError: `how` is unknown, or lengths differ.

    Source: docs/reference/csi.md, Aggregation.
    """
    check_aggregation(how)
    if len(features) != len(structure):
        raise InputError(
            f"{len(features)} feature rows but {len(structure)} structure ids; give one id per row"
        )
    if how == "flat" or len(features) == 0:
        return features, structure
    order, starts, ids = segments(structure)
    rows = features if order is None else features[order]
    if how == "max":
        return np.maximum.reduceat(rows, starts), ids
    sums = np.add.reduceat(rows, starts, dtype=np.float64)
    counts = np.diff(np.append(starts, len(structure)))
    return (sums / counts[:, None] if how == "mean" else sums), ids


def check_aggregation(how: str) -> None:
    """Raises InputError unless `how` is one of AGGREGATIONS."""
    if how not in AGGREGATIONS:
        close = difflib.get_close_matches(str(how), AGGREGATIONS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown aggregation {how!r}{hint} use one of {', '.join(AGGREGATIONS)}")


def segments(ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Row order that makes equal `ids` contiguous (None if sorted already), segment starts, sorted ids."""
    ids = np.asarray(ids)
    order = None if np.all(ids[1:] >= ids[:-1]) else np.argsort(ids, kind="stable")
    ordered = ids if order is None else ids[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return order, starts, ordered[starts]

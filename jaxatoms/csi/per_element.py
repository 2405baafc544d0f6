"""CSI element by element: is the distance in the carbons, or in elements the upstream set never saw?

Features with atomic numbers enter; one row per element leaves. Only flat (per-atom) features make sense here.
"""

from typing import NamedTuple

import numpy as np

from jaxatoms.csi.aggregation import segments
from jaxatoms.csi.frechet import frechet_terms
from jaxatoms.csi.moments import Moments, covariance, moments_of_rows, to_host
from jaxatoms.types import InputError


class ElementScore(NamedTuple):
    """CSI of one element's atoms."""

    atomic_number: int
    n_upstream: int  # atoms
    n_downstream: int
    csi: float  # NaN where either side has fewer than min_atoms


def element_moments(features: np.ndarray, elements: np.ndarray) -> dict[int, Moments]:
    """Moments of each element's atoms.

    Args:
      features: [n_row, d].
      elements: [n_row] atomic numbers.

    Returns:
      {atomic number: `Moments`} in increasing order. Merge shards with `moments.merge` per element.

    Raises:
      InputError: lengths differ.
    """
    if len(features) != len(elements):
        raise InputError(f"{len(features)} feature rows but {len(elements)} atomic numbers; give one per row")
    order, starts, ids = segments(elements)
    rows = features if order is None else features[order]
    pieces = np.split(rows, starts[1:])
    return {int(z): moments_of_rows(piece) for z, piece in zip(ids, pieces, strict=True)}


def per_element_csi(
    upstream: dict[int, Moments], downstream: dict[int, Moments], min_atoms: int = 2
) -> list[ElementScore]:
    """CSI restricted to each element of the downstream set.

    Args:
      upstream, downstream: from `element_moments`.
      min_atoms: fewer atoms than this on either side give NaN; at least 2. Values below the feature width
        rest on singular covariances and overestimate the distance.

    Returns:
      `ElementScore`s, most frequent downstream element first.
    """
    min_atoms = max(2, min_atoms)
    counts = {
        z: (int(upstream[z].count) if z in upstream else 0, int(m.count)) for z, m in downstream.items()
    }
    scores = []
    for z, (n_u, n_d) in sorted(counts.items(), key=lambda item: -item[1][1]):
        known = min(n_u, n_d) >= min_atoms
        scores.append(
            ElementScore(z, n_u, n_d, _score(upstream[z], downstream[z]) if known else float("nan"))
        )
    return scores


def coverage(scores: list[ElementScore]) -> float:
    """Share of downstream atoms whose element could be scored."""
    total = sum(s.n_downstream for s in scores)
    return sum(s.n_downstream for s in scores if not np.isnan(s.csi)) / total if total else 0.0


def weighted_csi(scores: list[ElementScore]) -> float:
    """Mean of the scored elements' CSI weighted by downstream atoms; NaN if none was scored."""
    known = [s for s in scores if not np.isnan(s.csi)]
    return (
        float(np.average([s.csi for s in known], weights=[s.n_downstream for s in known]))
        if known
        else float("nan")
    )


def _score(up: Moments, down: Moments) -> float:
    terms = frechet_terms([to_host(up).mean], [covariance(up)], [to_host(down).mean], [covariance(down)])
    return float(terms.mean[0, 0] + terms.covariance[0, 0])

"""The whole CSI procedure on features in memory: aggregate, summarise, compare all upstreams with all tasks.

Feature sets enter, a table leaves. Choosing structures (`sampling`) and extracting features happen before.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxatoms.csi.aggregation import aggregate
from jaxatoms.csi.features import FeatureSet, check_features, check_same_width
from jaxatoms.csi.frechet import FrechetTerms, frechet_terms
from jaxatoms.csi.moments import Moments, covariance, moments_of_rows, to_host


def csi_matrix(upstream: Sequence[Moments], downstream: Sequence[Moments]) -> np.ndarray:
    """[n_upstream, n_downstream] CSI of moments, e.g. from `load_moments`; errors as `frechet_terms`."""
    terms = csi_terms(upstream, downstream)
    return terms.mean + terms.covariance


def csi_terms(upstream: Sequence[Moments], downstream: Sequence[Moments]) -> FrechetTerms:
    """The same split into the mean part and the covariance part."""
    sides = [
        ([to_host(m).mean for m in side], [covariance(m) for m in side]) for side in (upstream, downstream)
    ]
    return frechet_terms(*sides[0], *sides[1])


def feature_moments(data: FeatureSet, aggregation: str = "flat") -> Moments:
    """Moments of a checked feature set after `aggregation` ("flat", "mean", "sum", "max")."""
    check_features(data)
    rows, _ = aggregate(data.features, data.structure, aggregation)
    return moments_of_rows(rows)


def chemical_similarity_index(
    upstream: FeatureSet, downstream: FeatureSet, aggregation: str = "flat"
) -> float:
    """CSI of one pair; lower means better aligned.

    Raises:
      InputError: the widths differ or a set cannot be summarised.

    Example:
      chemical_similarity_index(load_features("ani1x.npz"), load_features("rmd17.npz"))

    Source: docs/reference/csi.md, Definition and Aggregation.
    """
    check_same_width(upstream, downstream)
    pair = [[feature_moments(data, aggregation)] for data in (upstream, downstream)]
    return float(csi_matrix(*pair)[0, 0])


def csi_table(upstream: Mapping[str, Moments], downstream: Mapping[str, Moments]) -> list[dict]:
    """A row per pair, keys `upstream, downstream, csi, mean_term, covariance_term`, by task, then CSI."""
    terms = csi_terms(list(upstream.values()), list(downstream.values()))
    rows = [
        {
            "upstream": u,
            "downstream": d,
            "csi": float(terms.mean[i, j] + terms.covariance[i, j]),
            "mean_term": float(terms.mean[i, j]),
            "covariance_term": float(terms.covariance[i, j]),
        }
        for j, d in enumerate(downstream)
        for i, u in enumerate(upstream)
    ]
    order = {d: j for j, d in enumerate(downstream)}
    return sorted(rows, key=lambda row: (order[row["downstream"]], row["csi"]))

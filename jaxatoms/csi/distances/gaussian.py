"""Distances of the Gaussians that are fitted to feature clouds: the index itself and its two parts."""

import numpy as np

from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.frechet import frechet_distance, frechet_terms


def mean_part(mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2; arguments as `frechet_distance`, of which it is the first part."""
    gap = mean_a - mean_b
    return float(gap @ gap)


def covariance_part(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """tr A + tr B - 2 tr (A B)^(1/2) of the covariances; arguments and errors as `frechet_distance`."""
    return float(frechet_terms([mean_a], [covariance_a], [mean_b], [covariance_b]).covariance[0, 0])


FRECHET = Distance(
    name="frechet",
    title="CSI",
    description="Squared Frechet distance of two Gaussians (Dowson and Landau 1982): the published index.",
    needs="moments",
    function=frechet_distance,
)
MEAN = Distance(
    name="mean",
    title="CSI mean",
    description="Squared distance of the means: the first part of the index.",
    needs="moments",
    function=mean_part,
)
COVARIANCE = Distance(
    name="covariance",
    title="CSI covariance",
    description="Squared Bures distance of the covariances (Dowson and Landau 1982): the second part of the index.",
    needs="moments",
    function=covariance_part,
)

"""Squared Frechet distance between Gaussians, for all (upstream, downstream) pairs at once.

Means and covariances enter, distances leave. Host float64 (LAPACK), two symmetric eigen-decompositions per
pair, the upstream's being shared by all its pairs. Needs neither `sqrtm` nor the reference's eps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxatoms.types import InputError

CHUNK_ELEMENTS = 2**25  # float64 elements of inner matrices held at once, 256 MiB


Stack = Sequence[np.ndarray] | np.ndarray  # sets along the first axis


class FrechetTerms(NamedTuple):
    """The two parts of the distance, both >= 0, `[n_upstream, n_downstream]` or scalar float64."""

    mean: np.ndarray  # |mu_U - mu_D|^2
    covariance: np.ndarray  # tr S_U + tr S_D - 2 tr (S_U S_D)^(1/2)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians; see `frechet_terms` for arguments, errors and source."""
    terms = frechet_terms([mean_a], [cov_a], [mean_b], [cov_b])
    return float(terms.mean[0, 0] + terms.covariance[0, 0])


def frechet_distances(
    mean_u: Stack,
    cov_u: Stack,
    mean_d: Stack,
    cov_d: Stack,
) -> np.ndarray:
    """[n_upstream, n_downstream] squared Frechet distances; see `frechet_terms`."""
    terms = frechet_terms(mean_u, cov_u, mean_d, cov_d)
    return terms.mean + terms.covariance


def frechet_terms(
    mean_u: Stack,
    cov_u: Stack,
    mean_d: Stack,
    cov_d: Stack,
) -> FrechetTerms:
    """Both parts of the squared Frechet distance for every pair.

    Covariances may be singular. Bitwise equal moments give exactly 0.

    Args:
      mean_u: [n_upstream, d] means, or a list of vectors.
      cov_u: [n_upstream, d, d] symmetric covariances, or a list (lists avoid a copy when d is large).
      mean_d, cov_d: the same for the downstream sets.

    Returns:
      `FrechetTerms` of [n_upstream, n_downstream] arrays.

    Raises:
      InputError: widths differ, or a mean or covariance is not finite.

    Source: Dowson and Landau, J. Multivariate Anal. 12, 450 (1982); docs/reference/csi.md, Definition.
    """
    for name, means, covs in (("upstream", mean_u, cov_u), ("downstream", mean_d, cov_d)):
        _check(name, means, covs, len(mean_u[0]))
    gap = np.asarray(mean_u, float)[:, None] - np.asarray(mean_d, float)[None]
    trace_u, trace_d = ([np.trace(c) for c in covs] for covs in (cov_u, cov_d))
    roots = np.stack([_trace_roots(cov, cov_d) for cov in cov_u])
    spread = np.maximum(np.add.outer(trace_u, trace_d) - 2 * roots, 0)
    same = np.array([[np.array_equal(a, b) for b in cov_d] for a in cov_u])
    return FrechetTerms(np.einsum("udi,udi->ud", gap, gap), np.where(same, 0.0, spread))


def symmetric_factor(cov: np.ndarray) -> np.ndarray:
    """[d, rank] matrix F with F F^T = `cov`, from its eigenvalues above d eps times the largest."""
    values, vectors = np.linalg.eigh(cov)
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def _trace_roots(cov: np.ndarray, others: Stack) -> np.ndarray:
    """tr (cov other)^(1/2) for each of `others`: the eigenvalues of F^T other F are those of cov other."""
    factor = symmetric_factor(np.asarray(cov, float))
    if factor.shape[1] == 0:
        return np.zeros(len(others))
    size = max(1, CHUNK_ELEMENTS // cov.shape[0] ** 2)
    chunks = (others[i : i + size] for i in range(0, len(others), size))
    return np.concatenate([_roots_of_chunk(factor, np.asarray(chunk, float)) for chunk in chunks])


def _roots_of_chunk(factor: np.ndarray, covs: np.ndarray) -> np.ndarray:
    inner = factor.T @ (covs @ factor)
    values = np.linalg.eigvalsh((inner + inner.swapaxes(-1, -2)) / 2)
    return np.sqrt(np.maximum(values, 0)).sum(-1)


def _check(name: str, means: Stack, covs: Stack, width: int) -> None:
    if len(means) != len(covs):
        raise InputError(
            f"{name} has {len(means)} means but {len(covs)} covariances; give one of each per set"
        )
    for i, (mean, cov) in enumerate(zip(means, covs, strict=True)):
        if np.shape(mean) != (width,) or np.shape(cov) != (width, width):
            raise InputError(
                f"{name} set {i} has mean {np.shape(mean)} and covariance {np.shape(cov)}, expected "
                f"width {width}: extract all sets with the same model and layer"
            )
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise InputError(f"{name} set {i} has non-finite moments: check its features for NaN or overflow")

"""The variance of what is linear in a network's last features, with two constants calibrated on held-out errors.

With phi the features of a structure, C the sum of phi phi^T over training structures, and constants alpha and zeta,

    variance = alpha^2 phi^T (C + zeta^2 I)^-1 phi,

which is the posterior variance of Bayesian linear regression with noise alpha^2 and the prior variance (alpha/zeta)^2
of each weight. Everything is NumPy in float64. Source: Bigi, Chong, Ceriotti, Grasselli 2024, arXiv 2403.02251.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxatoms.types import InputError

# zeta^2 that are tried, in units of the mean eigenvalue of C. Far below, rounding of float32 features counts as
# variance; far above, the variance is the squared length of the features, whatever the training structures were.
RIDGES = 10.0 ** np.arange(-8, -1.9, 0.5)
MIN_ERRORS = 2  # of which a scale can be estimated


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """A calibrated last layer.

    Attributes:
      factor: [d, d] float64; the length of `factor @ phi` is the standard deviation.
      alpha: scale of the standard deviation, in the unit of the errors that it was calibrated on.
      zeta: square root of what is added to the eigenvalues of C.
    """

    factor: np.ndarray
    alpha: float
    zeta: float

    def std(self, features: np.ndarray) -> np.ndarray:
        """[n] float64 standard deviations, in the unit of the errors, of features [n, d]."""
        return np.linalg.norm(np.asarray(features, np.float64) @ self.factor.T, axis=1)


def second_moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """([d, d] sum of phi phi^T, number of structures) of features [n, d] that come in parts.

    Raises:
      InputError: no structure, or features that are zero or not finite.
    """
    total, n = np.zeros((0, 0)), 0
    for part in parts:
        rows = np.asarray(part, np.float64)
        total = rows.T @ rows if n == 0 else total + rows.T @ rows
        n += len(rows)
    if n == 0 or not 0 < np.trace(total) < np.inf:
        what = "there is no training structure with a label" if n == 0 else "the features are zero or not finite"
        raise InputError(f"{what}; train on structures with labels of what is to have an uncertainty")
    return total, n


def calibrate(moments: np.ndarray, features: np.ndarray, errors: np.ndarray) -> LastLayer:
    """The last layer whose two constants make held-out errors likely, as Gaussian with mean 0.

    For each zeta the most likely alpha^2 is the mean of squared error over variance with alpha = 1. Of `RIDGES` the
    smallest is taken whose likelihood is within one standard error of the best: a few errors cannot tell more, and a
    small zeta keeps the variance of what training lacks. A factor per structure in both features and errors, such as
    one over its number of atoms, changes neither.

    Args:
      moments: [d, d], of `second_moments`.
      features: [n, d] of structures outside the training; rows of zeros have no variance and are refused.
      errors: [n] prediction less label; NaN where there is no label.

    Raises:
      InputError: fewer than two errors, errors that are all zero, or features that are zero.
    """
    known = np.isfinite(errors)
    errors, features = np.asarray(errors, np.float64)[known], np.asarray(features, np.float64)[known]
    if len(errors) < MIN_ERRORS or not errors.any():
        what = f"{len(errors)} labelled structures" if len(errors) < MIN_ERRORS else "errors that are all zero"
        raise InputError(f"an uncertainty cannot be calibrated on {what}; give a larger validation split")
    values, vectors = np.linalg.eigh(moments)
    values = np.maximum(values, 0)  # rounding alone makes them negative
    ridges = RIDGES * values.mean()
    variances = (features @ vectors) ** 2 @ (1 / (values[:, None] + ridges))  # [n, n_ridge]
    if not (variances > 0).all():
        raise InputError("a validation structure has features that are all zero; leave it out")
    squared = np.mean(errors[:, None] ** 2 / variances, axis=0)
    chosen = _smallest_as_good(0.5 * (np.log(squared * variances) + errors[:, None] ** 2 / (squared * variances)))
    alpha = float(np.sqrt(squared[chosen]))
    factor = alpha * vectors.T / np.sqrt(values + ridges[chosen])[:, None]
    return LastLayer(factor, alpha, float(np.sqrt(ridges[chosen])))


def _smallest_as_good(loss: np.ndarray) -> int:
    """The first column of losses [n, k] whose mean exceeds the lowest by no more than the standard error of that."""
    excess = loss - loss[:, [np.argmin(loss.mean(axis=0))]]
    error = excess.std(axis=0, ddof=1) / np.sqrt(len(loss))
    return int(np.argmax(excess.mean(axis=0) <= error))

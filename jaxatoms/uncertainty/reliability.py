"""How far errors bear out the standard deviations that were given for them: figures and a plot."""

from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

from jaxatoms.plots import drawing

EXPECTED = (0.6827, 0.9545)  # of a Gaussian, within 1 and 2 standard deviations
_PER_BIN, _MOST_BINS = 10, 10


def constant_std(errors: np.ndarray) -> float:
    """The one standard deviation under which errors [n] are most likely, as Gaussian with mean 0."""
    return float(np.sqrt(np.mean(np.square(errors))))


def figures(errors: np.ndarray, std: np.ndarray, constant: float) -> dict:
    """Figures of errors [n] with their standard deviations [n], as JSON values.

    Args:
      constant: one standard deviation for all structures, from other errors, to compare with.

    Returns:
      n; mae, rmse and mean_std, in the unit of the errors; coverage_1 and coverage_2, the shares of errors within 1 and
      2 standard deviations (expected: 0.683, 0.954); mean_standardised and rms_standardised of error / std (expected:
      0, 1); nll and nll_constant, the mean negative logarithms of the Gaussian density of the errors under `std` and
      under `constant`; spearman, the rank correlation of std and absolute error (None where one of them is constant).
    """
    standardised, absolute = errors / std, np.abs(errors)
    return {
        "n": len(errors),
        "mae": float(absolute.mean()),
        "rmse": constant_std(errors),
        "mean_std": float(std.mean()),
        "coverage_1": float(np.mean(absolute <= std)),
        "coverage_2": float(np.mean(absolute <= 2 * std)),
        "mean_standardised": float(standardised.mean()),
        "rms_standardised": constant_std(standardised),
        "nll": negative_log_likelihood(errors, std),
        "nll_constant": negative_log_likelihood(errors, np.full(len(errors), constant)),
        "spearman": rank_correlation(std, absolute),
    }


def negative_log_likelihood(errors: np.ndarray, std: np.ndarray) -> float:
    """The mean over errors [n] of -log of the Gaussian density with mean 0 and standard deviations [n]."""
    return float(np.mean(0.5 * (errors / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's coefficient of two arrays [n]; None where one of them does not vary."""
    from scipy.stats import spearmanr  # takes longer to import than all else here

    return float(spearmanr(a, b).statistic) if min(np.ptp(a), np.ptp(b)) > 0 else None


def coverage(errors: np.ndarray, std: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[k] shares of errors [n] within the central Gaussian intervals that should hold `shares` [k] of them."""
    widths = np.array([NormalDist().inv_cdf((1 + share) / 2) for share in shares])
    return np.mean(np.abs(errors / std)[:, None] <= widths, axis=0)


def bins(errors: np.ndarray, std: np.ndarray) -> Iterator[tuple[float, float, int]]:
    """(root mean square of the std, of the error, number) of bins of equal numbers of structures, ascending in std."""
    n_bin = int(np.clip(len(std) // _PER_BIN, 1, _MOST_BINS))
    for own in np.array_split(np.argsort(std, kind="stable"), n_bin):
        yield constant_std(std[own]), constant_std(errors[own]), len(own)


def plot_reliability(path: Path, errors: np.ndarray, std: np.ndarray, unit: str, title: str) -> None:
    """Expected against observed coverage, and the error of bins of structures against the predicted std.

    Args:
      unit: of errors [n] and std [n].

    Raises:
      InputError: the file cannot be written.
    """
    shares = np.linspace(0.01, 0.99, 99)
    with drawing(path, 2, panel=(4, 4), columns=2) as (figure, (left, right)):
        left.plot([0, 1], [0, 1], "k-", linewidth=0.5)
        left.plot(shares, coverage(errors, std, shares))
        left.set_xlabel("expected share within the interval")
        left.set_ylabel("observed share")
        predicted, found, n = (np.array(column) for column in zip(*bins(errors, std), strict=True))
        right.plot(std, np.abs(errors), ".", markersize=2, color="0.7", label="one structure", rasterized=True)
        # The relative error of a root mean square of n Gaussian errors is 1 / sqrt(2 n).
        right.errorbar(predicted, found, found / np.sqrt(2 * n), fmt="o", markersize=4, label="RMS of a bin")
        ends = [std.min(), std.max()]
        right.plot(ends, ends, "k-", linewidth=0.5)
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel(f"predicted standard deviation ({unit})".replace(" ()", ""))
        right.set_ylabel(f"absolute error ({unit})".replace(" ()", ""))
        right.tick_params(axis="x", which="both", labelsize=8, labelrotation=30)
        right.legend(fontsize=8)
        for axis in (left, right):
            axis.grid()
        figure.suptitle(title, fontsize=8)

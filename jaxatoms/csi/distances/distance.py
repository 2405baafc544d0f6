"""What is to be known of a distance between feature clouds so that a command can offer it."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

OfMoments = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]
OfRows = Callable[[np.ndarray, np.ndarray], float]


class RowBlocks(NamedTuple):
    """Feature rows of a set, in random blocks of whole structures."""

    rows: np.ndarray  # [n_row, d] float
    block: np.ndarray  # [n_row] int, the block that a row's structure is in
    n_blocks: int

    def chosen(self, chosen: np.ndarray) -> np.ndarray:
        """[n, d] rows of the blocks for which `chosen` [n_blocks] is True, in their order."""
        return self.rows[chosen[self.block]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance between two feature clouds, as `experiments.csi --distance` offers it.

    Attributes:
      name: of the option's value, and in files.
      title: begins columns ("CSI" gives "CSI Score", "CSI corrected") and stands at axes.
      description: one sentence with its source.
      needs: what `function` takes. "moments": mean [d] and covariance [d, d] of one set, then of the other, float64.
        "rows": rows [n_x, d] and [n_y, d], float.
      function: the distance, from what it needs.
      lower_is_closer: False for a similarity.
      signed: whether values may be negative, as those of similarities and of unbiased estimators; others are cut at 0.
      corrects: whether the excess of a finite sample is estimated from resamples and taken off. False where values vary
        more from one call to the next, over which rows are paired, than the excess is large.
      max_rows: rows of a set that enter at most, where time grows faster than the number of rows; None: all.
      resample: (x, y, chosen_x [n, n_blocks of x], chosen_y) -> [n] values for n choices of blocks, where that is
        cheaper than calling `function` for each; None: `function` is called for each.
    """

    name: str
    title: str
    description: str
    needs: Literal["moments", "rows"]
    function: OfMoments | OfRows
    lower_is_closer: bool = True
    signed: bool = False
    corrects: bool = True
    max_rows: int | None = None
    resample: Callable[[RowBlocks, RowBlocks, np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def estimates(self) -> tuple[str, ...]:
        """The kinds of value that there are: "plain" (the function's), "corrected" and "extrapolated"."""
        corrected = ("corrected",) if self.corrects else ()
        return ("plain", *corrected, *(("extrapolated",) if self.needs == "moments" else ()))

    @property
    def columns(self) -> dict[str, tuple[str, str, str]]:
        """Kind of value -> its columns in tables: the value, and the ends of its interval."""
        return {
            "plain": (f"{self.title} Score", "low", "high"),
            "corrected": (f"{self.title} corrected", "corrected low", "corrected high"),
            "extrapolated": (f"{self.title} extrapolated", "extrapolated low", "extrapolated high"),
        }

    @property
    def default_estimate(self) -> str:
        """The kind of value that sets are ranked by."""
        return "corrected" if self.corrects else "plain"


def resample_rows(
    function: OfRows, x: RowBlocks, y: RowBlocks, chosen_x: np.ndarray, chosen_y: np.ndarray
) -> np.ndarray:
    """[n] values of `function` for n choices of blocks.

    Args:
      function: of rows [n_x, d] and [n_y, d].
      x, y: the two sets.
      chosen_x, chosen_y: [n, n_blocks] bool.
    """
    choices = zip(chosen_x, chosen_y, strict=True)
    return np.array([function(x.chosen(from_x), y.chosen(from_y)) for from_x, from_y in choices])

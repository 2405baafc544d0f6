"""Which upstream structures a run sees: the seeded draw of N from those available, and `--n` as typed."""

import re
from decimal import Decimal

import numpy as np

from jaxatoms.types import InputError

_NUMBER = re.compile(r"\d+(\.\d*)?([eE]\+?\d{1,3})?")


def parse_count(text: str | int) -> int | str:
    """A count as typed on the command line: "2e6" -> 2000000, exactly; "all" stays "all".

    Raises:
      InputError: not a whole positive number.

    Example:
      >>> parse_count("1.5e3")
      1500
    """
    text = str(text).strip()
    if text.lower() == "all":
        return "all"
    # Decimal keeps 1e23 exact, where float would give 99999999999999991611392.
    value = Decimal(text) if _NUMBER.fullmatch(text) else Decimal(0)
    if value < 1 or value != int(value):
        raise InputError(f"count '{text}' is not a whole positive number; write e.g. 2000, 2e6 or all")
    return int(value)


def draw_subset(n_available: int, n: int | str, seed: int = 0) -> np.ndarray:
    """[n] int64 distinct indices below n_available, in the order drawn; for "all" every index, in order.

    The same subset serves every epoch; the loader shuffles it anew each time.

    Raises:
      InputError: more asked for than there are. (The reference takes fewer, silently.)

    Source: docs/reference/pretraining.md, Budget; reference `sampling_utils.py`:
    RandomState(seed).choice(range(n_available), n, replace=False).
    """
    if n == "all":
        return np.arange(n_available)
    assert isinstance(n, int)
    if n > n_available:
        raise InputError(
            f"asked for {n} structures, but only {n_available} are available; lower --n or use `--n all`"
        )
    # An int draws the same numbers as a range of that length, without making it an array first.
    return np.random.RandomState(seed).choice(n_available, n, replace=False)

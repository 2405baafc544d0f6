"""Figures without a display, that appear whole or not at all. Matplotlib is imported only when something is drawn."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxatoms.io import replacing
from jaxatoms.types import InputError

# Okabe and Ito's colours, which people with any colour vision tell apart (jfly.uni-koeln.de/color), without the yellow,
# which is faint on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
LOG_RATIO = 50  # between bars of a panel; from there on the small ones would vanish on a linear axis
_STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.3}


@contextlib.contextmanager
def drawing(path: Path, n_panel: int = 1, *, panel=(4.0, 3.0), columns: int = 1, dpi: int = 120) -> Iterator[Any]:
    """Yields (figure, axes of `n_panel` panels); the figure is written to `path` when the block ends well.

    Args:
      panel: width and height of a panel, inches.
      columns: panels side by side, at most.

    Raises:
      InputError: the file cannot be written.

    Example:
      with drawing(Path("curve.png")) as (figure, (axis,)):
          axis.plot(x, y)
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(columns, n_panel))
    rows = -(-n_panel // columns)
    with rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}):
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="tight")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes[n_panel:]:
            axis.set_visible(False)
        yield figure, axes[:n_panel]
        try:
            with replacing(path) as draft:
                figure.savefig(draft, dpi=dpi)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {path}: {error}; choose another place") from None


def spread_bars(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the heights of bars differ too much for a linear one."""
    if len(values) and 0 < LOG_RATIO * min(values) < max(values):
        axis.set_yscale("log")

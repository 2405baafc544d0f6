"""Figures without a display, that appear whole or not at all. Matplotlib is imported only when something is drawn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxatoms.io import replacing
from jaxatoms.types import InputError


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(columns, n_panel))
    rows = -(-n_panel // columns)
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

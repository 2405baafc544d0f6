"""What tables call the data sets of a comparison."""

from collections.abc import Sequence
from pathlib import Path


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> what tables call it: without its path, unless two would then be called the same."""
    short = {n: Path(n[5:]).stem if n.startswith("file:") else n.partition("@")[0] for n in names}
    labels = list(short.values())
    return {n: label if labels.count(label) == 1 else n for n, label in short.items()}

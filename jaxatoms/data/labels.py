"""Which labels a data set has at all, and what a file calls them where it has none under the usual names."""

import numpy as np

from jaxatoms.data.readers import ase_file
from jaxatoms.data.store import Store

LABELS = ("energy", "forces")
_ROWS = 1 << 20  # atoms looked at together


def missing_labels(store: Store) -> list[str]:
    """Those of LABELS that no record has."""
    has = {"energy": not np.isnan(store.energy).all(), "forces": _any_number(store.column("forces"))}
    return [label for label in LABELS if not has[label]]


def _any_number(values: np.ndarray) -> bool:
    blocks = (values[first : first + _ROWS] for first in range(0, len(values), _ROWS))
    return any(not np.isnan(block).all() for block in blocks)


def label_hint(store: Store) -> str:
    """Which keys of a `file:` source look like the labels that no record has, and how to name them; or ""."""
    source, missing = store.manifest["source"], missing_labels(store)
    if source.get("reader") != "ase_file" or not missing:
        return ""
    found = ase_file.label_candidates(source["path"])
    likely = {label: found[label] for label in missing if found[label]}
    if not likely:
        return ""
    keys = ",".join(likely.get(label, [""])[0] for label in LABELS).rstrip(",")
    listed = ", ".join(key for label in missing for key in found[label])
    return f"{listed} may be labels: write file:{source['path']}#{keys}"

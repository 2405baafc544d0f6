"""The file of a fitted uncertainty, which lies beside the arrays of its checkpoint.

    uncertainty.npz   factor_0 [d, d] of head 0, factor_1, ...; info: JSON text with weights (the identity of the
                      checkpoint) and heads, {number: {name, alpha, zeta, ...}}

It is not among the files that `complete.json` lists, so that a checkpoint stays whole with and without it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxatoms.io import open_npz, replacing
from jaxatoms.types import InputError
from jaxatoms.uncertainty.last_layer import LastLayer

FILE = "uncertainty.npz"


class Saved(NamedTuple):
    """What a file holds."""

    weights: str  # identity of the checkpoint that it was fitted for
    heads: dict[int, LastLayer]  # by number of the head


def save(path: Path, weights: str, heads: Mapping[int, LastLayer], records: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the calibrated last layers of a checkpoint.

    Args:
      weights: identity of the checkpoint.
      heads: by number of the head.
      records: further JSON values of each head.

    Raises:
      InputError: the file cannot be written.
    """
    own = {str(i): {"alpha": head.alpha, "zeta": head.zeta, **records[i]} for i, head in heads.items()}
    info = json.dumps({"weights": weights, "heads": own})
    arrays: dict[str, Any] = {f"factor_{i}": head.factor for i, head in heads.items()}
    try:
        with replacing(path) as draft:
            np.savez(draft, info=np.array(info), **arrays)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make the checkpoint's folder writable") from None


def load(path: Path) -> Saved:
    """What `save` wrote.

    Raises:
      InputError: no such file, or a damaged one.
    """
    remedy = "run experiments.uncertainty again, or remove the file"
    with open_npz(path, "is no fitted uncertainty", remedy) as saved:
        info = json.loads(str(saved["info"]))
        heads = {int(i): LastLayer(saved[f"factor_{i}"], own["alpha"], own["zeta"])
                 for i, own in info["heads"].items()}  # fmt: skip
        return Saved(info["weights"], heads)

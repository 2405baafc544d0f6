"""`features.npz`: node features with the structure that each row belongs to, checked when it is read.

Arrays `features [n_row, d]`, `structure [n_row]`, optional `class [n_row]` (label of the row's structure),
`element [n_row]` (atomic number) and `draw [n_row]` (which draw of a sample that repeats structures). No model is known
here; any extractor can write the file.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxatoms.io import open_npz
from jaxatoms.types import InputError


class FeatureSet(NamedTuple):
    """Node features of a dataset."""

    features: np.ndarray  # [n_row, d] float
    structure: np.ndarray  # [n_row] int
    classes: np.ndarray | None = None  # [n_row], stored as `class`; equal within a structure
    element: np.ndarray | None = None  # [n_row] atomic number
    name: str = "features"  # for messages
    draw: np.ndarray | None = None  # [n_row] int; differs between copies of a structure that was drawn repeatedly

    @property
    def draws(self) -> np.ndarray:
        """[n_row] ids of which every drawn structure has its own."""
        return self.structure if self.draw is None else self.draw

    def class_of_structure(self) -> np.ndarray:
        """Class of each structure, ordered by structure id.

        Raises:
          InputError: there are no classes.
        """
        if self.classes is None:
            raise InputError(f"{self.name} has no classes: store an array 'class' with one label per row")
        return self.classes[np.unique(self.structure, return_index=True)[1]]


def check_features(data: FeatureSet) -> FeatureSet:
    """Returns `data` unchanged if its moments can be computed.

    Raises:
      InputError: wrong shapes or types, fewer than 2 rows, NaN or infinity (naming the structure), or all
        rows equal. A column that is constant alone is allowed: dead channels are common and add nothing.
    """
    x, name = data.features, data.name
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind != "f":
        raise InputError(f"{name}: features are {x.dtype} of shape {x.shape}, expected floats [rows, width]")
    _check_columns(data)
    if len(x) < 2:
        raise InputError(f"{name}: {len(x)} feature rows, need at least 2 for a covariance; add structures")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{name}: structure {data.structure[row]} has NaN or infinite features (row {row}, {bad.sum()} "
            "such rows); remove it or extract it again"
        )
    if (x == x[0]).all():
        raise InputError(
            f"{name}: all {len(x)} feature rows are equal; check that the extractor sees its input"
        )
    return data


def check_same_width(*sets: FeatureSet) -> None:
    """Raises InputError unless all sets have the same feature width."""
    for other in sets[1:]:
        a, b = sets[0].features.shape[1], other.features.shape[1]
        if a != b:
            raise InputError(
                f"{sets[0].name} has {a} features per row but {other.name} has {b}: extract both with "
                "the same model and layer"
            )


def save_features(path: str | os.PathLike, data: FeatureSet) -> None:
    """Writes a checked `FeatureSet` as npz; raises what `check_features` raises."""
    check_features(data)
    np.savez(path, **feature_arrays(data))  # type: ignore[arg-type]


def feature_arrays(data: FeatureSet) -> dict[str, np.ndarray]:
    """The arrays of a file of features; what is not known is left out."""
    optional = {"class": data.classes, "element": data.element, "draw": data.draw}
    known = {key: value for key, value in optional.items() if value is not None}
    return {"features": data.features, "structure": data.structure, **known}


def load_features(path: str | os.PathLike) -> FeatureSet:
    """Reads and checks `features.npz`.

    Returns:
      `FeatureSet` named after the path.

    Raises:
      InputError: the file is unreadable, an array is missing, or `check_features` objects.
    """
    with open_npz(path, "is not a readable features file", "remove it and extract it again") as archive:
        missing = [key for key in ("features", "structure") if key not in archive]
        if missing:
            raise InputError(
                f"{path} lacks array {missing[0]!r}; it holds {', '.join(archive.files) or 'nothing'}"
            )
        keys = ("features", "structure", "class", "element", "draw")
        arrays = {key: archive[key] for key in keys if key in archive}
    return check_features(
        FeatureSet(
            arrays["features"],
            arrays["structure"],
            arrays.get("class"),
            arrays.get("element"),
            str(path),
            arrays.get("draw"),
        )
    )


def _check_columns(data: FeatureSet) -> None:
    n = len(data.features)
    columns = {"structure": data.structure, "class": data.classes, "element": data.element, "draw": data.draw}
    for key, column in columns.items():
        if column is not None and column.shape != (n,):
            raise InputError(
                f"{data.name}: array {key!r} has shape {column.shape}, expected ({n},) like the rows"
            )
    if data.structure.dtype.kind not in "iu":
        raise InputError(f"{data.name}: structure ids are {data.structure.dtype}, expected integers")


def feature_info(path: Path) -> dict:
    """How a feature file was made; {} where it does not say."""
    try:
        with open_npz(path, "does not say how it was made", "extract it again") as archive:
            return json.loads(str(archive["info"]))
    except InputError:
        return {}

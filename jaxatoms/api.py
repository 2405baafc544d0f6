"""What `import jaxatoms` offers: a checkpoint as a model, predictions, data sets and their similarity."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from jaxatoms.ase import JaxAtomsCalculator
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.csi.features import FeatureSet, check_features
from jaxatoms.data import store
from jaxatoms.data.store import Store
from jaxatoms.features.extraction import Extracted, Request, draw_sample, extract, grouped, load_extracted
from jaxatoms.features.extractors import load_extractor
from jaxatoms.features.scores import score_pairs
from jaxatoms.inference.model import LoadedModel, restore_model
from jaxatoms.inference.prediction import Prediction, Predictor
from jaxatoms.types import InputError

BATCH_EDGES = 16_384
N_RESAMPLE = 200


class Model:
    """A checkpoint, ready to predict; made by `load_model`.

    Attributes:
      task: name of the head that is used.
      tasks: names of all heads.
      elements: symbols of the elements that the head was trained on.
      cutoff: Å.
      kind: "tasks" (energies and forces of several heads), "gradient", "direct", "scalar" or
        "properties".
    """

    def __init__(self, checkpoint: str, task: str | None, raw_weights: bool, precision: str | None, batch_edges: int):
        self._loaded = restore_model(checkpoint, raw_weights=raw_weights, precision=precision)
        self._batch_edges, self._task, self._precision = batch_edges, task, precision
        self._predictors: dict[bool, Predictor] = {}
        record = self._predictor(features=False).record
        self.task, self.kind, self.cutoff = record.name, self._loaded.kind, record.cutoff
        self.tasks = [known.name for known in self._loaded.meta.tasks]
        self.elements = [chemical_symbols[z] for z in record.elements if z < len(chemical_symbols)]

    def _predictor(self, features: bool) -> Predictor:
        if features not in self._predictors:
            self._predictors[features] = Predictor(self._loaded, self._task, self._batch_edges, features)
        return self._predictors[features]

    def predict(self, structures: ase.Atoms | Sequence[ase.Atoms], *, features: bool = False) -> list[Prediction]:
        """Predictions in the order of the structures, which are packed into batches.

        Args:
          structures: one or many; labels that they carry are not looked at.
          features: also return what the energy head reads, [n_node, d], of every structure.

        Returns:
          One `Prediction` per structure: energy in eV, forces [n_node, 3] in eV/Å, the properties of a model that
          learnt some, features, and `energy_std` in eV where experiments.uncertainty was run; None is what there is
          not.

        Raises:
          InputError: a structure that the model cannot take, or a prediction that is not finite.
        """
        given = [structures] if isinstance(structures, ase.Atoms) else list(structures)
        return self._predictor(features).predict_atoms(given)

    def calculator(self, **options: Any) -> JaxAtomsCalculator:
        """An ASE calculator of the same checkpoint, head and weights; `options` as `Calculator` takes them."""
        same: dict[str, Any] = {"raw_weights": self._loaded.raw_weights}
        if options.get("dtype") != "float64":
            same["precision"] = self._precision
        head = None if self.kind in ("scalar", "properties") else self.task
        return JaxAtomsCalculator(self._loaded.path, head, **same | options)

    def __repr__(self) -> str:
        own = f"{self._loaded.architecture.name}, {self.kind}, task {self.task!r}, {len(self.elements)} elements"
        return f"<jaxatoms.Model {self._loaded.path}: {own}, cutoff {self.cutoff:g} A>"


def load_model(
    checkpoint: str | Path,
    task: str | None = None,
    *,
    raw_weights: bool = False,
    precision: str | None = None,
    batch_edges: int = BATCH_EDGES,
) -> Model:
    """The model of a checkpoint.

    Args:
      checkpoint: a run folder (its best checkpoint on validation), RUN@last, a converted folder or a step folder.
      task: the head to use; needed where the checkpoint has several.
      raw_weights: the raw weights instead of their moving average.
      precision: of matrix products, "float32", "tf32" or "bfloat16"; default: that of the training.
      batch_edges: edges of a batch, at most; more of them suit a GPU.

    Raises:
      InputError: no such checkpoint or head.

    Example:
      >>> model = jaxatoms.load_model("runs/aspirin")
      >>> model.predict(ase.build.molecule("C6H6"))[0].forces
    """
    return Model(str(checkpoint), task, raw_weights, precision, batch_edges)


def predict(
    checkpoint: str | Path, structures: ase.Atoms | Sequence[ase.Atoms], task: str | None = None, **options: Any
) -> list[Prediction]:
    """`load_model(checkpoint, task, **options).predict(structures)`; load the model once to predict often."""
    return load_model(checkpoint, task, **options).predict(structures)


def open_dataset(
    name: str, data_root: str | Path | None = None, cache_dir: str | Path | None = None
) -> Store:
    """A data set by name, converted into memory-mapped columns where that has not been done.

    Args:
      name: `ani1x`, `rmd17:aspirin`, `NAME@PATH`, `file:my.extxyz`, `demo:organic`, ... (docs/datasets.md).
      data_root: folder of the data sets; default: the environment variable JAXATOMS_DATA.
      cache_dir: folder of converted data; default: JAXATOMS_CACHE, then ~/.cache/jaxatoms.

    Raises:
      InputError: an unknown name, missing or faulty files.

    Example:
      >>> data = jaxatoms.open_dataset("demo:organic")
      >>> len(data), data.take([0]).energy
    """
    return store.open_dataset(name, data_root, cache_dir)[1]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The Chemical Similarity Index of an upstream and a downstream set; lower is closer.

    Attributes:
      value: less its excess for the samples' sizes, the one to rank by.
      low, high: interval of `value` from resampled blocks of structures.
      plain: without the correction: the published procedure.
      upstream, downstream: what was compared.
    """

    value: float
    low: float
    high: float
    plain: float
    upstream: str
    downstream: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"CSI of {self.upstream} to {self.downstream}: {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


Side = str | Path | np.ndarray | Sequence[ase.Atoms]


def similarity(
    upstream: Side,
    downstream: Side,
    *,
    checkpoint: str | Path | None = None,
    task: str | None = None,
    n: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    data_root: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Similarity:
    """The Chemical Similarity Index: squared Fréchet distance between the node features of two sets.

    Args:
      upstream, downstream: each the name of a data set, a list of `ase.Atoms`, the path of an .npz file of features
        (docs/csi.md), or an array [n_row, d] of features whose rows are independent of each other.
      checkpoint: the network whose features are compared; not needed for features.
      task: of lists of `ase.Atoms`, the head whose graphs are built. Features do not depend on a head otherwise, so it
        is needed only where the checkpoint's heads differ in cutoff or neighbours.
      n: structures of a data set, at most: class-balanced of the upstream set, random of the downstream set.
      level: coverage of the interval.
      seed: of the draw, the blocks and the resamples.
      data_root, cache_dir: as `open_dataset`.

    Raises:
      InputError: a data set or structures without `checkpoint`, structures without `task` where heads differ in their
        graphs, or sets that cannot be compared.

    Example:
      >>> print(jaxatoms.similarity("demo:organic", "demo:aspirin", checkpoint="runs/mixed"))
    """
    how = SimpleNamespace(checkpoint=checkpoint, task=task, n=n, seed=seed, data_root=data_root, cache_dir=cache_dir)
    sides = [_extracted(side, role, how) for side, role in ((upstream, "upstream"), (downstream, "downstream"))]
    widths = [side.blocks.mean.shape[-1] for side in sides]
    if widths[0] != widths[1]:
        raise InputError(f"the two sets have {widths[0]} and {widths[1]} features; extract both with one network")
    names = [side.info["dataset"] for side in sides]
    pairs = {names[0]: sides[0]}, {names[1]: sides[1]}
    (row,) = score_pairs(*pairs, FRECHET, "corrected", SimpleNamespace(resamples=N_RESAMPLE, level=level, seed=seed))
    value, low, high = (row[column] for column in FRECHET.columns["corrected"])
    return Similarity(value, low, high, row[FRECHET.columns["plain"][0]], *names)


def _extracted(side: Side, role: str, how: SimpleNamespace) -> Extracted:
    """Moments of blocks of structures of one side of a comparison."""
    if isinstance(side, np.ndarray):
        return _of_rows(np.atleast_2d(side), np.arange(len(side)), role, how.seed)
    if isinstance(side, Path) or (isinstance(side, str) and side.endswith(".npz") and "@" not in side):
        return load_extracted(Path(side), "flat", None, how.seed)
    if how.checkpoint is None:
        raise InputError(f"the {role} set needs checkpoint=..., the network that extracts its features")
    if isinstance(side, str):
        extractor = load_extractor(str(how.checkpoint))
        sampling = "balanced" if role == "upstream" else "random"
        request = Request(dataset=side, n=str(how.n), sampling=sampling, seed=how.seed, clamp=True)
        sample = draw_sample(request, extractor, BATCH_EDGES, how.data_root, how.cache_dir)
        return extract(sample, extractor, keep=False, quiet=True)
    structures = [side] if isinstance(side, ase.Atoms) else list(side)
    if len(structures) < 2:
        raise InputError(f"the {role} set holds {len(structures)} structures; give at least two")
    model = restore_model(str(how.checkpoint))
    head = how.task or _any_head(model, structures)
    predictor = Predictor(model, head, BATCH_EDGES, features=True, uncertainty=False)
    rows = [prediction.features for prediction in predictor.predict_atoms(structures, f"the {role} set")]
    structure = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return _of_rows(np.concatenate(rows), structure, role, how.seed)


def _any_head(model: LoadedModel, structures: Sequence[ase.Atoms]) -> str | None:
    """The first head that knows the structures' elements: features are the same from every head of equal graphs.

    Raises:
      InputError: the heads' graphs differ.
    """
    records = model.meta.tasks
    if len({record.graph for record in records}) > 1:
        graphs = (f"{r.name} {r.cutoff:g} A and {r.max_neighbors} neighbours" for r in records)
        raise InputError(f"{model.path} has heads of different graphs ({', '.join(graphs)}); choose one with task=")
    elements = np.unique(np.concatenate([atoms.numbers for atoms in structures]))
    knowing = (record.name for record in records if np.isin(elements, record.elements).all())
    return next(knowing, records[0].name if records else None)


def _of_rows(features: np.ndarray, structure: np.ndarray, role: str, seed: int) -> Extracted:
    given = {"dataset": role, "extractor": None, "sampling": "given", "seed": None}
    return grouped(given, check_features(FeatureSet(features, structure, name=f"the {role} set")), "flat", None, seed)

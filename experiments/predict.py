"""Energies and forces (or a fine-tuned property) of structures from a checkpoint.

    python -m experiments.predict --checkpoint runs/ani1x --structures in.extxyz --out out.extxyz
    python -m experiments.predict --checkpoint runs/ani1x --structures in.traj --out out.db --features atoms.npz
    python -m experiments.predict --checkpoint runs/a runs/b runs/c --structures in.extxyz --out out.extxyz

Reads anything ASE reads and writes extended XYZ or an ASE database (.db), in the order read, energies in eV, forces in
eV/A. Memory is bounded whatever the length; the same command continues where a killed one ended. Several checkpoints
give their mean and standard deviation; one gives the standard deviation that experiments.uncertainty fitted for it.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Generator
from pathlib import Path

import ase
import numpy as np

from jaxatoms.data.frames import ARRAYS, NESTED, as_extxyz, with_results
from jaxatoms.data.readers.ase_file import ATOM_PREFIX, read_atoms
from jaxatoms.data.readers.checks import fail, require_file
from jaxatoms.inference import inputs
from jaxatoms.inference import model as inference
from jaxatoms.inference.ensemble import Ensemble
from jaxatoms.inference.prediction import Prediction, Predictor, Record, chunks, predict_each
from jaxatoms.inference.uncertainty import file_of
from jaxatoms.tools import cli, lock
from jaxatoms.tools.drafts import BytesDraft, DatabaseDraft, Draft, FailuresDraft, Journal, TableDraft, part_of, stamp
from jaxatoms.tools.runtime import prepare_process
from jaxatoms.types import InputError

XYZ, DATABASE = (".extxyz", ".xyz"), (".db",)
STANDARD_DEVIATIONS = ("energy_std", "forces_std")
_IN_DATABASE = ("numbers", "positions", "tags", "momenta", "masses", "initial_magmoms", "initial_charges")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to predict, and from which checkpoint."""

    checkpoint: tuple[str, ...]
    """Predictions are those of this checkpoint: RUN (its best-validation one), RUN@last, a converted folder or a step
    folder. Of several checkpoints they are means, with standard deviations."""
    structures: str
    """Structures are read from this file, in any format that ASE reads: .extxyz (also .xz, .gz), .traj, .db and
    others."""
    out: str
    """Results are written into this file (.extxyz, .xyz or .db), which appears when it is whole."""
    task: str | None = None
    """This names the task whose head is used; it is needed when the checkpoint has several."""
    features: str | None = None
    """Node features are also written into this .npz file, which experiments.csi --features reads."""
    raw_weights: bool = False
    """Use the raw weights and not their moving average."""
    batch_edges: int = 4096
    """A batch has this many edge slots; a GPU takes more."""
    on_failure: str = "stop"
    """A structure that the network cannot take, or whose prediction is not finite, ends the command (stop), or is left
    out and named in OUT.failures.json (skip)."""
    quiet: bool = False
    """Do not print the progress."""

    def __post_init__(self):
        cli.check_positive(self, "batch_edges")
        cli.check_choices(self, {"on_failure": ("stop", "skip")})
        if not self.checkpoint:
            raise InputError("--checkpoint needs one or several checkpoints, such as --checkpoint runs/ft")
        if self.features is not None and len(self.checkpoint) > 1:
            raise InputError("--features are those of one network; give one --checkpoint, or leave --features out")
        cli.check_suffix(self, "out", *XYZ, *DATABASE)
        cli.check_suffix(self, "features", ".npz")
        if Path(self.out).absolute() == Path(self.structures).absolute():
            raise InputError(f"--out is --structures ({self.out}); choose another --out")


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m experiments.predict`."""
    config = cli.parse(PredictConfig, argv, description=__doc__, prog="python -m experiments.predict")
    prepare_process()
    out = Path(config.out).absolute()
    with lock.hold(out.parent, part_of(out, "lock").name):
        return run(config)


def run(config: PredictConfig) -> int:
    """Predict, chunk by chunk."""
    source = require_file(config.structures)
    predictor = open_predictor(config)
    failures, journal = open_outputs(config, predictor)
    if journal.done and not config.quiet:
        print(f"continuing after {journal.done:,} structures")
    with contextlib.closing(_records(source, journal.done)) as records:
        for chunk in chunks(records, predictor.chunk_atoms):
            pairs, left_out = predict_chunk(config, predictor, source, chunk)
            journal.commit(len(chunk), {"failures": left_out, **_outputs(config, pairs, journal)})
            if not config.quiet:
                print(f"{journal.done:,} structures", end="\r", flush=True)
    if journal.done == 0:
        fail(source, "", "holds no structure", "check the file")
    failed = failures.read()
    if journal.done == len(failed):
        journal.path.unlink()
        fail(source, "", f"no structure can be predicted, the first since {failed[0]['reason']}", "check the file")
    journal.finish()
    failures.part.unlink()
    print(describe(config, journal.done - len(failed), predictor))
    if failed:
        print(f"{len(failed):,} structures were left out -> {failures.path}")
    return 0


def predict_chunk(
    config: PredictConfig, predictor: Predictor | Ensemble, source: Path, chunk: list[Record]
) -> tuple[list[tuple[Record, Prediction]], dict[int, str]]:
    """(structures with their predictions, reasons by the places of those that are left out).

    Raises:
      InputError: a structure cannot be predicted and --on-failure is stop.
    """
    if config.on_failure == "stop":
        try:
            return list(zip(chunk, predictor.predict(source, chunk), strict=True)), {}
        except InputError as error:
            raise InputError(f"{error}; with --on-failure skip the same command goes on without it") from None
    found = list(zip(chunk, predict_each(predictor, source, chunk), strict=True))
    left_out = {record.index: str(result) for record, result in found if isinstance(result, InputError)}
    return [(record, result) for record, result in found if isinstance(result, Prediction)], left_out


def open_predictor(config: PredictConfig) -> Predictor | Ensemble:
    """The model, or the models as one.

    Raises:
      InputError: no such checkpoint or head, or models that do not predict the same.
    """
    models = [inference.restore_model(path, raw_weights=config.raw_weights) for path in config.checkpoint]
    if len(models) > 1:
        return Ensemble(models, config.task, config.batch_edges)
    return Predictor(models[0], config.task, config.batch_edges, config.features is not None)


def open_outputs(config: PredictConfig, predictor: Predictor | Ensemble) -> tuple[FailuresDraft, Journal]:
    """The drafts of the outputs, cut where they are known to be whole.

    Raises:
      InputError: they were begun with other settings, or cannot be written.
    """
    source, out = Path(config.structures), Path(config.out)
    failures = FailuresDraft(out.with_name(f"{out.name}.failures.json"), {"structures": config.structures})
    drafts: dict[str, Draft] = {"failures": failures}
    if config.features is not None:  # first: the main output gets its name last
        dtype = feature_dtype(predictor.model.architecture.feature_width(predictor.model.config))
        drafts["features"] = TableDraft(Path(config.features), dtype)
    drafts["out"] = DatabaseDraft(out) if out.suffix in DATABASE else BytesDraft(out)
    models = [member.model for member in predictor.members] if isinstance(predictor, Ensemble) else [predictor.model]
    alone = len(models) == 1 and not config.raw_weights
    settings = {
        "--checkpoint": ", ".join(f"{model.path} ({inputs.weights(model.path)})" for model in models),
        "--structures": stamp(source),
        "--task": predictor.record.name,
        "--raw-weights": config.raw_weights,
        "--features": config.features and str(Path(config.features).absolute()),
        "the fitted uncertainty": inputs.file(file_of(predictor.model)) if alone else None,
    }
    return failures, Journal(out, drafts, settings)


def feature_dtype(width: int) -> np.dtype:
    """One atom's row: its features, the place of its structure in the input, its atomic number."""
    return np.dtype([("features", np.float32, (width,)), ("structure", np.int64), ("element", np.uint8)])


def describe(config: PredictConfig, n: int, predictor: Predictor | Ensemble) -> str:
    """One line about what was written."""
    unit = predictor.record.target
    learnt = predictor.record.labels
    labels = [text for label, text in (("energy", "energies in eV"), ("forces", "forces in eV/A")) if label in learnt]
    head = predictor.model.meta.head
    labels += ["stress in eV/A^3"] if head is not None and head.stress else []
    several = predictor.record.properties
    what = ", ".join(labels) if unit in (None, "forces", "energy") else f"{unit} in its data set's unit"
    what = f"{', '.join(one.column for one in several)} in the data set's units" if several else what
    more = _about_std(predictor) + (f"; node features -> {config.features}" if config.features else "")
    if predictor.without_energy:
        more += (f"\n{predictor.without_energy:,} structures have no energy: the training data do not fix its zero for "
                 "their composition")
    return f"{n:,} structures -> {config.out} ({what}; {predictor.n_compiled} compiled shapes){more}"


def _about_std(predictor: Predictor | Ensemble) -> str:
    """What is said of standard deviations."""
    scalar = predictor.model.kind == "scalar" and predictor.record.target != "energy"
    names = [f"{predictor.record.target}_std"] if scalar else [f"{p.column}_std" for p in predictor.record.properties]
    if isinstance(predictor, Ensemble):
        names = names or [f"{label}_std" for label in predictor.record.labels]
        return f"; {' and '.join(names)} of {len(predictor.members)} checkpoints"
    if predictor.fitted is not None:
        return f"; {(names or ['energy_std'])[0]} of the last layer"
    if predictor.model.raw_weights and file_of(predictor.model).exists():
        return "; without standard deviations, which were fitted for the averaged weights"
    return ""


def labelled(record: Record, prediction: Prediction) -> ase.Atoms:
    """A copy of the input with the prediction: energy, forces and stress as results, properties in `info`.

    Those of atoms are in `arrays`. Standard deviations are `energy_std` in `info` and `forces_std` among the arrays;
    those of the input are not copied.
    """
    results = {name: getattr(prediction, name) for name in ("energy", "forces", "stress")}
    atoms = with_results(record.atoms, {name: value for name, value in results.items() if value is not None})
    properties = prediction.properties or {}
    stale = (*STANDARD_DEVIATIONS, *(f"{name}_std" for name in properties))
    atoms.info = _without(atoms.info, stale)
    for name in stale:
        atoms.arrays.pop(name, None)
    for name, value in properties.items():
        (atoms.arrays if name.startswith(ATOM_PREFIX) else atoms.info)[name] = value
    if prediction.energy_std is not None:
        atoms.info["energy_std"] = prediction.energy_std
    if prediction.forces_std is not None:
        atoms.arrays["forces_std"] = prediction.forces_std
    return atoms


def _without(values: dict, names: Collection[str]) -> dict:
    """The entries with other names, of the nested dictionaries too."""
    nested = (*NESTED, ARRAYS)
    return {key: _without(value, names) if key in nested and isinstance(value, dict) else value
            for key, value in values.items() if key not in names}  # fmt: skip


def _records(source: Path, first: int) -> Generator[Record, None, None]:
    for i, (atoms, system) in enumerate(read_atoms(source, first=first), start=first):
        yield Record(i, atoms, system)


def _outputs(config: PredictConfig, pairs: list[tuple[Record, Prediction]], journal: Journal) -> dict:
    """What the drafts append for a chunk: structures and features."""
    atoms = [labelled(*pair) for pair in pairs]
    out: dict = {}
    if config.features is not None:
        out["features"] = _feature_rows(pairs, journal.drafts["features"].dtype)  # type: ignore[attr-defined]
    database = Path(config.out).suffix in DATABASE
    out["out"] = [(a, _row(a)) for a in atoms] if database else as_extxyz(atoms)
    return out


def _row(atoms: ase.Atoms) -> dict:
    """What a database keeps of a structure beside the usual columns: its `data`, with the key-value pairs in it."""
    info = {key: value for key, value in atoms.info.items() if key not in NESTED}
    arrays = {name: values for name, values in atoms.arrays.items() if name not in _IN_DATABASE}
    data = {**atoms.info.get("data", {}), **info, **({ARRAYS: arrays} if arrays else {})}
    return {**_python(data), "key_value_pairs": atoms.info.get("key_value_pairs", {})}


def _python(value):
    """What ASE's database takes: Python's numbers, arrays of numbers; objects as the dictionaries they stand for."""
    if isinstance(value, dict):
        return {str(key): _python(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    if value is None or isinstance(value, str | int | float | np.ndarray):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return _python(value.todict()) if hasattr(value, "todict") else str(value)


def _feature_rows(pairs: list[tuple[Record, Prediction]], dtype: np.dtype) -> np.ndarray:
    """Rows of `dtype` (see `feature_dtype`), one per atom."""
    rows = np.zeros(sum(len(record.atoms) for record, _ in pairs), dtype)
    if pairs:
        rows["features"] = np.concatenate([prediction.features for _, prediction in pairs])
        rows["structure"] = np.repeat([r.index for r, _ in pairs], [len(r.atoms) for r, _ in pairs])
        rows["element"] = np.concatenate([record.system.atomic_numbers for record, _ in pairs])
    return rows


if __name__ == "__main__":
    raise SystemExit(main())

"""The class of every structure, which class-balanced sampling draws evenly: formula, catalyst or composition.

Source: docs/reference/csi.md, Classes.
"""

from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from jaxatoms.data.readers.unpickle import RefusedPickle, load_pickle
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.store import Store
from jaxatoms.types import InputError

_RECORDS_PER_CHUNK = 16_384


def structure_classes(
    spec: DatasetSpec, store: Store, records: np.ndarray | None = None, mapping: Path | str | None = None
) -> np.ndarray:
    """[n] strings: the class of each record, as `csi.sampling.sample` takes them.

    ANI-1x: the molecular formula (isomers share it). Transition-1x: the formula of the reaction. OC20 and OC22:
    `bulk_symbols` of the catalyst, from the project's mapping file; the adsorbate is ignored. OMat24: the composition.
    Others: the groups of the store.

    Args:
      spec: of the data set, as `open_dataset` returns it.
      records: which records; None takes all.
      mapping: OC mapping pickle; default: looked for beside the data and in the folders above.

    Raises:
      InputError: no mapping file, one that asks for more than plain values, or one that lacks a system.

    Example:
      >>> spec, store = open_dataset("demo:organic"); structure_classes(spec, store, np.arange(3))
    """
    records = np.arange(len(store)) if records is None else np.asarray(records)
    if spec.classes == "catalyst":
        found = Path(mapping) if mapping else find_mapping(spec, store)
        return _catalysts(found, np.asarray(store.column("sid"))[records])
    if spec.classes == "composition":
        return compositions(store, records)
    codes, names = store.groups
    if spec.classes == "reaction":
        names = [name.partition("_rxn")[0] for name in names]
    return np.array(names)[codes[records]]


def compositions(store: Store, records: np.ndarray) -> np.ndarray:
    """[n] strings such as "Mg2O2": element symbols in alphabetic order, each with its count."""
    order = np.argsort(chemical_symbols)
    out = []
    for first in range(0, len(records), _RECORDS_PER_CHUNK):
        counts = store.element_counts(records[first : first + _RECORDS_PER_CHUNK])[:, : len(chemical_symbols)]
        rows, inverse = np.unique(counts, axis=0, return_inverse=True)
        names = ["".join(f"{chemical_symbols[z]}{row[z]}" for z in order if row[z]) for row in rows]
        out.append(np.array(names)[inverse.reshape(-1)])
    return np.concatenate(out) if out else np.array([], str)


def _catalysts(path: Path, sids: np.ndarray) -> np.ndarray:
    table = _load_mapping(path)
    unique, inverse = np.unique(sids, return_inverse=True)
    return np.array([_bulk_symbols(path, table, int(sid)) for sid in unique])[inverse.reshape(-1)]


def _bulk_symbols(path: Path, table: dict, sid: int) -> str:
    """OC20's keys read `random<sid>`, OC22's are the numbers."""
    if sid < 0:
        raise InputError(f"{path}: the store knows no system ids; convert the data set again from files that have them")
    entry = next((table[key] for key in (f"random{sid}", sid, str(sid)) if key in table), None)
    if not isinstance(entry, dict) or "bulk_symbols" not in entry:
        raise InputError(f"{path}: has no bulk_symbols of system {sid}; use the mapping file of this data set")
    return str(entry["bulk_symbols"])


def _load_mapping(path: Path) -> dict:
    try:
        table = load_pickle(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except RefusedPickle as error:
        raise InputError(f"{path}: refused: {error}; download the mapping file again") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds no table of systems; download the mapping file again")
    return table


def find_mapping(spec: DatasetSpec, store: Store) -> Path:
    """The mapping file of an OC set, beside its data or in the folders above.

    Raises:
      InputError: it is not there.
    """
    name, source = spec.mapping, Path(store.manifest["source"].get("path", ""))
    for folder in [source, *list(source.parents)[:5]]:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"classes of {spec.name} need {name}; run `experiments.data download {spec.family} --part mapping`"
    )

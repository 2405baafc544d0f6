"""Anything ASE reads (extxyz, traj, db, vasprun.xml, ...) -> Systems. eV, A and eV/A are ASE's units already.

A label that a structure does not carry stays missing (NaN energy, None forces); a carried one must be finite.
"""

import glob
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import filetype

from jaxatoms.data.readers.checks import fail, is_hidden, stress_matrix
from jaxatoms.data.readers.compressed import plain_file
from jaxatoms.data.readers.extxyz import parse_comment
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.data.tags import surface_tags
from jaxatoms.types import InputError, System

VERSION = 4
PREFIX = "target_"  # of the columns of a structure's own scalars
ATOM_PREFIX = "atom_"  # of those of its numbers per atom
VECTOR_PREFIX = "vector_"  # of those of its dipoles
_ATOM_RESULTS = ("charges", "magmoms")  # of a calculator
_NO_TARGETS = (
    "numbers", "positions", "forces", "masses", "tags", "energies", "initial_magmoms", "initial_charges", "stress",
    "virial", "virials",
)  # fmt: skip
# What a folder is searched for. A calculation leaves several of these kinds; then the user chooses.
_KINDS = ("*.extxyz", "*.extxyz.?z", "*.xyz", "*.xyz.?z", "*.traj", "*.db", "vasprun.xml", "vasprun.xml.gz", "OUTCAR",
          "*.cif")  # fmt: skip
_VIRIALS = ("virial", "virials")
_LOOKED_AT = 100  # structures whose keys `label_candidates` lists
_LIKE_ENERGY = re.compile(r"energ|toten|^e$|^e[_-]|[_-]e$|^u_?0$", re.IGNORECASE)
_LIKE_FORCES = re.compile(r"forc|grad|^f$|^f[_-]|[_-]f$|^frc", re.IGNORECASE)
_ANGSTROM, _EV = ("a", "ang", "angstrom", "å"), ("ev",)


def read(
    path: Path | str, energy_key: str = "", forces_key: str = "", stress_key: str = ""
) -> Iterator[System]:
    """Yields every structure; its group is the key `group` of its info or database row, or itself alone.

    `extra` holds every numeric scalar of the comment line, of the database row (key-value pairs and data) and of the
    results beside the energy, as `target_<key>`, every vector whose key has the word dipole in it, as `vector_<key>`
    [3], and `stress` [3, 3] eV/A^3 where a structure has one. `atom_extra` holds every array of one real number per
    atom (charges, magmoms, ...), as `atom_<key>`; NaN in it marks a missing value.

    Args:
      path: a file, a folder, a pattern such as `runs/*/vasprun.xml`, or several of them with commas between.
      energy_key: where the energy stands, if not as ASE's own energy: a key of the comment line or of the database.
      forces_key: where the forces stand, if not as ASE's own forces: a per-atom array. A structure without the named
        key has no such label, whatever else it carries.
      stress_key: where the stress stands, eV/A^3; a key that ends in `virial` or `virials` holds -stress x volume, eV.
        Default: `stress`, `virial` or `virials`, behind the same prefix as a named energy (`REF_energy`, `REF_stress`).

    Raises:
      InputError: missing file, a file ASE cannot read, a named key that no structure has, or a bad value (see
        `system_from_atoms`).
    """
    keys = {"energy": energy_key, "forces": forces_key}
    wanted, known = {label for label, key in keys.items() if key}, set()
    stress_names, found_stress = _stress_names(energy_key, forces_key, stress_key), False
    for file in source_files(path):
        for record, atoms in _iter_atoms(file, keys):
            places = {label: _places(atoms, label) for label in keys}
            extra = _scalars(places["energy"]) | _dipoles(places["energy"])
            per_atom = _per_atom(atoms, places["forces"])
            if wanted:
                known.update(*(place for label in keys for place in places[label]))
            wanted -= {label for label in keys if _name_label(atoms, label, keys[label], places[label])}
            stress = _stress(file, record, atoms, places["energy"], stress_names)
            found_stress |= bool(stress)
            system = system_of(file, record, atoms)
            yield system._replace(extra={**extra, **stress, **(system.extra or {})}, atom_extra=per_atom or None)
    if stress_key and not found_stress:
        fail(path, "", f"has no stress under '{stress_key}' in any structure", "name the key that holds it")
    if wanted:
        label = min(wanted)
        names = ", ".join(sorted(known - {"numbers", "positions"})) or "nothing beside elements and positions"
        fail(path, "", f"has no {label} under '{keys[label]}' in any structure", f"they have: {names}")


def read_atoms(path: Path | str, first: int = 0) -> Iterator[tuple[ase.Atoms, System]]:
    """Each structure of one file as ASE's object and as a System without labels, which are not looked at.

    Args:
      first: structures before this one are passed over.

    Raises:
      InputError: as `read`.
    """
    path = Path(path)
    for record, atoms in itertools.islice(_iter_atoms(path), first, None):
        yield atoms, system_of(path, record, atoms, labels=False)


def source_files(path: Path | str) -> list[Path]:
    """The files that a file, a folder, a pattern or several of them with commas between stand for.

    Raises:
      InputError: nothing there, or a folder that holds files of several kinds.
    """
    if Path(path).exists() or "," not in str(path):
        return _expand(Path(path).expanduser())
    return [file for part in str(path).split(",") for file in _expand(Path(part.strip()).expanduser())]


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_below(path)
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not found:
        several = "no file matches it" if glob.has_magic(str(path)) else "no such file"
        fail(path, "", several, "check the path; commas separate several files")
    return found


def _files_below(folder: Path) -> list[Path]:
    found = {kind: [file for file in sorted(folder.rglob(kind)) if file.is_file() and not is_hidden(file, folder)]
             for kind in _KINDS}  # fmt: skip
    found = {kind: files for kind, files in found.items() if files}
    if not found:
        fail(folder, "", "is a folder without files of a known kind", f"name the files, as in {folder}/*/NAME")
    if len(found) > 1:
        kinds = ", ".join(f"{len(files)} {kind}" for kind, files in found.items())
        remedy = f"choose one, as in {folder}/**/{next(iter(found))}"
        fail(folder, "", f"holds files of several kinds ({kinds})", remedy)
    return next(iter(found.values()))


def label_candidates(path: Path | str) -> dict[str, list[str]]:
    """Keys of the first structures that look like energies and forces, by their names: {"energy", "forces"}."""
    found: dict[str, set[str]] = {"energy": set(), "forces": set()}
    structures = (item for file in source_files(path) for item in _iter_atoms(file))
    for _, atoms in itertools.islice(structures, _LOOKED_AT):
        found["energy"].update(key for key in _numbers(_places(atoms, "energy")) if _LIKE_ENERGY.search(key))
        found["forces"].update(
            key for place in _places(atoms, "forces") for key, value in place.items()
            if _LIKE_FORCES.search(key) and _shape(value) == (len(atoms), 3)
        )  # fmt: skip
    return {label: sorted(keys - {label, "free_energy"}) for label, keys in found.items()}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a number or an array of numbers; None for anything else, truth values too."""
    if not isinstance(value, int | float | np.generic | np.ndarray):
        return None
    array = np.asarray(value)
    return array.shape if array.dtype.kind in "if" else None


def system_of(path: Path, record: str, atoms: ase.Atoms, labels: bool = True) -> System:
    """One structure of ASE's; zeros for tags, which ASE gives to atoms without any, mean no tags.

    Args, raises: as `structures.system_from_atoms`.
    """
    tags = surface_tags(f"{path}: {record}", atoms.arrays.get("tags"), atoms.positions, atoms.cell.array)
    return system_from_atoms(path, record, atoms, _group(atoms), labels)._replace(tags=tags)


def _iter_atoms(path: Path, keys: dict[str, str] | None = None) -> Iterator[tuple[str, ase.Atoms]]:
    """(name, structure) of one file, in its order."""
    done = 0
    with plain_file(path) as plain:
        try:
            for atoms in _open(path, plain, keys or {}):
                yield f"structure {done}", atoms
                done += 1
        except InputError:
            raise
        except Exception as error:
            where = f"structure {done}" if done else ""
            remedy = "it is damaged, or not what its name says; check it, or convert it to extxyz"
            fail(path, where, f"ASE cannot read it ({type(error).__name__}: {error})", remedy)


def _open(path: Path, plain: Path, keys: dict[str, str]) -> Iterable[ase.Atoms]:
    kind = filetype(str(plain))
    if kind in ("db", "json"):
        # ASE's own reader of databases drops key-value pairs and data.
        database = ase.db.connect(str(plain), serial=True)
        _check_units(path, database.metadata, keys)
        return (row.toatoms(add_additional_information=True) for row in database.select())
    options = {"properties_parser": parse_comment} if kind == "extxyz" else {}
    return ase.io.iread(str(plain), index=":", format=kind, do_not_split_by_at_sign=True, **options)


def _check_units(path: Path, metadata: dict, keys: dict[str, str]) -> None:
    """Refuses a database that says itself (as those of SchNetPack do) that its units are others."""
    units = metadata.get("_property_unit_dict", {})
    said = [("lengths", metadata.get("_distance_unit"), _ANGSTROM)]
    said.append(("energies", units.get(keys.get("energy") or "energy"), _EV))
    per_length = tuple(f"{e}/{a}" for e in _EV for a in _ANGSTROM)
    said.append(("forces", units.get(keys.get("forces") or "forces"), per_length))
    for what, unit, right in said:
        if unit and str(unit).lower().replace(" ", "") not in right:
            fail(path, "", f"its metadata give {what} in {unit}", f"convert them to {right[0]} (eV, Angstrom)")


def _places(atoms: ase.Atoms, label: str) -> list[dict[str, Any]]:
    """Where a label may stand, in the order in which it is looked for."""
    results = getattr(atoms.calc, "results", {})
    own = atoms.info if label == "energy" else atoms.arrays
    return [own, results, atoms.info.get("key_value_pairs", {}), atoms.info.get("data", {})]


def _name_label(atoms: ase.Atoms, label: str, key: str, places: list[dict[str, Any]]) -> bool:
    """Puts a label that stands under another name where `system_from_atoms` looks for it; whether it was there."""
    if not key:
        return False
    found = next((place[key] for place in places if key in place), None)
    results = {name: value for name, value in getattr(atoms.calc, "results", {}).items() if name != label}
    (atoms.info if label == "energy" else atoms.arrays).pop(label, None)
    if found is not None:
        results[label] = found
    atoms.calc = SinglePointCalculator(atoms, **results)
    return found is not None


def _stress_names(energy_key: str, forces_key: str, stress_key: str) -> tuple[str, ...]:
    """Keys under which a stress is looked for, the first that is there counting."""
    if stress_key:
        return (stress_key,)
    ends = ((energy_key, "energy"), (forces_key, "forces"))
    prefix = next((key.removesuffix(end) for key, end in ends if key.endswith(end)), "")
    return tuple(prefix + name for name in ("stress", *_VIRIALS))


def _stress(path: Path, record: str, atoms: ase.Atoms, places: list[dict], names: tuple[str, ...]) -> dict:
    """{"stress": [3, 3] eV/A^3} in ASE's sign: positive where the structure pulls together; {} without one."""
    found = next(((name, place[name]) for name in names for place in places if place.get(name) is not None), None)
    if found is None:
        return {}
    matrix = stress_matrix(path, record, found[1])
    if not found[0].endswith(_VIRIALS):
        return {"stress": matrix}
    if atoms.cell.rank < 3:
        fail(path, record, f"has a {found[0]} and no cell", "give it a cell, or leave the virial out")
    return {"stress": -matrix / atoms.get_volume()}


def _scalars(places: list[dict[str, Any]]) -> dict[str, float]:
    """{target_<key>: number}"""
    return {f"{PREFIX}{key}": value for key, value in _numbers(places).items() if key not in ("energy", "group")}


def _dipoles(places: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """{vector_<key>: [3]} of keys such as dipole, dipole_moment and dipole_origin."""
    found: dict[str, np.ndarray] = {}
    for place in reversed(places):
        for key, value in place.items():
            if "dipole" in key.lower() and _shape(value) in ((3,), (1, 3)):
                found[VECTOR_PREFIX + key] = np.asarray(value, np.float64).reshape(3)
    return found


def _per_atom(atoms: ase.Atoms, places: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """{atom_<key>: [n_node]} of arrays, results and the data of a database; whole numbers are labels of atoms."""
    found: dict[str, np.ndarray] = {}
    own, results, _, data = places
    results = {name: results[name] for name in _ATOM_RESULTS if results.get(name) is not None}
    # One number in the data of a database belongs to the structure (see `_numbers`).
    for place in (data if len(atoms) > 1 else {}, results, own):
        for key, value in place.items():
            if key in _NO_TARGETS or "dipole" in key.lower() or _shape(value) not in ((len(atoms),), (len(atoms), 1)):
                continue
            array = np.asarray(value).reshape(-1)
            if array.dtype.kind == "f":
                found[ATOM_PREFIX + key] = array.astype(np.float64)
    return found


def _numbers(places: list[dict[str, Any]]) -> dict[str, float]:
    """Every numeric scalar; truth values, which ASE also sees in bare words, are none.

    In the data of a database (the last place) an array of one number counts, as SchNetPack writes it; elsewhere it
    belongs to the one atom of a structure.
    """
    found = {key: value for key, value in places[-1].items() if _shape(value) == (1,)}
    for place in reversed(places):
        found |= {key: value for key, value in place.items() if _shape(value) == ()}
    return {key: float(np.asarray(value).reshape(())) for key, value in found.items()}


def _group(atoms: ase.Atoms) -> str:
    places = (atoms.info, atoms.info.get("key_value_pairs", {}), atoms.info.get("data", {}))
    return str(next((place["group"] for place in places if "group" in place), ""))

"""QM9 -> Systems with 19 scalar targets: `qm9_v3.pt`, or the original `dsgdb9nsd_*.xyz` files in a tar archive."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from jaxatoms.data.readers.checks import check_elements, check_finite, check_shape, fail, require_file
from jaxatoms.data.readers.unpickle import RefusedPickle, load_torch_file
from jaxatoms.types import System
from jaxatoms.units import QM9_HARTREE

VERSION = 1
TARGETS = (
    "mu", "alpha", "eps_HOMO", "eps_LUMO", "delta_eps", "R_2_Abs", "ZPVE", "U_0", "U", "H", "G", "c_v",
    "U_0_ATOM", "U_ATOM", "H_ATOM", "G_ATOM", "A", "B", "C",
)  # fmt: skip
N_ORIGINAL = 133_885
_LIST = "uncharacterized.txt"
_XYZ_ORDER = ("A", "B", "C", "mu", "alpha", "eps_HOMO", "eps_LUMO", "delta_eps", "R_2_Abs", "ZPVE", "U_0", "U", "H",
              "G", "c_v")  # fmt: skip
_IN_HARTREE = ("eps_HOMO", "eps_LUMO", "delta_eps", "ZPVE", "U_0", "U", "H", "G")
# Free atoms at the level of QM9, Hartree (its `atomref.txt`); U_0_ATOM and the like are differences to their sum.
_FREE_ATOM = {
    "U_0": {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730},
    "U": {"H": -0.498857, "C": -37.845355, "N": -54.582445, "O": -75.063163, "F": -99.717314},
    "H": {"H": -0.497912, "C": -37.844411, "N": -54.581501, "O": -75.062219, "F": -99.716370},
    "G": {"H": -0.510927, "C": -37.861317, "N": -54.598897, "O": -75.079532, "F": -99.733544},
}


def read(path: Path | str) -> Iterator[System]:
    """Yields the molecules in the order of their numbers, without the uncharacterised ones.

    `extra` holds `target_<name>` for TARGETS, energies in eV (total energies, nothing subtracted), others in
    D, a0^3, a0^2, cal/mol/K, GHz; and `qm9_index`, the number in the file name. Energies of the xyz form are
    float64; those of `qm9_v3.pt` were rounded to float32 by its makers.

    Raises:
      InputError: missing or damaged file, the full archive without its list of uncharacterised molecules.

    Source: docs/reference/datasets.md, QM9.
    """
    path = require_file(path)
    if path.suffix == ".pt":
        yield from _read_torch(path)
        return
    try:
        with tarfile.open(path) as archive:
            numbers = [_index(member.name) for member in archive if _is_molecule(member.name)]
        skipped = _uncharacterized(path, len(numbers))
        ascending = numbers == sorted(numbers)
        # Sorting takes about 300 MB for all of QM9.
        molecules = _members(path) if ascending else sorted(_members(path), key=lambda item: _index(item[0]))
        for name, text in molecules:
            if _index(name) not in skipped:
                yield _from_xyz(path, name, text)
    except (tarfile.TarError, OSError, EOFError) as error:
        fail(path, "", f"not a readable tar archive ({error})", "download it again")


def source_files(path: Path | str) -> list[Path]:
    """The file and, of the xyz form, the list beside it."""
    path = Path(path)
    beside = path.with_name(_LIST)
    return [path, beside] if path.suffix != ".pt" and beside.is_file() else [path]


def _read_torch(path: Path) -> Iterator[System]:
    try:
        molecules = load_torch_file(path)
    except RefusedPickle as error:
        fail(path, "", f"refused: {error}", "download qm9_v3.pt from data.pyg.org again")
    if not isinstance(molecules, list):
        fail(path, "", "holds no list of molecules", "download qm9_v3.pt from data.pyg.org again")
    for i, molecule in enumerate(molecules):
        record = f"molecule {i}"
        missing = {"z", "pos", "y"} - set(molecule)
        if missing:
            fail(path, record, f"lacks '{min(missing)}'", "download qm9_v3.pt from data.pyg.org again")
        values = np.asarray(molecule["y"], np.float64).reshape(-1)
        check_shape(path, record, "y", values.shape, (len(TARGETS),))
        number = int(re.sub(r"\D", "", str(molecule.get("name", ""))) or molecule.get("idx", i))
        yield _system(path, record, np.asarray(molecule["z"]), molecule["pos"], dict(zip(TARGETS, values)), number)


def _members(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every molecule, in the order of the archive."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if _is_molecule(member.name) and (file := archive.extractfile(member)):
                yield Path(member.name).name, file.read().decode()


def _is_molecule(name: str) -> bool:
    return name.endswith(".xyz") and not Path(name).name.startswith(".")


def _index(name: str) -> int:
    return int(re.sub(r"\D", "", Path(name).stem.split("_")[-1]) or 0)


def _uncharacterized(path: Path, n_molecule: int) -> set[int]:
    """Numbers of the molecules that QM9 itself lists as inconsistent; an excerpt may come without the list."""
    file = path.with_name(_LIST)
    if file.is_file():
        firsts = [line.split()[0] for line in file.read_text().splitlines() if line.split()]
        return {int(first) for first in firsts if first.isdecimal()}
    if n_molecule == N_ORIGINAL:
        fail(path, "", f"holds all {n_molecule} molecules but {_LIST} is missing", f"put QM9's {_LIST} beside it")
    return set()


def _from_xyz(path: Path, name: str, text: str) -> System:
    lines = text.replace("*^", "e").splitlines()
    try:
        n = int(lines[0])
        properties = np.array(lines[1].split()[2:], np.float64)
        rows = [line.split() for line in lines[2 : 2 + n]]
        symbols = [row[0] for row in rows]
        numbers = np.array([atomic_numbers[symbol] for symbol in symbols])
        positions = np.array([row[1:4] for row in rows], np.float64)
    except (ValueError, IndexError, KeyError) as error:
        fail(path, name, f"not a QM9 molecule ({type(error).__name__}: {error})", "download the archive again")
    check_shape(path, name, "properties", properties.shape, (len(_XYZ_ORDER),))
    values = dict(zip(_XYZ_ORDER, properties.tolist(), strict=True))
    values |= {key: values[key] * QM9_HARTREE for key in _IN_HARTREE}
    for key, free in _FREE_ATOM.items():
        atoms = [free.get(symbol, np.nan) for symbol in symbols]
        values[f"{key}_ATOM"] = values[key] - QM9_HARTREE * sum(atoms)
    return _system(path, name, numbers, positions, values, _index(name))


def _system(path: Path, record: str, numbers: np.ndarray, positions, values: dict, index: int) -> System:
    numbers = check_elements(path, record, numbers)
    check_shape(path, record, "positions", np.shape(positions), (len(numbers), 3))
    check_finite(path, record, "positions", np.asarray(positions))
    check_finite(path, record, "targets", np.array([values[name] for name in TARGETS]))
    extra = {f"target_{name}": float(values[name]) for name in TARGETS}
    return System(numbers, np.asarray(positions), key=record, extra={**extra, "qm9_index": index})

"""The sets of docs/notes/reproduction.md that are put together from, or converted from, public excerpts.

    python -m scripts.make_reproduction_data --data-root DATA --out DATA/reproduction

Writes organic.h5 (ANI-1x layout: ani1x_made and the dimers of ani1x_like; 3BPA, a task of the study, stays out),
reactions.h5 (Transition1x layout: the HORM sample, ethane dissociation, hydrogen combustion) and inorganic.extxyz
(crystals of MPtrj and of finite temperature and pressure, at most 64 atoms), and the task c14h30.extxyz, whose native
layout (QM-22) no reader knows. The catalysts and the other tasks are read where they are.
"""

import dataclasses
import io
import lzma
from collections.abc import Iterator
from pathlib import Path

import ase.io
import ase.units
import h5py
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data.readers.checks import FREE_ATOM_ENERGY, MIN_ATOMS
from jaxatoms.tools import cli
from jaxatoms.types import InputError
from jaxatoms.units import BOHR, HARTREE, KCAL_PER_MOL

INORGANIC = ("mptrj-random-1k.extxyz", "random-TP.extxyz", "mpf-TP.extxyz")
MAX_ATOMS = 64  # of a crystal: a few large cells would take most of the study's time
_ANI = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
_TRANSITION1X = ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproductionDataConfig:
    """Where the excerpts lie and where the sets go."""

    data_root: str
    """Folder of the excerpts."""
    out: str
    """Folder of the sets; made where it is missing."""
    per_reaction: int = 500
    """Frames of one reaction of the Transition1x layout, at most, so that ethane is not the whole set."""
    per_combustion: int = 15
    """Frames of one reaction and kind of hydrogen combustion, at most."""
    seed: int = 0


@cli.one_line_errors()
def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m scripts.make_reproduction_data`."""
    config = cli.parse(
        ReproductionDataConfig, argv, description=__doc__, prog="python -m scripts.make_reproduction_data"
    )
    root, out = Path(config.data_root), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    counts = {
        "organic.h5": write_organic(root, out / "organic.h5"),
        "reactions.h5": write_reactions(root, out / "reactions.h5", config),
        "inorganic.extxyz": write_inorganic(root, out / "inorganic.extxyz"),
        "c14h30.extxyz": write_c14h30(root, out / "c14h30.extxyz"),
    }
    for name, count in counts.items():
        print(f"{out / name}: {count} structures")
    return 0


def write_organic(root: Path, path: Path) -> int:
    """Off-equilibrium molecules and dimers at the ANI-1x level; returns their number."""
    parts: dict[str, list[dict]] = {}
    for name in ("ani1x_made/ani1x_made.h5", "ani1x_like/ani1x_like.h5"):
        with _open(root / name) as file:
            for formula, group in file.items():
                keep = np.ones(len(group[_ANI[1]]), bool)
                if "source" in group:
                    keep = group["source"][:] != b"3BPA"
                part = {key: group[key][:][keep] for key in _ANI} | {"atomic_numbers": group["atomic_numbers"][:]}
                if keep.any():
                    parts.setdefault(formula, []).append(part)
    total = 0
    with h5py.File(path, "w") as file:
        for formula, found in parts.items():
            for i, part in enumerate(found):  # one formula may come from both files, its atoms in another order
                group = file.create_group(formula if i == 0 else f"{formula}_{i}")
                for key, values in part.items():
                    group[key] = values
                total += len(part[_ANI[1]])
    return total


def write_reactions(root: Path, path: Path, config: ReproductionDataConfig) -> int:
    """Reactive geometries of at least four atoms; returns their number."""
    rng, total = np.random.default_rng(config.seed), 0
    with h5py.File(path, "w") as file:
        for name, atomic_numbers, arrays in _reactions(root):
            limit = config.per_combustion if "h2combustion" in name else config.per_reaction
            rows = np.sort(rng.choice(len(arrays[1]), min(len(arrays[1]), limit), replace=False))
            group = file.create_group(f"data/{name}")
            group["atomic_numbers"] = atomic_numbers
            for key, values in zip(_TRANSITION1X, arrays, strict=True):
                group[key] = values[rows]
            total += len(rows)
    return total


def _reactions(root: Path) -> Iterator[tuple[str, np.ndarray, tuple[np.ndarray, ...]]]:
    """(formula/reaction, atomic_numbers, (positions A, energies eV, forces eV/A))."""
    with _open(root / "transition1x_like/transition1x_like.h5") as file:
        for formula, reactions in file["data"].items():
            for name, group in reactions.items():
                yield f"{formula}/{name}", group["atomic_numbers"][:], tuple(group[key][:] for key in _TRANSITION1X)
    files = sorted((root / "h2combustion").glob("*.npz"))
    if not files:
        raise InputError(f"no .npz files in {root / 'h2combustion'}; check --data-root")
    for path in files:
        with np.load(path) as data:
            n_atoms = data["N"].ravel()
            for n in np.unique(n_atoms[n_atoms >= MIN_ATOMS]):
                rows = n_atoms == n
                for numbers in np.unique(data["Z"][rows, :n], axis=0):
                    own = np.flatnonzero(rows)[(data["Z"][rows, :n] == numbers).all(axis=1)]
                    # These energies are relative to free atoms, those of Transition1x are total.
                    free = sum(FREE_ATOM_ENERGY[z] for z in numbers.tolist())
                    energies, forces = data["E"].ravel()[own] * KCAL_PER_MOL + free, data["F"][own, :n] * KCAL_PER_MOL
                    arrays = (data["R"][own, :n], energies, forces)
                    yield f"{_formula(numbers)}/h2combustion_{path.stem}_{''.join(map(str, numbers))}", numbers, arrays


def _formula(numbers: np.ndarray) -> str:
    return ase.Atoms(numbers=numbers).get_chemical_formula()


def write_inorganic(root: Path, path: Path) -> int:
    """Crystals with energy and forces; returns their number."""
    frames = []
    for name in INORGANIC:
        source = _existing(root / "mptrj_inorganic" / name)
        frames += [atoms for atoms in ase.io.read(source, ":") if len(atoms) <= MAX_ATOMS]
    for atoms in frames:
        atoms.info = {}  # identifiers of several sources, not all of one kind
    ase.io.write(path, frames)
    return len(frames)


def write_c14h30(root: Path, path: Path) -> int:
    """C14H30 with its energy (eV above the linear minimum) and forces; returns the number of structures.

    Its text has an energy in cm^-1 as comment and per atom: symbol, position (A), gradient (Hartree/Bohr).
    """
    source = _existing(root / "qm22" / "c14.xyz.xz")
    lines = lzma.decompress(source.read_bytes()).decode().splitlines()
    block = int(lines[0]) + 2
    energies = [float(comment) for comment in lines[1::block]]
    lines[1::block] = ["Properties=species:S:1:pos:R:3:gradient:R:3"] * len(energies)
    frames = ase.io.read(io.StringIO("\n".join(lines) + "\n"), ":", format="extxyz")
    for atoms, energy in zip(frames, energies, strict=True):
        forces = -atoms.arrays.pop("gradient") * HARTREE / BOHR
        atoms.calc = SinglePointCalculator(atoms, energy=energy * ase.units.invcm, forces=forces)
    ase.io.write(path, frames)
    return len(frames)


def _open(path: Path) -> h5py.File:
    return h5py.File(_existing(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing; check --data-root")
    return path


if __name__ == "__main__":
    raise SystemExit(main())

"""Make the labelled demo sets that ship in `jaxatoms/data/demo`.

    python -m experiments.make_demo_data organic --out DIR --ani1x-made ani1x_made.h5
    python -m experiments.make_demo_data reaction|aspirin|peptide|gap|slab|oxide --out DIR
    python -m experiments.make_demo_data all --out DIR --ani1x-made ani1x_made.h5

Needs ase, h5py, numpy, and for the sampled sets tblite and rdkit; none of these is needed to read the sets,
which is why this script lives outside the package. Every random number comes from a seed written here.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from ase import units

MAX_FORCE = 30.0  # eV/A; beyond it a frame is an accident of sampling, not chemistry


class Record(NamedTuple):
    """One labelled structure; units as in the files (A, eV, eV/A)."""

    atomic_numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray
    group: str
    cell: np.ndarray | None = None
    pbc: np.ndarray | None = None
    tags: np.ndarray | None = None  # None: all 2
    fixed: np.ndarray | None = None  # None: nothing held
    targets: dict[str, float] = {}


def write(path: Path, records: list[Record], description: str, level_of_theory: str) -> None:
    """Store the records; atoms of all structures stand one after another, `n_node` says where to cut."""
    sizes = [len(record.atomic_numbers) for record in records]
    columns = {
        "n_node": np.array(sizes, np.int32),
        "atomic_numbers": np.concatenate([r.atomic_numbers for r in records]).astype(np.uint8),
        "positions": np.concatenate([r.positions for r in records]).astype(np.float32),
        "energy": np.array([r.energy for r in records], np.float64),
        "forces": np.concatenate([r.forces for r in records]).astype(np.float32),
        "tags": np.concatenate(
            [np.full(n, 2) if r.tags is None else r.tags for n, r in zip(sizes, records, strict=True)]
        ).astype(np.uint8),
        "fixed": np.concatenate(
            [np.zeros(n) if r.fixed is None else r.fixed for n, r in zip(sizes, records, strict=True)]
        ).astype(bool),
    }
    if records[0].cell is not None:
        columns["cell"] = np.array([r.cell for r in records], np.float32)
        columns["pbc"] = np.array([r.pbc for r in records], bool)
    for name in records[0].targets:
        columns[f"target_{name}"] = np.array([r.targets[name] for r in records], np.float64)
    with h5py.File(path, "w") as file:
        file.attrs["description"] = description
        file.attrs["level_of_theory"] = level_of_theory
        for name, values in columns.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=9, shuffle=True)
        groups = np.array([r.group for r in records], dtype=object)
        file.create_dataset("group", data=groups, dtype=h5py.string_dtype("utf-8"), compression="gzip")


def is_usable(energy: float, forces: np.ndarray) -> bool:
    return bool(np.isfinite(energy) and np.isfinite(forces).all() and np.abs(forces).max() <= MAX_FORCE)


def make_organic(out: Path, source: Path) -> int:
    """Convert the DFT-labelled set from its ANI-1x release layout (Hartree, Hartree/A)."""
    records = []
    with h5py.File(source) as file:
        for formula in sorted(file):
            entry = file[formula]
            energies = entry["wb97x_dz.energy"][:] * units.Hartree
            forces = entry["wb97x_dz.forces"][:].astype(np.float64) * units.Hartree
            for i, positions in enumerate(entry["coordinates"][:]):
                if is_usable(energies[i], forces[i]):
                    numbers = entry["atomic_numbers"][:]
                    records.append(Record(numbers, positions, energies[i], forces[i], formula))
    write(
        out / "organic.h5",
        records,
        "Small organic molecules (H C N O, at most six heavy atoms), thermal geometries; group = formula",
        "wB97X/6-31G(d), density-fitted, PySCF 2.14; geometries GFN2-xTB Langevin",
    )
    return len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=["organic", "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the .h5 files")
    parser.add_argument("--ani1x-made", type=Path, help="source of `organic` (ANI-1x release layout)")
    args = parser.parse_args()
    start = time.time()
    print(make_organic(args.out, args.ani1x_made), time.time() - start)


if __name__ == "__main__":
    main()

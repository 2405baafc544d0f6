"""Make the labelled demo sets that ship in `jaxatoms/data/demo`.

    python -m scripts.make_demo_data organic --out DIR --ani1x-made ani1x_made.h5
    python -m scripts.make_demo_data reaction|aspirin|peptide|gap|slab|oxide --out DIR
    python -m scripts.make_demo_data all --out DIR --ani1x-made ani1x_made.h5

Needs ase, h5py, numpy, and for the sampled sets tblite and rdkit; none of these is needed to read the sets,
which is why this script lives outside the package. Every random number comes from a seed written here.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before numpy loads its threads: sums split over threads change the last digits from run to run.
os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixAtoms, FixBondLength
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from ase.spacegroup import crystal

MAX_FORCE = 30.0  # eV/A; beyond it a frame is an accident of sampling, not chemistry
TIME_STEP = 0.5 * units.fs
FRICTION = 0.02 / units.fs  # thermalises within a picosecond without damping the vibrations away


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
    targets: dict[str, float] | None = None


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
    for name in records[0].targets or {}:
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


def xtb(method: str = "GFN2-xTB", *, restart: bool = False, temperature: float = 300.0):
    """An ASE calculator of tblite; `temperature` (K) smears the occupations.

    Labels never restart from the previous wave function: where two SCF solutions exist, the energy would
    depend on the path and no longer be a function of the positions.
    """
    from tblite.ase import TBLite  # here: `organic` needs no tblite

    return TBLite(method=method, verbosity=0, cache_api=restart, electronic_temperature=temperature)


def label(atoms: Atoms, group: str, calculator, **extra) -> Record | None:
    """Energy and forces at the stored (float32) positions, constraints lifted; None if not usable."""
    bare = Atoms(
        atoms.numbers,
        atoms.positions.astype(np.float32),
        cell=atoms.cell.array.astype(np.float32),
        pbc=atoms.pbc,
        calculator=calculator,
    )
    try:
        energy, forces = bare.get_potential_energy(), bare.get_forces()
    except CalculationFailed:
        return None
    if not is_usable(energy, forces):
        return None
    if atoms.pbc.any():
        extra = {"cell": bare.cell.array, "pbc": bare.pbc.copy(), **extra}
    return Record(bare.numbers, bare.positions, energy, forces, group, **extra)


def langevin(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Langevin:
    """Langevin dynamics started from the minimum with doubled kinetic energy: half of it turns potential."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    return Langevin(atoms, TIME_STEP, temperature_K=temperature, friction=FRICTION, rng=rng)


def embed(smiles: str, seed: int, optimise: bool = True) -> Atoms | None:
    """A conformer of the molecule (RDKit ETKDG, then MMFF94); None where RDKit finds none."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(mol, randomSeed=seed) != 0:
        return None
    if optimise:
        AllChem.MMFFOptimizeMolecule(mol, maxIters=1000)
    return Atoms([atom.GetAtomicNum() for atom in mol.GetAtoms()], mol.GetConformer().GetPositions())


def sample_dynamics(
    smiles: str, group: str, n_runs: int, n_frames: int, stride: int, equilibration: int, seed: int
) -> Iterator[Record | None]:
    """Frames of `n_runs` 500 K trajectories, each from another conformer."""
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        atoms = embed(smiles, seed=seed + run)
        atoms.calc = xtb(restart=True)
        BFGS(atoms, logfile=None).run(fmax=0.1, steps=200)
        dynamics = langevin(atoms, 500.0, rng)
        dynamics.run(equilibration)
        for _ in range(n_frames):
            dynamics.run(stride)
            yield label(atoms, group, xtb())


def make_aspirin(out: Path) -> int:
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    return store(
        out / "aspirin.h5",
        sample_dynamics(smiles, "aspirin", n_runs=4, n_frames=250, stride=20, equilibration=1000, seed=11),
        "Aspirin, four Langevin trajectories at 500 K (0.5 fs steps, a frame every 10 fs); one group: split by record",
        "GFN2-xTB, tblite; demo data",
    )


def make_peptide(out: Path) -> int:
    smiles = "CC(=O)N" + "[C@@H](C)C(=O)N" * 3 + "C"  # L-alanine throughout
    return store(
        out / "peptide.h5",
        sample_dynamics(smiles, "Ac-Ala3-NHMe", n_runs=4, n_frames=100, stride=20, equilibration=1000, seed=23),
        "Ac-Ala3-NHMe, four Langevin trajectories at 500 K from four conformers (0.5 fs steps, a frame every "
        "10 fs); one group: split by record",
        "GFN2-xTB, tblite; demo data",
    )


# Names of ASE's g2 collection.
# fmt: off
REACTANTS = [
    "CH4", "NH3", "H2O", "HCN", "N2H4", "H2O2", "CH3OH", "C2H6", "C2H4", "H3CNH2", "H2CO", "HCOOH",
    "CH3CN", "CH3CHO", "CH3OCH3", "CH3CH2OH", "CH3CONH2",
]
# fmt: on


def bonds_by_kind(atoms: Atoms) -> dict[str, tuple[int, int]]:
    """The first bond of each element pair that cuts the molecule into two parts: {"C-O": (i, j)}."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15))
    order = np.argsort(first * len(atoms) + second)  # the neighbour list promises no order
    kinds = {}
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if i < j:
            name = "-".join(sorted((atoms[i].symbol, atoms[j].symbol), key="CNOH".index))
            kinds.setdefault(name, (i, j))
    return kinds


def far_side(atoms: Atoms, i: int, j: int) -> list[int]:
    """Atoms that stay with j when the bond i-j is cut."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15))
    side, frontier = {j}, {j}
    while frontier:
        bonded = {int(b) for a, b in zip(first, second, strict=True) if a in frontier and {a, b} != {i, j}}
        frontier = bonded - side
        side |= frontier
    return sorted(side)


def sample_reactions(n_frames: int = 20, seed: int = 37) -> Iterator[Record | None]:
    """One bond of one molecule per group, stretched from 0.8 to 2.2 times its length and shaken."""
    rng = np.random.default_rng(seed)
    for name in REACTANTS:
        minimum = molecule(name)
        minimum.calc = xtb()
        BFGS(minimum, logfile=None).run(fmax=0.02, steps=200)
        for kind, (i, j) in bonds_by_kind(minimum).items():
            side = far_side(minimum, i, j)
            bond = minimum.positions[j] - minimum.positions[i]
            for scale in np.linspace(0.8, 2.2, n_frames):
                atoms = minimum.copy()
                # Jittered within its stratum, so that distances do not repeat between groups.
                scale += rng.uniform(-0.5, 0.5) * 1.4 / n_frames
                atoms.positions[side] += (scale - 1) * bond
                # Only the distance of the cut is held: the fragments relax and vibrate around it.
                atoms.set_constraint(FixBondLength(i, j))
                atoms.calc = xtb()
                try:
                    langevin(atoms, rng.uniform(300.0, 600.0), rng).run(60)
                except (CalculationFailed, RuntimeError):  # SCF, or the constraint's own iteration
                    yield None
                    continue
                yield label(atoms, f"{name}_{kind}", xtb())


def make_reaction(out: Path) -> int:
    return store(
        out / "reaction.h5",
        sample_reactions(),
        "Bond breaking in small H C N O molecules: one bond held at 0.8 to 2.2 times its length, 30 fs of "
        "Langevin dynamics at 300-600 K; group = molecule_bond",
        "GFN2-xTB, closed shell with 300 K Fermi smearing (no spin polarisation), tblite; demo data",
    )


# SMILES; {0} and {1} take the substituents.
# fmt: off
CORES = [
    "C({0}){1}", "C({0})C{1}", "C({0})CC{1}", "C({0})=C{1}", "C({0})#C{1}", "C({0})(C)C{1}",
    "O=C({0}){1}", "C({0})OC{1}", "C({0})N(C)C{1}", "C1({0})CC1{1}", "C1({0})OC1{1}", "C1({0})CCC1{1}",
    "C1({0})CCCC1{1}", "c1({0})ccccc1{1}", "c1({0})cccc({1})c1", "c1({0})ccc({1})cc1",
    "c1({0})ncccc1{1}", "c1({0})ccnc({1})c1", "c1({0})ccoc1{1}", "c1({0})oc({1})cc1",
    "c1({0})[nH]c({1})cc1", "c1({0})sc({1})cc1", "c1({0})ncn(C)c1{1}", "C({0})=CC=C{1}", "C({0})N=C{1}",
    "C({0})C(=O)C{1}", "c1({0})cnc({1})nc1", "C1({0})=CC(=O)C=C1{1}",
]
SUBSTITUENTS = [
    "[H]", "C", "CC", "O", "N", "F", "Cl", "OC", "NC", "N(C)C", "S", "C#N", "C=O", "C(=O)O", "C(=O)N",
    "C=C", "C#C", "C(F)(F)F", "[N+](=O)[O-]",
]
# fmt: on


def sample_gaps(n_molecules: int = 1200, seed: int = 41) -> Iterator[Record | None]:
    """Minimised molecules with the gap of their orbital energies; group = canonical SMILES."""
    from rdkit import Chem

    smiles = set()
    for core, first, second in itertools.product(CORES, SUBSTITUENTS, SUBSTITUENTS):
        mol = Chem.MolFromSmiles(core.format(first, second))
        if mol is not None and 3 <= mol.GetNumHeavyAtoms() <= 11:
            smiles.add(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    # Sorted, as the order of a set changes from run to run.
    chosen = np.random.default_rng(seed).permutation(sorted(smiles))[:n_molecules]
    for name in chosen.tolist():
        atoms = embed(name, seed=seed)
        if atoms is None:
            continue
        atoms.calc = xtb(restart=True)
        try:
            BFGS(atoms, logfile=None).run(fmax=0.05, steps=60)
        except CalculationFailed:
            yield None
            continue
        calculator = xtb(restart=True)  # a fresh one: `restart` only keeps the orbitals for the line below
        record = label(atoms, name, calculator)
        if record is None:
            yield None
            continue
        results = calculator._res  # ASE's interface has no orbital energies
        levels, occupied = results.get("orbital-energies"), results.get("orbital-occupations") > 1.0
        gap = (levels[~occupied].min() - levels[occupied].max()) * units.Hartree
        yield record._replace(targets={"gap": float(gap)})


def make_gap(out: Path) -> int:
    return store(
        out / "gap.h5",
        sample_gaps(),
        "Small molecules (H C N O F S Cl) enumerated from cores and substituents, relaxed; target_gap = "
        "HOMO-LUMO gap (eV) of the orbital energies; group = SMILES",
        "GFN2-xTB, geometries RDKit/MMFF94 then GFN2-xTB to 0.05 eV/A or 60 steps, tblite; demo data",
    )


ADSORBATES = {  # atoms with the binding one first, its height (A) above the top layer
    "CO": (Atoms("CO", [[0, 0, 0], [0, 0, 1.15]]), 1.85),
    "H": (Atoms("H", [[0, 0, 0]]), 1.4),
    "OH": (Atoms("OH", [[0, 0, 0], [0.8, 0, 0.55]]), 1.85),
    "CH3": (Atoms("CH3", [[0, 0, 0], [1.03, 0, 0.35], [-0.515, 0.892, 0.35], [-0.515, -0.892, 0.35]]), 2.05),
}


def sample_slabs(n_rattled: int = 9, n_relaxed: int = 5, seed: int = 53) -> Iterator[Record | None]:
    """Rattled slabs with an adsorbate, and the first steps of a relaxation from one of them.

    Pt, whose slabs collapse at the gamma point, is left out.
    """
    rng = np.random.default_rng(seed)
    for metal, (name, (adsorbate, height)), site in itertools.product(
        ("Cu", "Ag", "Pd"), ADSORBATES.items(), ("ontop", "bridge", "fcc")
    ):
        clean = fcc111(metal, (3, 3, 3), vacuum=5.5)
        clean.pbc = True
        lowering = {"ontop": 0.0, "bridge": 0.25, "fcc": 0.35}[site]
        add_adsorbate(clean, adsorbate, height - lowering, site)
        layer = clean.get_tags()  # ASE: 1 is the top layer, 0 the adsorbate
        tags = np.select([layer == 0, layer == 1], [2, 1], 0)
        fixed = layer == 3
        extra = {"tags": tags, "fixed": fixed}
        group = f"{metal}111_{name}_{site}"
        for i in range(n_rattled):
            atoms = clean.copy()
            spread = (0.03, 0.06, 0.09)[i % 3]
            atoms.positions[~fixed] += rng.normal(scale=spread, size=(int((~fixed).sum()), 3))
            atoms.positions[tags == 2] += rng.uniform([-0.3, -0.3, -0.1], [0.3, 0.3, 0.3])
            yield label(atoms, group, xtb("GFN1-xTB", temperature=1000.0), **extra)
        atoms.set_constraint(FixAtoms(mask=fixed))
        atoms.calc = xtb("GFN1-xTB", temperature=1000.0)
        try:
            # The first step is the rattled structure, which is stored already.
            for step, _ in enumerate(BFGS(atoms, logfile=None, maxstep=0.1).irun(fmax=0.03, steps=n_relaxed)):
                if step:
                    yield label(atoms, group, xtb("GFN1-xTB", temperature=1000.0), **extra)
        except CalculationFailed:
            yield None


def make_slab(out: Path) -> int:
    return store(
        out / "slab.h5",
        sample_slabs(),
        "CO, H, OH, CH3 on 3x3x3 Cu, Ag, Pd (111) slabs (periodic in x, y, z): nine rattled structures and "
        "five steps of a relaxation per slab; bottom layer fixed; group = slab_adsorbate_site",
        "GFN1-xTB, periodic, gamma point only, 1000 K Fermi smearing, no spin polarisation, tblite; "
        "qualitative demo data, not converged in k-points",
    )


def rutile(metal: str, a: float, c: float, u: float) -> Atoms:
    cellpar = [a, a, c, 90, 90, 90]
    return crystal([metal, "O"], [(0, 0, 0), (u, u, 0)], spacegroup=136, cellpar=cellpar).repeat((1, 1, 2))


OXIDES: dict[str, Callable[[], Atoms]] = {
    # Cells are chosen so that at the gamma point the crystal is a minimum; no cell of 24 atoms or fewer did
    # that for CaO and SrO.
    "MgO": lambda: bulk("MgO", "rocksalt", a=4.21).repeat(2),
    "BeO": lambda: bulk("BeO", "wurtzite", a=2.698, c=4.377).repeat((2, 2, 1)),
    "ZnO": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2).repeat((2, 2, 1)),
    "TiO2": lambda: rutile("Ti", 4.594, 2.959, 0.305),
    "SnO2": lambda: rutile("Sn", 4.737, 3.186, 0.307),
    "SiO2": lambda: crystal(
        ["Si", "O"],
        [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7855)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    ),
    "Al2O3": lambda: crystal(
        ["Al", "O"],
        [(0, 0, 0.3522), (0.3063, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.759, 4.759, 12.99, 90, 90, 120],
        primitive_cell=True,
    ),
    "Li2O": lambda: crystal(
        ["Li", "O"], [(0.25, 0.25, 0.25), (0, 0, 0)], spacegroup=225, cellpar=[4.62] * 3 + [90] * 3
    ),
}


def sample_oxides(n_strains: int = 13, n_rattles: int = 4, seed: int = 67) -> Iterator[Record | None]:
    rng = np.random.default_rng(seed)
    for name, build in OXIDES.items():
        perfect = build()
        for _ in range(n_strains):
            strain = rng.uniform(-0.04, 0.04, size=(3, 3))
            strain = 0.5 * (strain + strain.T)  # symmetric: a rotation is no strain
            cell = perfect.cell.array @ (np.eye(3) + strain)
            for spread in np.linspace(0.02, 0.15, n_rattles):
                atoms = perfect.copy()
                atoms.set_cell(cell, scale_atoms=True)
                # Stiff SiO2 would lose most of its wide rattles to the limit on forces.
                width = spread * (0.6 if name == "SiO2" else 1.0)
                atoms.positions += rng.normal(scale=width, size=atoms.positions.shape)
                yield label(atoms, name, xtb("GFN1-xTB"))


def make_oxide(out: Path) -> int:
    return store(
        out / "oxide.h5",
        sample_oxides(),
        "Periodic oxides (MgO, BeO, ZnO, TiO2, SnO2, SiO2, Al2O3, Li2O; 9-16 atoms), strained by up to 4 % "
        "and rattled by 0.02-0.15 A (SiO2 0.6 of it), four structures per cell; group = formula",
        "GFN1-xTB, periodic, gamma point only, tblite; qualitative demo data, not converged in k-points",
    )


def store(path: Path, sampled: Iterator[Record | None], description: str, level_of_theory: str) -> int:
    """Write what was sampled, less the structures that were dropped."""
    everything = list(sampled)
    records = [record for record in everything if record is not None]
    print(f"{path.name}: {len(everything) - len(records)} of {len(everything)} structures dropped")
    write(path, records, description, level_of_theory)
    return len(records)


MAKERS: dict[str, Callable[[Path], int]] = {
    "reaction": make_reaction,
    "aspirin": make_aspirin,
    "peptide": make_peptide,
    "gap": make_gap,
    "slab": make_slab,
    "oxide": make_oxide,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=["organic", *MAKERS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the .h5 files")
    parser.add_argument("--ani1x-made", type=Path, help="source of `organic` (ANI-1x release layout)")
    args = parser.parse_args()
    if args.name in ("organic", "all") and args.ani1x_made is None:
        parser.error(f"{args.name} needs --ani1x-made: the DFT-labelled set to convert")
    makers = {"organic": lambda out: make_organic(out, args.ani1x_made), **MAKERS}
    for name in makers if args.name == "all" else [args.name]:
        start = time.time()
        count = makers[name](args.out)
        size = (args.out / f"{name}.h5").stat().st_size
        print(f"{name}: {count} structures, {size / 1e6:.2f} MB, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""The upstream sets of the reproduction, put together from small files of the excerpts' layouts."""

import lzma
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from jaxatoms.data.readers import ani1x, ase_file, transition1x
from jaxatoms.data.readers.checks import FREE_ATOM_ENERGY
from jaxatoms.units import HARTREE, KCAL_PER_MOL
from scripts import make_reproduction_data as made

ANI = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
TRANSITION1X = ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
METHANE, PEROXIDE = np.array([6, 1, 1, 1, 1]), np.array([8, 8, 1, 1])


def frames(rng, n_frame: int, numbers: np.ndarray, unit: float = 1.0):
    """Positions, total energies in eV / unit, forces; at random."""
    shape, free = (n_frame, len(numbers), 3), sum(FREE_ATOM_ENERGY[z] for z in numbers.tolist())
    return rng.normal(size=shape), (free + rng.normal(size=n_frame)) / unit, rng.normal(size=shape)


def group(file: h5py.File, name: str, numbers: np.ndarray, keys, arrays, **more):
    for key, values in (dict(zip(keys, arrays, strict=True)) | more).items():
        file[f"{name}/{key}"] = values
    file[f"{name}/atomic_numbers"] = numbers


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with every excerpt that the command reads, a few frames each."""
    rng = np.random.default_rng(0)
    for folder in ("ani1x_made", "ani1x_like", "transition1x_like", "h2combustion", "mptrj_inorganic", "qm22"):
        (tmp_path / folder).mkdir()
    with h5py.File(tmp_path / "ani1x_made/ani1x_made.h5", "w") as file:
        group(file, "CH4", METHANE, ANI, frames(rng, 3, METHANE, HARTREE))
    with h5py.File(tmp_path / "ani1x_like/ani1x_like.h5", "w") as file:
        source = np.array([b"3BPA", b"s66x8/a", b"3BPA"])
        group(file, "CH4", METHANE[::-1], ANI, frames(rng, 3, METHANE, HARTREE), source=source)
        group(file, "H2O2", PEROXIDE, ANI, frames(rng, 1, PEROXIDE, HARTREE), source=np.array([b"3BPA"]))
    with h5py.File(tmp_path / "transition1x_like/transition1x_like.h5", "w") as file:
        group(file, "data/CH4/rxn0", METHANE, TRANSITION1X, frames(rng, 9, METHANE))
    positions, energies, forces = rng.normal(size=(6, 4, 3)), rng.normal(size=6), rng.normal(size=(6, 4, 3))
    numbers = np.array([[8, 8, 1, 1]] * 3 + [[8, 1, 1, 0]] * 3)
    count = np.array([4, 4, 4, 3, 3, 3])[:, None]
    arrays = {"R": positions, "Z": numbers, "N": count, "E": energies[:, None], "F": forces}
    np.savez(tmp_path / "h2combustion/01_aimd.npz", **arrays)
    for name in made.INORGANIC:
        atoms = [Atoms("NaCl" * k, rng.normal(size=(2 * k, 3)), cell=[9, 9, 9], pbc=True) for k in (1, 40)]
        for a in atoms:
            a.calc = SinglePointCalculator(a, energy=-1.0, forces=np.zeros((len(a), 3)))
        ase.io.write(tmp_path / "mptrj_inorganic" / name, atoms)
    text = "2\n  8065.544\nC 0.0 0.0 0.0 0.1 0.0 0.0\nH 0.0 0.0 1.0 0.0 -0.2 0.0\n"
    (tmp_path / "qm22/c14.xyz.xz").write_bytes(lzma.compress((text * 2).encode()))
    return tmp_path


def make(root: Path, **options) -> Path:
    out = root / "out"
    words = [w for key, value in options.items() for w in (f"--{key.replace('_', '-')}", str(value))]
    made.main(["--data-root", str(root), "--out", str(out), *words])
    return out


def test_the_organic_set_leaves_out_3bpa_and_keeps_both_orders_of_atoms(root):
    read = list(ani1x.read(make(root) / "organic.h5"))
    assert sorted(tuple(s.atomic_numbers) for s in read) == [(1, 1, 1, 1, 6)] + 3 * [(6, 1, 1, 1, 1)]
    with h5py.File(root / "ani1x_like/ani1x_like.h5") as file:
        energy = file["CH4"][ANI[1]][1] * HARTREE
    assert [s.energy for s in read if s.atomic_numbers[0] == 1] == pytest.approx([energy])


def test_reactions_are_limited_converted_and_have_four_atoms_at_least(root):
    read = list(transition1x.read(make(root, per_reaction=4, per_combustion=2) / "reactions.h5"))
    assert sorted(len(s.atomic_numbers) for s in read) == [4, 4, 5, 5, 5, 5]
    with np.load(root / "h2combustion/01_aimd.npz") as data:
        energies = data["E"][:3, 0] * KCAL_PER_MOL + 2 * FREE_ATOM_ENERGY[8] + 2 * FREE_ATOM_ENERGY[1]
    assert all(np.isclose(s.energy, energies).any() for s in read if len(s.atomic_numbers) == 4)


def test_large_crystals_stay_out(root):
    read = list(ase_file.read(make(root) / "inorganic.extxyz"))
    assert [len(s.atomic_numbers) for s in read] == [2, 2, 2]


def test_a_missing_excerpt_is_named(root, capsys):
    (root / "ani1x_made/ani1x_made.h5").unlink()
    with pytest.raises(SystemExit):
        make(root)
    assert "ani1x_made.h5 is missing; check --data-root" in capsys.readouterr().err


def test_c14h30_has_energies_in_ev_and_forces_against_its_gradient(root):
    read = list(ase_file.read(make(root) / "c14h30.extxyz"))
    assert [s.energy for s in read] == pytest.approx([1.0, 1.0], rel=1e-6)
    np.testing.assert_array_equal(read[0].positions, [[0, 0, 0], [0, 0, 1]])
    hartree_per_bohr = 27.211386 / 0.52917721
    np.testing.assert_allclose(
        read[1].forces, [[-0.1 * hartree_per_bohr, 0, 0], [0, 0.2 * hartree_per_bohr, 0]], rtol=1e-6
    )

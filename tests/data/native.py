"""Tiny files in the native layout of each data set, written by the tests themselves."""

import lzma

import ase.io
import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

METHANE = np.array([6, 1, 1, 1, 1], np.uint8)
METHANE_ENERGY = -40.4988  # Hartree; wB97X/6-31G(d)
_SHAPE = np.array(
    [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]]
)


def frames(n_frame, n_node, seed=0):
    """Positions [m, n, 3] and force-free-in-sum forces [m, n, 3] of a made-up molecule."""
    rng = np.random.default_rng(seed)
    base = _SHAPE if n_node == 5 else 1.5 * np.arange(3 * n_node).reshape(n_node, 3)
    forces = rng.normal(size=(n_frame, n_node, 3))
    return base + 0.05 * rng.normal(size=(n_frame, n_node, 3)), forces - forces.mean(axis=1, keepdims=True)


def write_ani1x(path, n_frame=6, formulas=("CH4", "C2H6", "C2H4", "CH4O"), drop=None, **replace):
    """An ANI-1x release file with methane, other small molecules and a three-atom one."""
    atoms = {"CH4": METHANE, "C2H6": [6] * 2 + [1] * 6, "C2H4": [6] * 2 + [1] * 4, "CH4O": [6, 8] + [1] * 4}
    with h5py.File(path, "w") as file:
        for i, formula in enumerate((*formulas, "H2O")):
            numbers = np.array(atoms.get(formula, [8, 1, 1]), np.uint8)
            positions, forces = frames(n_frame, len(numbers), i)
            energy = METHANE_ENERGY / 10 * numbers.sum() + 0.01 * np.arange(n_frame) + 0.003 * i
            data = {
                "atomic_numbers": numbers,
                "coordinates": positions.astype("f4"),
                "wb97x_dz.energy": energy,
                "wb97x_dz.forces": forces.astype("f4"),
                "ccsd(t)_cbs.energy": np.full(n_frame, np.nan),
            }
            for name, values in data.items():
                if name != drop:
                    file[f"{formula}/{name}"] = replace.get(name, values) if formula == "CH4" else values
    return path


def write_transition1x(path, tops=("data", "train", "val", "test"), shared=False):
    """A Transition1x file: `data` repeats the split groups; each reaction carries a transition state."""
    with h5py.File(path, "w") as file:
        for top in tops:
            for i in range(3):
                reaction = f"rxn000{i}" if top == "data" or shared else f"rxn{top}{i}"
                group = file.create_group(f"{top}/CH4/{reaction}")
                positions, forces = frames(4, 5, i)
                for target in (group, group.create_group("transition_state")):
                    target["atomic_numbers"] = METHANE.astype("i8")
                    target["positions"] = positions
                    target["wB97x_6-31G(d).energy"] = -1102.0 + np.arange(4)
                    target["wB97x_6-31G(d).forces"] = forces
    return path


def slab(seed=0, tags=True):
    """A four-atom copper layer with CO on it; two atoms held; complete forces."""
    positions, forces = frames(1, 6, seed)
    atoms = Atoms("Cu4CO", positions[0], cell=[[5, 0, 0], [1, 5, 0], [0, 0, 20]], pbc=True)
    if tags:
        atoms.set_tags([0, 0, 1, 1, 2, 2])
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.calc = SinglePointCalculator(atoms, energy=-100.0 - seed, forces=forces[0])
    return atoms


def write_oc20(folder, n_shard=2, n_frame=3, compress=True, tags=True):
    """Pairs K.extxyz[.xz], K.txt[.xz] in the layout of the S2EF download; two systems a shard."""
    folder.mkdir(exist_ok=True)
    for k in range(n_shard):
        text = "".join(_extxyz(slab(10 * k + i, tags)) for i in range(n_frame))
        ids = "".join(f"random{2 * k + i // 2},frame{i},-99.5\n" for i in range(n_frame))
        for name, content in ((f"{k}.extxyz", text), (f"{k}.txt", ids)):
            if compress:
                (folder / f"{name}.xz").write_bytes(lzma.compress(content.encode()))
            else:
                (folder / name).write_text(content)
    return folder


def _extxyz(atoms):
    columns = "species:S:1:pos:R:3:tags:I:1:move_mask:L:1:forces:R:3"
    has_tags = atoms.has("tags")
    lattice = " ".join(map(str, atoms.cell.array.ravel()))
    columns = columns if has_tags else columns.replace("tags:I:1:", "")
    energy = atoms.calc.results["energy"]
    lines = [
        str(len(atoms)),
        f'Lattice="{lattice}" Properties={columns} energy={energy} free_energy=-1.0 pbc="T T T"',
    ]
    fixed = atoms.constraints[0].index
    for i, atom in enumerate(atoms):
        tag = f"{atom.tag} " if has_tags else ""
        numbers = (
            " ".join(f"{x:.8f}" for x in row) for row in (atom.position, atoms.calc.results["forces"][i])
        )
        position, force = numbers
        lines.append(f"{atom.symbol} {position} {tag}{'F' if i in fixed else 'T'} {force}")
    return "\n".join(lines) + "\n"


def write_structures(path, n=10, group=None, **changes):
    """An extxyz file of molecules with energy and forces; `changes` are applied to the last structure."""
    images = []
    for i in range(n):
        positions, forces = frames(1, 5, i)
        atoms = Atoms(METHANE, positions[0])
        atoms.calc = SinglePointCalculator(atoms, energy=-1102.0 + 0.1 * i, forces=forces[0])
        if group is not None:
            atoms.info["group"] = group
        images.append(atoms)
    for name, value in changes.items():
        if name in ("energy", "forces"):
            images[-1].calc.results[name] = value
        else:
            setattr(images[-1], name, value)
    ase.io.write(path, images, format="extxyz")
    return path


def write_demo(path, n=4, target=None, **replace):
    """A file of the package's own demo layout."""
    positions, forces = frames(n, 5)
    data = {
        "n_node": np.full(n, 5, "i4"),
        "atomic_numbers": np.tile(METHANE, n),
        "energy": -1102.0 + np.arange(n),
        "positions": positions.reshape(-1, 3).astype("f4"),
        "forces": forces.reshape(-1, 3).astype("f4"),
        "group": np.array([f"g{i % 2}" for i in range(n)], dtype=object),
    }
    data |= {} if target is None else {"target_gap": target}
    with h5py.File(path, "w") as file:
        file.attrs["description"] = "test"
        for name, values in (data | replace).items():
            if values is not None:
                kind = h5py.string_dtype() if name == "group" else None
                file.create_dataset(name, data=values, dtype=kind, compression="gzip", shuffle=True)
    return path


def is_one_line_about(error, *parts):
    """Whether the message is a single line holding all parts."""
    message = str(error.value)
    missing = [part for part in parts if str(part) not in message]
    assert "\n" not in message, message
    assert not missing, f"{missing} not in {message!r}"
    return True

"""Tiny files in the native layouts of the downstream data sets, written by the tests themselves."""

import gzip
import io
import json
import tarfile
import zlib

import h5py
import native
import native_shards
import numpy as np

KCAL = 23.061  # kcal/mol per eV
METHANE_KCAL = -1102.0 * KCAL


def write_rmd17(path, n_frame=6, **replace):
    """`rmd17_<molecule>.npz`."""
    positions, forces = native.frames(n_frame, 5)
    arrays = {
        "nuclear_charges": native.METHANE,
        "coords": positions,
        "energies": METHANE_KCAL + np.arange(n_frame),
        "forces": forces,
        "old_energies": np.zeros(n_frame),
        "old_indices": np.arange(n_frame),
    }
    np.savez(path, **(arrays | replace))
    return path


def write_md22(path, n_frame=6, **replace):
    """`md22_<molecule>.npz`: energies are a column."""
    positions, forces = native.frames(n_frame, 5)
    arrays = {"z": native.METHANE, "R": positions, "E": METHANE_KCAL + np.arange(n_frame)[:, None], "F": forces,
              "e_unit": np.array("kcal/mol"), "theory": np.array("PBE+MBD, 500K")}  # fmt: skip
    np.savez(path, **(arrays | replace))
    return path


def write_spice(path, n_frame=4, spring=0.3, drop=None):
    """A SPICE file whose energies are those of springs, so that the sign of the gradient can be tested."""
    rest = 1.9 * np.arange(15.0).reshape(5, 3)  # bohr
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i, name in enumerate(("amino b", "amino a")):
            shift = 0.1 * rng.normal(size=(n_frame, 5, 3))
            energy = 0.5 * spring * (shift**2).sum(axis=(1, 2))
            data = {
                "atomic_numbers": native.METHANE,
                "conformations": (rest + shift).astype("f8"),
                "dft_total_energy": -40.5 + energy,
                "formation_energy": -0.8 + energy,
                "dft_total_gradient": spring * shift,
                "subset": np.array([b"x"]),
            }
            for key, values in data.items():
                if (i, key) != (1, drop):
                    file[f"{name}/{key}"] = values
    return path


QM9_METHANE = """5
gdb {index}\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t\
-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 2.150416*^-3\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def write_qm9(path, indices=(1, 2, 3, 4), text=QM9_METHANE):
    """`dsgdb9nsd.xyz.tar.bz2` of as many methanes."""
    with tarfile.open(path, "w:bz2") as archive:
        for index in indices:
            data = text.replace("{index}", str(index)).encode()
            member = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _structure(symbols, seed=0):
    rng = np.random.default_rng(seed)
    cell = 4.0 * np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    abc = rng.random((len(symbols), 3))
    sites = [
        {"species": [{"element": s, "occu": 1}], "label": s, "abc": p.tolist(), "xyz": (p @ cell).tolist()}
        for s, p in zip(symbols, abc, strict=True)
    ]
    return {"@class": "Structure", "charge": None, "lattice": {"matrix": cell.tolist()}, "sites": sites}


def write_matbench(path, n=12, target="last phdos peak", values=None, **changes):
    """`matbench_<task>.json.gz`; `changes` apply to the structure of the last row."""
    values = [100.0 + i for i in range(n)] if values is None else values
    rows = [[_structure(["Si", "Ge"], i), value] for i, value in enumerate(values)]
    rows[-1][0].update(changes)
    table = {"index": [f"mb-{i}" for i in range(n)], "columns": ["structure", target], "data": rows}
    with gzip.open(path, "wt") as file:
        json.dump(table, file)
    return path


def write_qmof(folder, n=7, n_structure=None):
    """The pair of JSON lists; the third record has no band gap."""
    folder.mkdir(exist_ok=True)
    records = [
        {"qmof_id": f"qmof-{i}", "info": {"natoms": 3, "mofid": {"mofid": None}},
         "outputs": {"pbe": {"bandgap": None if i == 2 else 0.5 * i, "energy_total": -10.0 * i, "flag": True}}}
        for i in range(n)
    ]  # fmt: skip
    structures = [
        {"qmof_id": f"qmof-{i}", "structure": _structure(["Zn", "O", "H"], i)} for i in range(n_structure or n)
    ]
    (folder / "qmof.json").write_text(json.dumps(records, indent=1))
    (folder / "qmof_structure_data.json").write_text(json.dumps(structures))
    return folder


def omat_row(seed=0, **changes):
    """One row of an ASE database in LMDB form."""
    positions, forces = native.frames(1, 4, seed)

    def array(values):
        values = np.asarray(values)
        return {"__ndarray__": [list(values.shape), values.dtype.name, values.ravel().tolist()]}

    row = {
        "numbers": array([12, 8, 12, 8]),
        "positions": array(positions[0]),
        "cell": array(4.2 * np.eye(3)),
        "pbc": array([True, True, True]),
        "energy": -20.0 - seed,
        "forces": array(forces[0]),
        "stress": array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "data": {"sid": f"agm{seed // 2}_rattled-300-{seed}"},
        "unique_id": "a" * 32,
    } | changes
    return zlib.compress(json.dumps({name: value for name, value in row.items() if value is not None}).encode())


def write_omat(folder, n_shard=2, n_row=4, deleted=(2,), **changes):
    """`.aselmdb` files of rows 1..n, some deleted; `changes` apply to the last row of all."""
    for k in range(n_shard):
        last = k == n_shard - 1
        rows = [
            (i, omat_row(10 * k + i, **(changes if last and i == n_row else {})))
            for i in range(1, n_row + 1)
            if i not in deleted
        ]
        heads = [("nextid", zlib.compress(str(n_row + 1).encode())),
                 ("deleted_ids", zlib.compress(json.dumps(list(deleted)).encode()))]  # fmt: skip
        native_shards.write_lmdb(folder / f"data{k:04d}.aselmdb", [*rows, *heads])
    return folder

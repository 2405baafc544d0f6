"""Readers of the downstream data sets: units, signs, orders; faulty files refused in one line."""

import gzip
import itertools
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from fixtures import native
from fixtures import native_downstream as layouts

from jaxatoms.data.readers import ani1x, ase_file, matbench, npz_trajectory, qm9, qmof, spice
from jaxatoms.data.store import open_dataset
from jaxatoms.types import InputError

SAMPLES = Path(__file__).parent / "samples"


def refused(read, path, *parts):
    with pytest.raises(InputError) as error:
        list(read(path))
    return native.is_one_line_about(error, path, *parts)


@pytest.mark.parametrize("write", [layouts.write_rmd17, layouts.write_md22])
def test_molecular_dynamics_becomes_ev(tmp_path, write):
    systems = list(npz_trajectory.read(write(tmp_path / "m.npz")))
    assert len(systems) == 6
    np.testing.assert_allclose(systems[2].energy, -1102.0 + 2 / 23.061, rtol=1e-14)  # float64 throughout
    np.testing.assert_allclose(systems[2].forces, native.frames(6, 5)[1][2] / 23.061)
    assert all(np.abs(s.forces.sum(axis=0)).max() < 1e-12 for s in systems)


def test_faulty_npz_files_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    assert refused(npz_trajectory.read, layouts.write_rmd17(path, forces=np.full((6, 5, 3), np.nan)), "frame[0]")
    assert refused(npz_trajectory.read, layouts.write_rmd17(path, coords=np.zeros((6, 4, 3))), "shape (6, 4, 3)")
    in_hartree = np.full(6, -40.5)
    assert refused(npz_trajectory.read, layouts.write_rmd17(path, energies=in_hartree), "another unit")
    np.savez(path, a=np.zeros(3))
    assert refused(npz_trajectory.read, path, "npz: has the arrays a; expected nuclear_charges")
    layouts.write_rmd17(path)
    path.write_bytes(path.read_bytes()[:-300])
    assert refused(npz_trajectory.read, path, "download it again")


def test_ev_read_as_hartree_is_caught(tmp_path):
    path = native.write_ani1x(tmp_path / "a.h5", **{"wb97x_dz.energy": np.full(6, -1102.0)})
    assert refused(ani1x.read, path, "CH4", "its free atoms have -1083.9 eV", "another unit")


def test_spice_forces_are_minus_the_gradient_of_its_energies(tmp_path):
    systems = list(spice.read(layouts.write_spice(tmp_path / "s.h5")))
    assert [s.group for s in systems] == ["amino a"] * 4 + ["amino b"] * 4  # HDF5 key order
    for a, b in itertools.pairwise(systems[:4]):
        # Of a quadratic energy the trapezoid rule is exact.
        work = 0.5 * ((a.forces + b.forces) * (b.positions - a.positions)).sum()
        np.testing.assert_allclose(b.energy - a.energy, -work, rtol=1e-5)
        np.testing.assert_allclose(b.extra["dft_total_energy"] - a.extra["dft_total_energy"], -work, rtol=1e-5)
    assert -30 < systems[0].energy < -15  # the formation energy


def test_spice_refuses_other_layouts(tmp_path):
    path = layouts.write_spice(tmp_path / "s.h5", drop="dft_total_gradient")
    assert refused(spice.read, path, "amino a", "dft_total_gradient")
    assert refused(spice.read, native.write_ani1x(tmp_path / "a.h5"), "conformations")


def test_spice_passes_over_empty_molecules_and_other_subsets(tmp_path):
    path = layouts.write_spice(tmp_path / "s.h5")
    with h5py.File(path, "a") as file:
        subsets = {"amino a": b"SPICE Dipeptides Single Points Dataset v1.2", "amino b": b"SPICE DES370K"}
        for name, subset in subsets.items():
            del file[f"{name}/subset"]
            file[f"{name}/subset"] = [subset]
        file["none/atomic_numbers"] = [6, 1]
        for name in ("conformations", "dft_total_energy", "formation_energy", "dft_total_gradient"):
            file[f"none/{name}"] = np.zeros(0)
    assert {s.group for s in spice.read(path)} == {"amino a", "amino b"}
    assert {s.group for s in spice.read(path, subset="dipeptides")} == {"amino a"}
    with h5py.File(path, "a") as file:
        del file["none"]
    assert refused(lambda p: spice.read(p, subset="solvated_amino_acids"), path, "SPICE DES370K", "another subset")


def test_qm9_xyz_has_19_targets_in_ev(tmp_path):
    systems = list(qm9.read(layouts.write_qm9(tmp_path / "q.tar.bz2", (3, 1, 2))))
    assert [s.extra["qm9_index"] for s in systems] == [1, 2, 3]
    values = {name: systems[0].extra[f"target_{name}"] for name in qm9.TARGETS}
    assert len(values) == 19
    np.testing.assert_allclose(values["U_0"], -40.47893 * 27.211386246, rtol=1e-15)
    np.testing.assert_allclose(values["U_0_ATOM"], -17.172182, atol=1e-5)  # -395.999 kcal/mol, as QM9 prints it
    np.testing.assert_allclose([values["A"], values["c_v"], values["delta_eps"]], [157.7118, 6.469, 13.736308])
    np.testing.assert_allclose(systems[0].positions[1, 0], 2.150416e-3)


def test_qm9_leaves_out_the_uncharacterized(tmp_path):
    path = layouts.write_qm9(tmp_path / "q.tar.bz2")
    (tmp_path / "uncharacterized.txt").write_text("header\n  index  smiles\n    2    C   0.1\n    4   C  0.2\nend\n")
    assert [s.extra["qm9_index"] for s in qm9.read(path)] == [1, 3]


def test_qm9_is_read_again_when_that_list_comes(tmp_path):
    path = layouts.write_qm9(tmp_path / "q.tar.bz2")
    name = f"qm9:U_0@{path}"
    assert len(open_dataset(name, cache_dir=tmp_path / "c")[1]) == 4
    (tmp_path / "uncharacterized.txt").write_text("2  C\n")
    assert len(open_dataset(name, cache_dir=tmp_path / "c")[1]) == 3


def test_the_whole_qm9_archive_needs_that_list(tmp_path, monkeypatch):
    monkeypatch.setattr(qm9, "N_ORIGINAL", 4)
    assert refused(qm9.read, layouts.write_qm9(tmp_path / "q.tar.bz2"), "uncharacterized.txt")


@pytest.mark.parametrize("name", ["qm9_zip.pt", "qm9_legacy.pt"])
def test_qm9_v3_needs_no_torch(tmp_path, name):
    shutil.copy(SAMPLES / name, tmp_path / "qm9_v3.pt")
    systems = list(qm9.read(tmp_path / "qm9_v3.pt"))
    assert [systems[1].extra[f"target_{t}"] for t in ("mu", "U_0", "C")] == [1.0, 8.0, 19.0]
    assert [s.extra["qm9_index"] for s in systems] == [1, 2]


def test_faulty_qm9_files_are_refused(tmp_path):
    path = tmp_path / "q.tar.bz2"
    bad = layouts.QM9_METHANE.replace("13.21", "x")
    assert refused(qm9.read, layouts.write_qm9(path, text=bad), "dsgdb9nsd_000001.xyz", "not a QM9 molecule")
    path.write_bytes(path.read_bytes()[:100])
    assert refused(qm9.read, path, "not a readable tar")
    (tmp_path / "qm9_v3.pt").write_bytes(b"cos\nsystem\n(S'ls'\ntR.")
    assert refused(qm9.read, tmp_path / "qm9_v3.pt", "asks for os.system")


def test_matbench_keeps_file_order_and_small_cells(tmp_path):
    systems = list(matbench.read(layouts.write_matbench(tmp_path / "m.json.gz")))
    assert [s.extra["target_y"] for s in systems] == [100.0 + i for i in range(12)]
    assert all(len(s.atomic_numbers) == 2 and s.pbc == (True, True, True) for s in systems)
    labels = list(matbench.read(layouts.write_matbench(tmp_path / "b.json.gz", values=[True, False] * 6)))
    assert [s.extra["target_y"] for s in labels[:2]] == [1.0, 0.0]


def test_matbench_reads_items_that_span_chunks(tmp_path, monkeypatch):
    whole = [s.positions for s in matbench.read(layouts.write_matbench(tmp_path / "m.json.gz"))]
    monkeypatch.setattr("jaxatoms.data.readers.json_stream._CHUNK", 7)
    for a, b in zip(whole, (s.positions for s in matbench.read(tmp_path / "m.json.gz")), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_matbench_keys_may_stand_in_any_order(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("jaxatoms.data.readers.json_stream._CHUNK", chunk)
    path = layouts.write_matbench(tmp_path / "m.json.gz")
    table = json.loads(gzip.decompress(path.read_bytes()))
    swapped = {"data": [row[::-1] for row in table["data"]], "index": table["index"], "columns": table["columns"][::-1]}
    path.write_bytes(gzip.compress(json.dumps(swapped).encode()))
    assert [s.extra["target_y"] for s in matbench.read(path)] == [100.0 + i for i in range(12)]


def test_faulty_matbench_files_are_refused(tmp_path):
    path = tmp_path / "m.json.gz"
    site = {"species": [{"element": "Si", "occu": 0.5}], "abc": [0, 0, 0]}
    assert refused(matbench.read, layouts.write_matbench(path, sites=[site]), "row 11", "partially occupied")
    assert refused(matbench.read, layouts.write_matbench(path, values=[float("nan")] * 12), "row 0", "NaN")
    path.write_bytes(path.read_bytes()[:-50])
    assert refused(matbench.read, path, "not a readable MatBench file")
    path.write_bytes(gzip.compress(b'{"columns": ["composition", "y"], "data": []}'))
    assert refused(matbench.read, path, "compositions without structures")


def test_qmof_reads_every_scalar(tmp_path):
    systems = list(qmof.read(layouts.write_qmof(tmp_path / "q")))
    assert len(systems) == 7
    assert systems[3].extra == {
        "target_info.natoms": 3.0, "target_outputs.pbe.bandgap": 1.5, "target_outputs.pbe.energy_total": -30.0,
    }  # fmt: skip
    assert "target_outputs.pbe.bandgap" not in systems[2].extra  # missing stays missing
    shutil.make_archive(str(tmp_path / "qmof_database"), "zip", tmp_path, "q")
    assert len(list(qmof.read(tmp_path / "qmof_database.zip"))) == 7


def test_qmof_joins_by_id_and_not_by_order(tmp_path):
    folder = layouts.write_qmof(tmp_path / "q")
    want = {s.key: (s.extra, s.positions.tolist()) for s in qmof.read(folder)}
    structures = json.loads((folder / "qmof_structure_data.json").read_text())
    (folder / "qmof_structure_data.json").write_text(json.dumps(structures[::-1]))
    systems = list(qmof.read(folder))
    assert [s.key for s in systems] == [f"qmof-{i}" for i in reversed(range(7))]
    assert {s.key: (s.extra, s.positions.tolist()) for s in systems} == want
    structures[3]["structure"]["sites"][0]["species"][0]["occu"] = 0.5
    (folder / "qmof_structure_data.json").write_text(json.dumps(structures))
    assert refused(qmof.read, folder, "qmof-3", "partially occupied")


def test_qmof_lists_of_different_length_are_refused(tmp_path):
    path = layouts.write_qmof(tmp_path / "q", n_structure=6)
    assert refused(qmof.read, path, "qmof-6", "has a record, but no structure")
    (tmp_path / "e").mkdir()
    assert refused(qmof.read, tmp_path / "e", "holds no qmof.json")


def test_labels_under_other_names(tmp_path):
    path = tmp_path / "s.xyz"
    path.write_text('2\nmy_e=-3.5 Properties=species:S:1:pos:R:3:my_f:R:3\n'
                    "H 0 0 0 1 2 3\nH 0 0 1 -1 -2 -3\n")  # fmt: skip
    system = next(iter(ase_file.read(path, energy_key="my_e", forces_key="my_f")))
    assert system.energy == -3.5
    np.testing.assert_array_equal(system.forces[0], [1, 2, 3])
    assert np.isnan(next(iter(ase_file.read(path))).energy)
    assert refused(lambda p: ase_file.read(p, energy_key="other"), path, "no energy under 'other'", "my_e, my_f")


@pytest.mark.data
@pytest.mark.parametrize(
    ("molecule", "mean", "force_std"), [("aspirin", -17617.379, 1.2733363), ("ethanol", -4209.5346, 1.1929188)]
)
def test_real_rmd17_has_the_published_statistics(real_data, molecule, mean, force_std):
    systems = list(npz_trajectory.read(real_data("rmd17") / f"rmd17_{molecule}.npz"))
    assert abs(np.mean([s.energy for s in systems]) - mean) < 0.02  # eV
    assert abs(np.concatenate([s.forces for s in systems]).std() / force_std - 1) < 0.01
    assert max(np.abs(s.forces.sum(axis=0)).max() for s in systems) < 1e-3


@pytest.mark.data
@pytest.mark.slow
def test_real_qm9_has_the_published_statistics(real_data):
    systems = list(qm9.read(real_data("qm9") / "dsgdb9nsd_subset.xyz.tar.bz2"))
    assert len(systems) == 21_000
    published = {"delta_eps": (6.8585854, 1.283122), "mu": (2.674587, 1.5054824), "alpha": (75.31013, 8.164021),
                 "eps_HOMO": (-6.5347567, 0.59702325)}  # fmt: skip
    for name, (mean, std) in published.items():
        values = np.array([s.extra[f"target_{name}"] for s in systems])
        assert abs(values.mean() - mean) < 4 * std / np.sqrt(len(values))
        assert abs(values.std() / std - 1) < 0.05


@pytest.mark.data
def test_real_matbench_layout(real_data):
    n = {path.name: sum(1 for _ in matbench.read(path)) for path in real_data("matbench_like").glob("*.json.gz")}
    assert n["mp_binary_log_kvrh.json.gz"] == 2767
    assert len(n) == 6


@pytest.mark.data
def test_real_spice_layout(real_data):
    systems = [s for path in real_data("spice").iterdir() for s in spice.read(path)]
    assert len(systems) == 38
    assert max(np.abs(s.forces.sum(axis=0)).max() for s in systems) < 0.02
    # Two conformations of acetylene and a sodium ion that differ by 0.09 A: forces, not gradients.
    a, b = [s for s in systems if s.group == "C#C.[Na+]"][1:]
    work = 0.5 * ((a.forces + b.forces) * (b.positions - a.positions)).sum()
    np.testing.assert_allclose(abs(b.energy - a.energy), 0.0215, rtol=0.01)
    np.testing.assert_allclose(b.energy - a.energy, -work, rtol=0.05)

"""Readers: units converted once, labels complete, and every faulty file refused in one line."""

import ase
import ase.build
import ase.db
import h5py
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCartesian
from fixtures import native

from jaxatoms.data.readers import ani1x, ase_file, demo, oc20, transition1x
from jaxatoms.data.store import open_dataset
from jaxatoms.types import InputError
from jaxatoms.units import HARTREE


def refused(read, path, *parts):
    with pytest.raises(InputError) as error:
        list(read(path))
    return native.is_one_line_about(error, path, *parts)


def test_ani1x_energies_of_methane_are_near_minus_1100_ev(tmp_path):
    systems = [s for s in ani1x.read(native.write_ani1x(tmp_path / "a.h5")) if s.group == "CH4"]
    assert len(systems) == 6
    assert systems[0].energy == native.METHANE_ENERGY * HARTREE
    assert all(-1105 < s.energy < -1095 for s in systems)
    assert all(np.abs(s.forces.sum(axis=0)).max() < 1e-5 for s in systems)


def test_ani1x_forces_keep_their_sign_and_become_ev_per_angstrom(tmp_path):
    path = native.write_ani1x(tmp_path / "a.h5")
    first = next(iter(ani1x.read(path)))
    with h5py.File(path) as file:
        np.testing.assert_allclose(
            first.forces, file[f"{first.group}/wb97x_dz.forces"][0] * HARTREE, rtol=1e-6
        )


def test_ani1x_drops_formulas_below_four_atoms(tmp_path):
    assert {s.group for s in ani1x.read(native.write_ani1x(tmp_path / "a.h5"))} == {
        "CH4",
        "C2H6",
        "C2H4",
        "CH4O",
    }


def test_ani1x_reads_a_group_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxatoms.data.readers.molecules.FRAMES_PER_BLOCK", 4)
    keys = [s.key for s in ani1x.read(native.write_ani1x(tmp_path / "a.h5", n_frame=6)) if s.group == "CH4"]
    assert keys == [f"CH4[{i}]" for i in range(6)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["wb97x_dz.energy", "wb97x_dz.forces", "coordinates"])
def test_ani1x_refuses_a_value_that_is_not_finite(tmp_path, name, bad):
    shape = {"wb97x_dz.energy": (6,)}.get(name, (6, 5, 3))
    values = np.ones(shape)
    values[4] = bad
    path = native.write_ani1x(tmp_path / "a.h5", **{name: values})
    assert refused(ani1x.read, path, "CH4[4]", name, "NaN or infinite", "remove the record")


@pytest.mark.parametrize("number", [0, 121, 200])
def test_ani1x_refuses_an_unknown_element(tmp_path, number):
    path = native.write_ani1x(tmp_path / "a.h5", atomic_numbers=np.array([6, 1, 1, 1, number]))
    assert refused(ani1x.read, path, "CH4", f"atomic number {number}", "1..120")


def test_ani1x_refuses_other_layouts(tmp_path):
    assert refused(
        ani1x.read,
        native.write_ani1x(tmp_path / "a.h5", drop="wb97x_dz.forces"),
        "wb97x_dz.forces",
        "expected",
    )
    assert refused(ani1x.read, native.write_transition1x(tmp_path / "t.h5"), "atomic_numbers", "expected")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["coordinates"] = np.zeros((2, 3))
    assert refused(ani1x.read, tmp_path / "flat.h5", "coordinates", "is not a group", "expected")
    path = native.write_ani1x(tmp_path / "b.h5", coordinates=np.zeros((6, 4, 3)))
    assert refused(ani1x.read, path, "CH4", "shape (6, 4, 3), expected (6, 5, 3)")


@pytest.mark.parametrize("read", [ani1x.read, transition1x.read, demo.read, ase_file.read, oc20.read])
def test_missing_file_is_named(tmp_path, read):
    assert refused(read, tmp_path / "none.h5", "no such file")


@pytest.mark.parametrize("read", [ani1x.read, transition1x.read, demo.read])
def test_a_cut_hdf5_file_is_refused(tmp_path, read):
    path = native.write_ani1x(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:500])
    assert refused(read, path, "not a readable HDF5 file", "again")


def test_transition1x_energies_need_no_factor(tmp_path):
    systems = list(transition1x.read(native.write_transition1x(tmp_path / "t.h5", tops=("data",))))
    assert len(systems) == 12
    assert systems[0].energy == -1102.0
    assert systems[0].group == "CH4_rxn0000"
    assert transition1x.official_split(tmp_path / "t.h5") is None


def test_transition1x_reads_the_split_groups_and_not_their_copy(tmp_path):
    path = native.write_transition1x(tmp_path / "t.h5")
    systems = list(transition1x.read(path))
    parts = transition1x.official_split(path)
    assert len(systems) == len(parts) == 36
    assert [s.group.split("rxn")[1][:-1] for s in systems] == [transition1x.SPLITS[part] for part in parts]


def test_transition1x_refuses_an_ani1x_file(tmp_path):
    assert refused(
        transition1x.read, native.write_ani1x(tmp_path / "a.h5"), "data, train, val, test", "expected"
    )


@pytest.mark.parametrize("compress", [True, False])
def test_oc20_keeps_total_energies_tags_fixed_atoms_and_complete_forces(tmp_path, compress):
    systems = list(oc20.read(native.write_oc20(tmp_path / "o", compress=compress)))
    first, atoms = systems[0], native.slab(0)
    assert [s.group for s in systems] == ["random0", "random0", "random1", "random2", "random2", "random3"]
    assert first.energy == -100.0
    np.testing.assert_array_equal(first.tags, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(first.fixed, [True, True, False, False, False, False])
    np.testing.assert_allclose(first.forces, atoms.calc.results["forces"], atol=1e-8)
    assert np.abs(first.forces[:2]).min() > 0
    assert first.pbc == (True, True, True)
    np.testing.assert_allclose(first.cell, atoms.cell.array)


def test_oc20_reads_one_pair_by_name(tmp_path):
    folder = native.write_oc20(tmp_path / "o")
    assert len(list(oc20.read(folder / "1.extxyz.xz"))) == 3


def test_oc20_refuses_faulty_downloads(tmp_path):
    folder = native.write_oc20(tmp_path / "o", compress=False)
    (folder / "1.txt").write_text("random2,frame0\n")
    assert refused(oc20.read, folder, "1.extxyz", "more than 1 frames", "txt file 1 lines")
    (folder / "1.txt").unlink()
    assert refused(oc20.read, folder, "1.txt[.xz] are missing")
    (tmp_path / "empty").mkdir()
    assert refused(oc20.read, tmp_path / "empty", "no .extxyz", "unpack")
    assert refused(
        oc20.read, native.write_oc20(tmp_path / "u", tags=False), "frame 0 (random0)", "lacks tags"
    )
    cut = native.write_oc20(tmp_path / "c") / "0.extxyz.xz"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert refused(oc20.read, tmp_path / "c", "0.extxyz.xz", "download")


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_ase_file_reads_what_ase_reads(tmp_path, suffix):
    import ase.io

    path = tmp_path / f"s.{suffix}"
    ase.io.write(path, [native.slab(i) for i in range(3)])
    systems = list(ase_file.read(path))
    assert [s.energy for s in systems] == [-100.0, -101.0, -102.0]
    np.testing.assert_allclose(systems[1].forces, native.slab(1).calc.results["forces"], atol=1e-7)
    np.testing.assert_array_equal(systems[1].tags, [0, 0, 1, 1, 2, 2])
    assert systems[0].group == ""


def test_ase_file_keeps_missing_labels_missing(tmp_path):
    system = list(ase_file.read(native.write_structures(tmp_path / "s.xyz", calc=None)))[-1]
    assert np.isnan(system.energy)
    assert system.forces is None
    assert system.tags is None
    assert system.cell is None


def test_ase_file_takes_the_group_of_the_info(tmp_path):
    assert {s.group for s in ase_file.read(native.write_structures(tmp_path / "s.xyz", group="run7"))} == {
        "run7"
    }


def test_ase_file_refuses_bad_values(tmp_path):
    path = tmp_path / "s.xyz"
    assert refused(
        ase_file.read, native.write_structures(path, energy=np.nan), "structure 9", "energy", "NaN"
    )
    assert refused(
        ase_file.read, native.write_structures(path, forces=np.full((5, 3), np.inf)), "structure 9", "forces"
    )
    assert refused(
        ase_file.read, native.write_structures(path, pbc=True), "structure 9", "zero volume", "set pbc"
    )
    assert refused(
        ase_file.read, native.write_structures(path, numbers=np.array([6, 0, 1, 1, 1])), "atomic number 0"
    )
    path.write_text("not\na structure file\n\n")
    assert refused(ase_file.read, path, "ASE cannot read it", "extxyz")


def test_demo_reads_its_columns_and_targets(tmp_path):
    path = native.write_demo(tmp_path / "d.h5", target=np.array([1.0, 2.0, np.nan, 4.0]))
    systems = list(demo.read(path))
    assert [s.group for s in systems] == ["g0", "g1", "g0", "g1"]
    assert systems[3].energy == -1099.0
    np.testing.assert_array_equal([s.extra["target_gap"] for s in systems], [1, 2, np.nan, 4])


def test_demo_without_labels_needs_targets(tmp_path):
    path = native.write_demo(tmp_path / "d.h5", target=np.ones(4), energy=None, forces=None)
    assert np.isnan(next(iter(demo.read(path))).energy)
    assert refused(demo.read, native.write_demo(tmp_path / "e.h5", energy=None), "energy", "expected")


def test_demo_refuses_bad_values(tmp_path):
    path = tmp_path / "d.h5"
    forces = np.ones((20, 3))
    forces[11] = np.nan
    assert refused(demo.read, native.write_demo(path, forces=forces), "record 2", "forces", "NaN")
    assert refused(
        demo.read, native.write_demo(path, n_node=np.array([5, 5, 5])), "shape (4,), expected (3,)"
    )
    periodic = {"cell": np.zeros((4, 3, 3), "f4"), "pbc": np.ones((4, 3), bool)}
    assert refused(demo.read, native.write_demo(path, **periodic), "record 0", "zero volume")


def test_real_oc20_sample_follows_the_conventions(real_data):
    systems = list(oc20.read(real_data("oc20_s2ef")))
    assert len(systems) == 3110
    assert 0 < np.mean(np.concatenate([s.fixed for s in systems])) < 1
    assert set(np.unique(np.concatenate([s.tags for s in systems]))) == {0, 1, 2}
    assert all(np.linalg.det(s.cell) > 0 for s in systems)
    # Where the tag says sub-surface the atom is held: move_mask F means fixed.
    assert all((s.fixed == (s.tags == 0)).all() for s in systems)
    assert np.mean([np.abs(s.forces[s.fixed]).max() > 0 for s in systems]) > 0.99


@pytest.mark.parametrize("name", ["ani1x_like/ani1x_like.h5", "ani1x_made/ani1x_made.h5"])
def test_real_ani1x_samples_have_balanced_forces(real_data, name):
    folder, file = name.split("/")
    systems = list(ani1x.read(real_data(folder) / file))
    assert all(-3e4 < s.energy < -1e3 for s in systems)
    assert (
        max(np.abs(s.forces.sum(axis=0)).max() for s in systems) < 0.05
    )  # eV/A; density fitting leaves 0.03


def test_real_transition1x_sample_is_in_ev(real_data):
    energies = [s.energy for s in transition1x.read(real_data("transition1x_like") / "transition1x_like.h5")]
    assert len(energies) == 3570
    assert -1.3e4 < min(energies) < max(energies) < -2e3


def _write(path, *images, **info):
    import ase.io

    for atoms in images:
        atoms.info.update(info)
    ase.io.write(path, list(images))
    return path


def molecule(seed=0, **arrays):
    atoms = ase.Atoms("CH4", native.frames(1, 5, seed)[0][0])
    for name, values in arrays.items():
        atoms.new_array(name, values)
    return atoms


def test_named_labels_may_be_missing_in_some_structures(tmp_path):
    lone = ase.Atoms("H")
    lone.info["REF_energy"] = -13.6
    whole = molecule(REF_forces=np.ones((5, 3)))
    whole.info["REF_energy"] = -1100.0
    other = molecule(1)
    other.calc = SinglePointCalculator(other, energy=-1.0, forces=np.zeros((5, 3)))  # of another method
    path = _write(tmp_path / "s.extxyz", lone, whole, other)
    systems = list(ase_file.read(path, "REF_energy", "REF_forces"))
    np.testing.assert_array_equal([s.energy for s in systems], [-13.6, -1100.0, np.nan])
    assert [s.forces is None for s in systems] == [True, False, True]
    assert refused(lambda p: ase_file.read(p, "REF_energy", "F"), path, "no forces under 'F'", "REF_forces")


def test_a_label_that_is_no_number_is_named(tmp_path):
    path = _write(tmp_path / "s.extxyz", molecule(), molecule(1))
    path.write_text(path.read_text().replace("Properties", "energy=None Properties"))
    assert refused(ase_file.read, path, "structure 0", "'energy' is 'None', no number")


def test_numeric_scalars_become_columns(tmp_path):
    first, second = molecule(), molecule(1)
    first.info |= {"gap": 1.5, "n": 3, "name": "x", "flag": True, "vector": np.ones(2), "group": 4}
    first.calc = SinglePointCalculator(first, energy=-1.0, magmom=2.0)
    for suffix in ("extxyz", "traj"):
        systems = list(ase_file.read(_write(tmp_path / f"s.{suffix}", first, second)))
        assert systems[0].extra == {"target_gap": 1.5, "target_n": 3.0, "target_magmom": 2.0}
        assert not systems[1].extra and systems[0].group == "4"
    _, store = open_dataset(f"file:{tmp_path / 's.extxyz'}", cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(store.column("target_gap"), [1.5, np.nan])


def test_database_rows_keep_scalars_groups_and_labels(tmp_path):
    with ase.db.connect(tmp_path / "s.db") as database:
        for i in range(2):
            data = {"F": np.full((5, 3), 1.0 + i), "U0": np.array([2.5])}
            database.write(molecule(i), key_value_pairs={"total": -1100.0 - i, "group": "g", "gap": 0.5}, data=data)
    systems = list(ase_file.read(tmp_path / "s.db", "total", "F"))
    assert [(s.energy, s.group) for s in systems] == [(-1100.0, "g"), (-1101.0, "g")]
    assert systems[1].forces[0, 0] == 2.0
    assert systems[0].extra == {"target_total": -1100.0, "target_gap": 0.5, "target_U0": 2.5}
    assert refused(lambda p: ase_file.read(p, "energy"), tmp_path / "s.db", "no energy under 'energy'", "total")


def test_a_database_in_other_units_is_refused(tmp_path):
    with ase.db.connect(tmp_path / "s.db") as database:
        database.write(molecule(), data={"E": -40.0})
        database.metadata = {"_property_unit_dict": {"E": "Hartree", "F": "eV/Ang"}, "_distance_unit": "Ang"}
    assert refused(lambda p: ase_file.read(p, "E", "F"), tmp_path / "s.db", "energies in Hartree")


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_atoms_held_in_all_directions_are_fixed(tmp_path, suffix):
    atoms = native.slab()
    atoms.set_constraint([FixCartesian(0), FixCartesian(1, (True, False, False)), FixCartesian(2)])
    system, = ase_file.read(_write(tmp_path / f"s.{suffix}", atoms))
    np.testing.assert_array_equal(system.fixed, [True, False, True, False, False, False])
    assert system.extra["n_partly_fixed"] == 1


def test_a_direction_without_period_needs_no_lattice_vector(tmp_path):
    atoms = ase.Atoms("Cu", cell=[[3, 0, 0], [1, 3, 0], [0, 0, 0]], pbc=(True, True, False))
    system, = ase_file.read(_write(tmp_path / "s.extxyz", atoms))
    np.testing.assert_allclose(system.cell, [[3, 0, 0], [1, 3, 0], [0, 0, 1]])
    assert system.pbc == (True, True, False)
    atoms.pbc = True
    assert refused(ase_file.read, _write(tmp_path / "s.extxyz", atoms), "zero volume", "periodic direction")


def test_partial_occupancy_is_refused(tmp_path):
    atoms = ase.Atoms("Cu", cell=[3, 3, 3], pbc=True)
    path = _write(tmp_path / "s.extxyz", atoms, occupancy={"0": {"Cu": 0.6, "Zn": 0.4}})
    assert refused(ase_file.read, path, "structure 0", "partially occupied", "Zn")


def test_an_empty_value_loses_no_energy(tmp_path):
    path = _write(tmp_path / "s.extxyz", molecule())
    path.write_text(path.read_text().replace("Properties", 'name="" energy=-1.5 Properties'))
    assert next(iter(ase_file.read(path))).energy == -1.5


def test_layer_tags_of_ase_are_refused_when_read(tmp_path):
    atoms = ase.build.fcc111("Cu", (1, 1, 3), vacuum=5)
    assert refused(ase_file.read, _write(tmp_path / "s.traj", atoms), "structure 0", "tag 3", "0 sub-surface")


def test_folders_patterns_and_lists_of_files_are_read(tmp_path):
    for name in ("runs/a/x.traj", "runs/b/x.traj", "runs/._c.traj", "z,1.traj"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _write(tmp_path / name, molecule(), molecule(1))
    (tmp_path / "runs" / "._c.traj").write_bytes(b"finder")

    def n(place):
        return len(open_dataset(f"file:{place}", cache_dir=tmp_path / "c")[1])

    assert n(tmp_path / "runs") == n(tmp_path / "runs/*/x.traj") == 4
    assert n(tmp_path / "z,1.traj") == 2
    assert n(f"{tmp_path / 'runs/a/x.traj'},{tmp_path / 'runs/b/x.traj'}") == 4
    _write(tmp_path / "runs/b/x.traj", molecule())
    assert n(tmp_path / "runs/*/x.traj") == 3  # converted again
    _write(tmp_path / "runs/a/x.extxyz", molecule())
    assert refused(ase_file.read, tmp_path / "runs", "several kinds", "1 *.extxyz, 2 *.traj", "**/")
    assert refused(ase_file.read, tmp_path / "runs/*.cif", "no file matches")


def test_hidden_files_beside_oc20_frames_are_passed_over(tmp_path):
    folder = native.write_oc20(tmp_path / "o")
    (folder / "._0.extxyz.xz").write_bytes(b"finder")
    assert len(list(oc20.read(folder))) == 6

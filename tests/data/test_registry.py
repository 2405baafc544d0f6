"""Names of data sets: found, mistyped, or without files."""

import pytest
from fixtures import native

from jaxatoms.data.registry import DATASETS, find_spec, resolve
from jaxatoms.types import InputError


def refused(*parts, name, data_root=None):
    with pytest.raises(InputError) as error:
        resolve(name, data_root)
    return native.is_one_line_about(error, *parts)


def test_mistyped_names_get_the_nearest_known_one():
    assert refused("unknown dataset 'ani1'; did you mean 'ani1x'?", name="ani1")
    assert refused("did you mean 'demo:organic'?", name="demo:organics")
    assert refused("known are ani1x, transition1x", name="zzzzzz")
    assert refused("did you mean 'omat24'?", name="omat@/some/file")
    assert refused("did you mean 'md22:Ac-Ala3-NHMe'?", name="md22:Ac-Ala3")
    assert refused("one of its 10 variants, such as 'rmd17:aspirin'", name="rmd17")
    assert refused("one of its 5 variants, such as 'matbench:phonons/0'", name="matbench:phonons")


def test_every_row_of_the_paper_has_a_name():
    families = {spec.family for spec in DATASETS.values()}
    assert families >= {"ani1x", "transition1x", "oc20", "oc22", "omat24", "rmd17", "md22", "spice", "qm9", "qmof"}
    assert sum(name.startswith("qm9:") for name in DATASETS) == 19
    assert sum(name.startswith("matbench:") for name in DATASETS) == 45
    assert find_spec("qm9:gap") is DATASETS["qm9:delta_eps"]


def test_targets_of_one_file_share_a_store():
    assert {DATASETS[f"qm9:{name}"].store_name for name in ("U_0", "mu")} == {"qm9"}
    assert {DATASETS[f"matbench:phonons/{fold}"].store_name for fold in range(5)} == {"matbench:phonons"}


def test_labels_of_a_file_can_be_named(tmp_path):
    path = native.write_structures(tmp_path / "a.xyz")
    spec, found = resolve(f"file:{path}#dft_energy,dft_forces")
    assert (found, dict(spec.options)) == (path, {"energy_key": "dft_energy", "forces_key": "dft_forces"})
    assert dict(resolve(f"file:{path}#,f")[0].options) == {"forces_key": "f"}
    assert dict(resolve(f"file:{path}#,,s")[0].options) == {"stress_key": "s"}
    assert refused("#energy_key,forces_key", name=f"file:{path}#a,b,c,d")
    odd = native.write_structures(tmp_path / "a#b.xyz")
    assert resolve(f"file:{odd}")[1] == odd


def test_published_constants():
    spec = DATASETS["oc20"]
    assert (spec.energy_std, spec.force_std) == (24.901469505465872, 0.5111534595489502)
    assert (spec.cutoff, spec.max_neighbors, spec.energy_scale, spec.force_scale) == (12.0, 30, 1.0, 10.0)
    assert [DATASETS[n].jmp_force_scale for n in ("oc20", "ani1x", "transition1x")] == [73.0, 15.0, 14.0]
    assert [DATASETS[n].cutoff for n in ("ani1x", "transition1x")] == [8.0, 8.0]


def test_files_are_found_below_the_data_root(tmp_path):
    folder = tmp_path / "ani1x"
    folder.mkdir()
    assert refused("ani1x-release.h5", "ani1x@PATH", name="ani1x", data_root=tmp_path)
    native.write_ani1x(folder / "mine.h5")
    assert resolve("ani1x", tmp_path)[1] == folder / "mine.h5"
    native.write_ani1x(folder / "other.h5")
    assert refused("several files", "mine.h5", "ani1x@PATH", name="ani1x", data_root=tmp_path)
    native.write_ani1x(folder / "ani1x-release.h5")
    assert resolve("ani1x", tmp_path)[1] == folder / "ani1x-release.h5"


def test_oc20_prefers_the_two_million_split(tmp_path):
    folder = native.write_oc20(tmp_path / "oc20")
    assert resolve("oc20", tmp_path)[1] == folder
    (folder / "s2ef_train_2M").mkdir()
    assert resolve("oc20", tmp_path)[1] == folder / "s2ef_train_2M"


def test_missing_places_name_the_remedy(tmp_path):
    assert refused("--data-root", "JAXATOMS_DATA", "ani1x@PATH", name="ani1x")
    assert refused("does not exist", "--data-root", name="ani1x", data_root=tmp_path / "none")
    assert refused(str(tmp_path / "ani1x"), "ani1x@PATH", name="ani1x", data_root=tmp_path)
    assert refused("none.h5 does not exist", name="ani1x@/none.h5")
    assert refused("/none.xyz does not exist", name="file:/none.xyz")
    assert refused("file:PATH", name="file:")
    assert refused("ani1x@PATH", name="ani1x@")


def test_a_path_may_hold_at_signs_and_colons(tmp_path):
    path = tmp_path / "a@b:c.xyz"
    native.write_structures(path)
    assert resolve(f"file:{path}")[1] == path


def test_several_targets_lie_in_the_file_of_the_first(tmp_path):
    (tmp_path / "qm9_v3.pt").touch()
    spec, path = resolve(f"qm9:mu,gap@{tmp_path / 'qm9_v3.pt'}")
    assert spec.name == "qm9:mu" and path == tmp_path / "qm9_v3.pt"
    assert refused("names a target twice", name="qm9:gap,delta_eps")
    assert refused("unknown dataset 'qm9:nothing'", name="qm9:mu,nothing")

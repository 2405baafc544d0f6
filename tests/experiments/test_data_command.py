"""`python -m experiments.data`: a data set from a local server to a checked store, and every refusal in one line."""

import dataclasses
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCartesian
from fixtures import native

from experiments import data
from jaxatoms.data import registry
from jaxatoms.data.remote import Remote, RemoteFile

ASPIRIN = [6] * 9 + [8] * 4 + [1] * 8
ASPIRIN_KCAL = -17617.379 * 23.061


def write_aspirin_like(path, n=1100, seed=0, **replace):
    """An rMD17 file of aspirin's atoms; energies and forces spread as its own, positions are noise."""
    rng = np.random.default_rng(seed)
    forces = 1.27 * 23.061 * rng.normal(size=(n, 21, 3))
    arrays = {"nuclear_charges": np.array(ASPIRIN), "coords": 2 * rng.normal(size=(n, 21, 3)),
              "energies": ASPIRIN_KCAL + 0.267 * 23.061 * rng.normal(size=n),
              "forces": forces - forces.mean(axis=1, keepdims=True)}  # fmt: skip
    np.savez(path, **(arrays | replace))
    return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def options(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    monkeypatch.delenv("JAXATOMS_DATA", raising=False)
    return ["--data-root", str(tmp_path / "root"), "--cache-dir", str(tmp_path / "cache"), "--workers", "1"]


def refused(capsys, argv, *words):
    with pytest.raises(SystemExit) as stop:
        data.main(argv)
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in text
    assert all(word in text for word in words), text
    return True


def test_from_a_server_to_a_checked_store(tmp_path, monkeypatch, capsys, options):
    (tmp_path / "www").mkdir()
    write_aspirin_like(tmp_path / "www" / "rmd17_aspirin.npz")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "www")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/rmd17_aspirin.npz"
        file = RemoteFile("rmd17_aspirin.npz", (url,), 1000)
        spec = dataclasses.replace(registry.DATASETS["rmd17:aspirin"], remote=Remote({"": file}, "CC0"))
        monkeypatch.setitem(registry.DATASETS, "rmd17:aspirin", spec)
        assert data.main(["download", "rmd17:aspirin", *options]) == 0
        server.shutdown()
    assert "hash recorded on first use" in capsys.readouterr().out
    assert data.main(["prepare", "rmd17:aspirin", *options]) == 0
    assert "1100 structures" in capsys.readouterr().out
    assert data.main(["info", "rmd17:aspirin", *options, "--out", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert "elements     3: C 9900, H 8800, O 4400" in text
    assert "warning  structures: 1100 (published 100000)" in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert data.main(["check", "rmd17:aspirin", *options]) == 0


def test_a_wrong_unit_is_an_error(tmp_path, capsys, options):
    folder = tmp_path / "root" / "rmd17"
    folder.mkdir()
    write_aspirin_like(folder / "rmd17_aspirin.npz", forces=np.random.default_rng(0).normal(size=(1100, 21, 3)) * 0.05)
    assert data.main(["check", "rmd17:aspirin", *options]) == 1
    assert "error    force std" in capsys.readouterr().out


def test_duplicates_and_missing_labels_are_found(tmp_path, capsys, options):
    path = tmp_path / "s.xyz"
    images = [ase.Atoms("CH4", np.random.default_rng(i % 3).normal(size=(5, 3))) for i in range(4)]
    ase.io.write(path, images)
    assert data.main(["check", f"file:{path}", *options]) == 0
    assert "warning  duplicate records: 1 (records 3 = 0)" in capsys.readouterr().out


def test_check_says_what_it_looked_at_and_warns_of_units(tmp_path, capsys, options):
    images = []
    for i in range(20):
        step = 0.04 * np.random.default_rng(i).normal(size=(4, 3))
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.positions += step
        atoms.calc = SinglePointCalculator(atoms, energy=np.square(step).sum(), forces=2 * step)  # the gradient
        images.append(atoms)
    images[3].set_constraint([FixCartesian(0, (True, False, False))])
    ase.io.write(tmp_path / "s.traj", images)
    assert data.main(["check", f"file:{tmp_path / 's.traj'}", *options]) == 0
    text = capsys.readouterr().out
    for words in ("labels: 20 records have an energy, 20 forces", "0 of 80 atoms are fixed; 1 under other constraints",
                  "20 structures looked at", "the forces have the sign of the gradient"):  # fmt: skip
        assert words in text


def test_an_excerpt_is_not_judged_by_the_constants_of_the_whole(tmp_path, capsys, options):
    path = native.write_ani1x(tmp_path / "a.h5")
    assert data.main(["check", f"ani1x@{path}", *options]) == 0
    assert "too few structures to compare" in capsys.readouterr().out


def test_keys_that_look_like_labels_are_shown(tmp_path, capsys, options):
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"REF_energy": -31.0})
    ase.io.write(tmp_path / "s.xyz", atoms, format="extxyz")
    assert data.main(["check", f"file:{tmp_path / 's.xyz'}", *options]) == 0
    assert "#REF_energy" in capsys.readouterr().out


def test_list_names_every_family(capsys):
    assert data.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("ani1x", "oc22", "omat24", "rmd17:{aspirin", "matbench:{jdft2d/0", "CC-BY-4.0"):
        assert name in text


def test_refusals(tmp_path, capsys, options):
    assert refused(capsys, ["inform", "ani1x"], "unknown command 'inform'", "list, info")
    assert refused(capsys, ["prepare", "ani2x", *options], "did you mean 'ani1x'?")
    assert refused(capsys, ["prepare", "ani1x", *options], "does not exist", "--data-root")
    assert refused(capsys, ["download", "oc20", "--part", "3M", *options], "no part '3M'", "200K")
    assert refused(capsys, ["download", "demo:organic", *options], "not downloaded")
    assert refused(capsys, ["download", "qmof"], "--data-root")
    assert refused(capsys, ["download", "qmof", *options, "--from-file", str(tmp_path / "x")], "no such file")
    assert refused(capsys, ["info"], "--name")


@pytest.mark.data
@pytest.mark.slow
def test_real_samples_pass_their_checks(tmp_path, capsys):
    import os

    root = os.environ.get("JAXATOMS_DATA")
    if not root or not (Path(root) / "rmd17").is_dir():
        pytest.skip("set JAXATOMS_DATA to a folder that holds rmd17, qm9, oc20_s2ef")
    for name in ("rmd17:aspirin", "rmd17:ethanol", "qm9:U_0", "qm9:gap", f"oc20@{root}/oc20_s2ef",
                 f"matbench:log_kvrh/0@{root}/matbench_like/mp_binary_log_kvrh.json.gz"):  # fmt: skip
        assert data.main(["check", name, "--data-root", root, "--cache-dir", str(tmp_path)]) == 0
        assert "error" not in capsys.readouterr().out

"""A data set that one reader and one row add is listed, checked, pretrained on, ranked and tabulated.

docs/how-to/dataset.md explains it line by line.
"""

import csv
import json
import types

import numpy as np
import pytest

from experiments import csi, data, pretrain
from experiments.paper.names import upstream_label
from jaxatoms.data import registry
from jaxatoms.data.readers.checks import fail
from jaxatoms.data.registry import DatasetSpec
from jaxatoms.data.remote import Remote, RemoteFile
from jaxatoms.types import System

# --- the reader and the row ---------------------------------------------------------------------------


def read(path):
    """Yields the diatomic molecules of a CSV file with the columns element, distance (A), energy (eV), force (eV/A)."""
    with open(path, newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            if float(row["distance"]) <= 0:
                fail(path, f"row {i + 2}", f"has the distance {row['distance']}", "remove it")
            x = float(row["distance"])
            z = int(row["element"])
            yield System(
                atomic_numbers=np.array([z, z, 1, 1], np.uint8),
                positions=np.array([[0, 0, 0], [x, 0, 0], [0, 1, 0], [x, 1, 0]]),
                energy=float(row["energy"]),
                forces=np.array([[-1.0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]) * float(row["force"]),
                group=f"Z{z}",
                key=f"row {i + 2}",
            )


READER = types.SimpleNamespace(VERSION=1, read=read)
SPEC = DatasetSpec(
    name="pairs",
    title="Pairs",
    reader="pairs_csv",
    files=("pairs.csv",),
    periodic=False,
    split_rule="record",
    classes="composition",
    remote=Remote({"": RemoteFile("pairs.csv", ("https://example.org/pairs.csv",), 1_000_000)}, licence="CC0"),
)

# --- what follows -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with the set in it."""
    monkeypatch.setattr(registry, "DATASETS", registry.DATASETS)
    monkeypatch.setitem(registry.DATASETS, "pairs", None)  # taken back after the test
    monkeypatch.setitem(registry.READERS, "pairs_csv", None)
    del registry.DATASETS["pairs"], registry.READERS["pairs_csv"]
    registry.register(SPEC, READER)
    folder = tmp_path / "root" / "pairs"
    folder.mkdir(parents=True)
    with open(folder / "pairs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["element", "distance", "energy", "force"])
        for z in (6, 7, 8):
            for x in np.linspace(1.1, 2.0, 40):
                rows.writerow([z, x, -z * 30 + (x - 1.4) ** 2, 2 * (1.4 - x)])
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAXATOMS_DATA", str(tmp_path / "root"))
    return tmp_path


def test_a_new_data_set_is_pretrained_on_and_ranked(root, nano, capsys):
    assert data.main(["list"]) == 0
    assert "pairs" in capsys.readouterr().out
    run = root / "run"
    assert pretrain.main(["--upstream", "pairs", "--n", "40", "--epochs", "1", "--batch-size", "10",
                          "--model", str(nano), "--val-samples", "10", "--quiet",
                          "--run-dir", str(run)]) == 0  # fmt: skip
    assert np.isfinite(json.loads((run / "summary.json").read_text())["validation"]["loss"])
    assert csi.main(["--upstream", "pairs", "demo:organic", "--downstream", "demo:aspirin", "--n", "30", "--quiet",
                     "--checkpoint", str(run), "--out", str(root / "csi")]) == 0  # fmt: skip
    rows = json.loads((root / "csi" / "csi.json").read_text())["rows"]
    assert {row["Upstream"] for row in rows} == {"pairs", "demo:organic"}
    assert upstream_label("pairs") == "Pairs"


def test_bad_records_are_named(root, refusal):
    file = root / "root" / "pairs" / "pairs.csv"
    file.write_text(file.read_text().replace("6,1.1,", "6,0,"))
    message = refusal(pretrain, ["--upstream", "pairs", "--n", "4", "--run-dir", str(root / "run")])
    assert f"{file}: row 2" in message and "remove it" in message


def test_names_can_be_taken_once_only(root):
    with pytest.raises(ValueError, match="pairs or its reader"):
        registry.register(SPEC, READER)

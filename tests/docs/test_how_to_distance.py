"""docs/how-to/distance.md, word by word: its distance is registered, and the command ranks by it."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from experiments import csi
from jaxatoms.csi.distances import registry
from jaxatoms.csi.features import load_features

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "distance.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_a_distance_is_one_file_and_one_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "DISTANCES", dict(registry.DISTANCES))
    names: dict = {}
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
        else:
            words = shlex.split(text)
            assert words[:3] == ["python", "-m", "experiments.csi"] and csi.main(words[3:]) == 0
    with open("runs/sliced/csi.csv") as file:
        rows = list(csv.DictReader(file))
    features = {name: load_features(f"{name}.npz").features for name in ("near", "far", "task")}
    for row in rows:
        expected = names["sliced_wasserstein"](features[row["Upstream"]], features["task"])
        assert float(row["Sliced Wasserstein Score"]) == pytest.approx(expected, rel=1e-12)
    order = json.loads(Path("runs/sliced/csi.json").read_text())["ranking"]["task"]
    assert [place["upstream"] for place in order] == ["near", "far"] and order[0]["probability_best"] == 1


def test_the_example_is_what_it_says():
    """Between one-dimensional Gaussians the squared Wasserstein distance has a closed form."""
    (text,) = (text for _, text in BLOCK.findall(PAGE.read_text()) if "def sliced_wasserstein" in text)
    names: dict = {}
    exec(compile(text, PAGE.name, "exec"), names)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.0, 1.0, (40_000, 1)), rng.normal(0.5, 2.0, (40_000, 1))
    assert names["sliced_wasserstein"](x, y) == pytest.approx(0.5**2 + (2.0 - 1.0) ** 2, rel=0.05)

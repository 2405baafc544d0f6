"""The README: its examples run, its links lead somewhere, and it stays short."""

import re
from pathlib import Path

import pytest
from fixtures.documents import run_blocks

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_it_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_its_links_lead_somewhere():
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README)]
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_its_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXATOMS_CACHE", str(tmp_path / "cache"))
    assert run_blocks(README, "README.md") == ["bash", "python"]
    assert (tmp_path / "benzene.extxyz").exists() and (tmp_path / "runs" / "csi" / "csi.png").exists()

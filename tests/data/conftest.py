"""Where real data lie: JAXATOMS_DATA, a folder of sample folders; tests that need it skip without."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data():
    """real_data("ani1x_like") -> the folder, or a skip."""

    def folder(name):
        root = os.environ.get("JAXATOMS_DATA")
        if not root or not (Path(root) / name).is_dir():
            pytest.skip(f"set JAXATOMS_DATA to a folder that holds {name}")
        return Path(root) / name

    return folder

"""The GPU session: an item that hangs does not cost the others, and the file holds what came of each."""

import json
import sys

import pytest

from benchmarks.gpu_session import __main__ as gpu_session
from benchmarks.gpu_session.__main__ import Item


@pytest.mark.slow
def test_an_item_that_hangs_leaves_time_for_the_next(tmp_path, monkeypatch):
    todo = [
        Item("hangs", ["-c", "import time; print('begun', flush=True); time.sleep(600)"], lines=False),
        Item("fails", ["-c", "raise SystemExit(3)"], lines=False),
        Item("measures", ["-c", "import sys; open(sys.argv[2], 'w').write('{\"step_s\": 1}')"]),
    ]
    monkeypatch.setattr(gpu_session, "waves", lambda *_: [todo])
    out = tmp_path / "session.json"
    monkeypatch.setattr(sys, "argv", ["gpu_session", "--out", str(out), "--minutes", "0.2"])
    gpu_session.main()
    found = json.loads(out.read_text())["items"]
    assert {name: item["exit"] for name, item in found.items()} == {"hangs": None, "fails": 3, "measures": 0}
    assert found["hangs"]["tail"] == "begun\n" and found["measures"]["lines"] == [{"step_s": 1}]

"""A run's records survive kills and resumes; the display fits where it is shown."""

import json
import os
import pty
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from matplotlib.image import imread

from jaxatoms.training import runlog
from jaxatoms.training.runlog import RunLog, draw_curves, read_metrics
from jaxatoms.types import InputError


def fill(log: RunLog, steps) -> None:
    for step in steps:
        rate = {"learning_rate": 1e-3 * step, "atoms_per_second": 2e4}
        log.log(step, {"loss": 1.0 / step, **rate})
        if step % 5 == 0:
            log.log_validation(step, {"loss": 2.0 / step, "force_mae": 0.5 / step, "energy_mae": 3.0 / step})


def test_records_hold_what_was_logged(tmp_path):
    with RunLog(tmp_path / "new" / "run", 10, quiet=True) as log:
        log.log(1, {"loss": np.float32(0.5), "grad_norm": float("nan")})
        log.log_validation(1, {"force_mae": float("inf")})
    lines = (tmp_path / "new/run/metrics.jsonl").read_text().splitlines()
    train, val = (json.loads(line, parse_constant=pytest.fail) for line in lines)  # strict JSON: no NaN
    assert (train["step"], train["split"], train["loss"], train["grad_norm"]) == (1, "train", 0.5, None)
    assert (val["step"], val["split"], val["force_mae"]) == (1, "val", None)
    assert abs(train["time"] - time.time()) < 100


def test_resume_leaves_each_step_once(tmp_path):
    with RunLog(tmp_path, 20, quiet=True) as log:
        fill(log, range(1, 13))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "tr')  # killed in the middle of a line
    with RunLog(tmp_path, 20, quiet=True, resume_step=10) as log:
        fill(log, range(11, 21))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 21))
    assert [r["step"] for r in records if r["split"] == "val"] == [5, 10, 15, 20]


def test_starting_afresh_drops_everything_and_a_new_run_refuses(tmp_path):
    with RunLog(tmp_path, 5, quiet=True) as log:
        log.log_validation(0, {"force_mae": 1.0})
    with pytest.raises(InputError, match=r"metrics\.jsonl has records of an earlier run"):
        RunLog(tmp_path, 5, quiet=True)
    with RunLog(tmp_path, 5, quiet=True, resume_step=0):
        assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_unwritable_run_dir_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into run directory"):
        RunLog(tmp_path / "file", 5)


def test_tensorboard_events_are_written(tmp_path):
    with RunLog(tmp_path, 5, quiet=True) as log:
        fill(log, range(1, 6))
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"train/loss", b"train/learning_rate", b"val/force_mae"))


def test_summary_is_replaced_whole(tmp_path):
    with RunLog(tmp_path, 5, quiet=True) as log:
        log.write_summary({"old": 1})
        path = log.write_summary({"best": {"force_mae": np.float32(0.25), "energy_mae": float("nan")}})
        with pytest.raises(TypeError):
            log.write_summary({"bad": object()})
    assert json.loads(path.read_text()) == {"best": {"force_mae": 0.25, "energy_mae": None}}


def test_curves_show_the_records(tmp_path):
    with RunLog(tmp_path, 20, quiet=True) as log:
        fill(log, range(1, 21))
        full = log.write_curves()
    assert full == tmp_path / "curves.png" and full.stat().st_size > 20_000
    pixels = imread(full)[..., :3]
    blank = imread(draw_curves([], tmp_path / "blank.png"))[..., :3]
    colourful = [(np.ptp(image, axis=-1) > 0.3).sum() for image in (pixels, blank)]
    assert colourful[0] > 2000 and colourful[1] == 0


def test_curves_can_be_written_after_closing(tmp_path):
    log = RunLog(tmp_path, 5, quiet=True)
    fill(log, range(1, 6))
    log.close()
    log.close()
    assert log.write_curves().exists()


def test_plain_lines_come_every_ten_seconds(tmp_path, capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(runlog, "_now", lambda: next(clock))
    with RunLog(tmp_path, 8) as log:
        for step in range(1, 9):
            log.log(step, {"loss": 1.0 / step, "atoms_per_second": 12345.6, "steps_per_second": 0.25})
        log.log_validation(8, {"force_mae_mev_per_angstrom": 62.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/8  loss 1  12,346 atoms/s  ETA 0:00:28"
    assert [line.split()[1] for line in lines] == ["1/8", "4/8", "7/8", "8/8", "8/8"]
    assert "validation  force MAE 62.5 meV/A" in lines[-1]


def test_the_time_left_follows_from_the_rate_of_steps_not_from_the_first(tmp_path, capsys, monkeypatch):
    """Compiling takes minutes before a step is done: a time that counts it would be wrong for long."""
    clock = iter([0, 600, 610, 620])
    monkeypatch.setattr(runlog, "_now", lambda: next(clock))
    with RunLog(tmp_path, 100) as log:
        log.log_validation(0, {"loss": 2.0})
        log.log(1, {"loss": 1.0, "steps_per_second": 0.0})
        log.log(11, {"loss": 1.0, "steps_per_second": 1.0})
    assert ["ETA" in line for line in capsys.readouterr().out.splitlines()] == [False, False, True]


def test_quiet_prints_nothing(tmp_path, capsys):
    with RunLog(tmp_path, 5, quiet=True) as log:
        fill(log, range(1, 6))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_progress_bar(tmp_path):
    program = f"""
        from jaxatoms.training.runlog import RunLog
        with RunLog({str(tmp_path)!r}, 4) as log:
            for step in (1, 2, 3, 4):
                log.log(step, {{"loss": 0.125, "atoms_per_second": 2e4, "steps_per_second": 2.0}})
            log.log_validation(4, {{"force_mae": 0.0625}})
    """
    main, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], stdout=terminal, check=True)
    text = os.read(main, 100_000).decode()
    assert "step 4/4" in text and "loss 0.125" in text and "force_mae" in text and "ETA" in text


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    with RunLog(tmp_path, total_steps=2, quiet=True) as log:
        monkeypatch.setattr(log, "_file", _Full(log._file))
        with pytest.raises(InputError, match=r"metrics.jsonl: No space left; free disk space, then .* --resume"):
            log.log(1, {"loss": 1.0})


class _Full:
    """A file whose disk has no room."""

    closed = False

    def __init__(self, file):
        self.close = file.close

    def write(self, _):
        raise OSError(28, "No space left")

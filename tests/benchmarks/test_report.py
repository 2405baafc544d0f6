"""The report: each kind of line gets its table, the newest of a case wins, an interpreted kernel shows no ratio."""

import json
import sys

import pytest

from benchmarks import report

ORIGIN = {
    "machine": {"cpu": "CPU", "cores": 2}, "device": {"kind": "cpu"}, "versions": {"jaxlib": "0.10.1"},
    "commit": "0123456789abcdef", "dirty": False, "command": "python -m benchmarks.x", "run": "2026-01-01T00:00:00",
}  # fmt: skip
KERNEL = ORIGIN | {
    "benchmark": "kernels", "kernel": "residual_pair", "case": "molecules", "n": 10, "c": 4, "dtype": "float32",
    "pass": "forward", "kernel_s": 0.5, "xla_s": 0.25, "ratio": 2.0, "largest_difference": 1e-7, "interpreted": True,
}  # fmt: skip
FEED = ORIGIN | {
    "benchmark": "feed_rate", "case": "ani1x", "batch_size": 20, "batch_edges": None, "workers": 4,
    "batches_per_s": 10.0, "structures_per_s": 200.0, "edges_per_s": 1e5, "batch_mib": 0.5,
}  # fmt: skip
DATA = ORIGIN | {
    "benchmark": "data_pipeline", "what": "1,000 structures", "figures": {"read": 1234.5, "peak_gib": 0.25, "cores": 2},
}  # fmt: skip
INFERENCE = ORIGIN | {
    "benchmark": "inference_throughput", "case": "mol20", "forces": "direct", "model": "tiny", "precision": "float32",
    "structures": 20, "step_s": 0.1, "step_s_all": [0.1, 0.2], "structures_per_s": 200.0,
    "structures_per_s_with_graphs": 150.0, "atoms_per_s": 3000.0, "gflop": 3.0, "compile_s": 7.0,
    "temporary_gib": 0.1, "peak_gib": {"host": 1.0},
}  # fmt: skip
TRAIN = ORIGIN | {
    "who": "jaxatoms", "case": "mol20", "forces": "direct", "malloc_tuned": True, "model": "tiny",
    "precision": "float32", "structures": 20, "step_s": 0.3, "step_s_all": [0.3], "atoms_per_s": 1.0,
    "structures_per_s": 1.0, "peak_gib": {"host": 1.0},
}  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    """RESULTS.md made of given lines in one file."""

    def write(*records):
        (tmp_path / "lines.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "lines.jsonl"), "--out", str(tmp_path / "out.md")])
        report.main()
        return (tmp_path / "out.md").read_text()

    return write


def test_each_kind_of_line_has_its_table(written):
    text = written(KERNEL, FEED, INFERENCE, TRAIN, DATA)
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Training steps", "Prediction", "Loader", "Data", "Kernels beside XLA"]
    assert "| 1,000 structures | read 1,234, peak_gib 0.25, cores 2 |" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    assert "## Loader" not in written(TRAIN)


def test_the_newest_line_of_a_case_counts_also_where_an_option_is_not_named(written):
    peer = TRAIN | {"who": "fairchem-core"}
    later = {"run": "2026-01-02T00:00:00", "step_s": 0.4}
    text = written(TRAIN, peer | {"remat": False}, peer | {"remat": True}, peer | later)
    rows = [line.split(" | ")[1:4] for line in text.splitlines() if line.startswith("| mol20")]
    assert [(code, seconds[:5]) for code, _, seconds in rows] == [
        ("jaxatoms", "0.300"), ("fairchem-core", "0.400"), ("fairchem-core, beside --remat", "0.300"),
    ]  # fmt: skip


def test_a_gpu_session_is_a_file_of_lines(tmp_path):
    items = {"parity": {"exit": 0, "lines": []}, "molecules": {"exit": 0, "lines": [TRAIN, INFERENCE]}, "late": {}}
    (tmp_path / "session.json").write_text(json.dumps({"items": items}, indent=1))
    found = report.read_lines([tmp_path / "session.json"])
    assert [len(lines) for lines in found.values() if lines] == [1, 1]


def test_a_profile_is_a_row_for_the_step_and_one_for_each_part(written):
    part = {"forward_s": 0.1, "backward_s": 0.2, "bytes": 3e9, "flops": 4e9}
    text = written(TRAIN | {"benchmark": "profile_step", "structures": 20, "parts": {"pairs": part, "loss": part},
                            "input_s": 0.01, "limits": {"matmul_flops": 1e10, "copy_bytes": 1e10}})  # fmt: skip
    step, pairs, loss, _ = (line for line in text.splitlines() if line.startswith("| mol20"))
    assert "| whole step | 300 | 8.0 | 6.00 | 800, matmul |" in step
    assert "| pairs | 100 + 200 | 4.0 | 3.00 | 400, matmul |" in pairs
    assert TRAIN["command"] in step and '| " | " |' in pairs and '| " | " |' in loss


def test_results_without_an_accelerator_say_so(written):
    assert "No figure here was measured on a GPU" in written(TRAIN)
    assert "No figure here" not in written(TRAIN, FEED | {"device": {"kind": "NVIDIA H200"}})


def test_the_newest_line_of_a_case_is_shown(written):
    newer = FEED | {"run": "2026-01-02T00:00:00", "batches_per_s": 11.0}
    text = written(newer, FEED, FEED | {"workers": 8, "batches_per_s": 12.0})
    assert "11.0" in text and "12.0" in text and "| 10.0" not in text


def test_an_interpreted_kernel_shows_no_ratio(written):
    assert "INTERPRETED" in written(KERNEL) and "2.00" not in written(KERNEL)
    assert "2.00" in written(KERNEL | {"interpreted": False})


def test_lines_of_benchmarks_without_a_table_are_said_and_left_out(tmp_path, capsys):
    """A GPU session holds them beside the others."""
    other, file = {"benchmark": "equiformer_forward", "who": "ratio", "forward_s": 0.4}, tmp_path / "session.json"
    file.write_text(json.dumps({"items": {"step": {"lines": [TRAIN]}, "forward": {"lines": [other, other]}}}))
    found = report.read_lines([file])
    assert {kind: len(lines) for kind, lines in found.items() if lines} == {"train_throughput": 1}
    assert "session.json: 2 lines are of benchmarks without a table" in capsys.readouterr().err

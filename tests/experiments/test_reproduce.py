"""Chains that skip, resume and refuse; paper rows as commands; a row reproduced with stub steps."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from run_folders import comparison, finetuning, pretraining

from experiments import reproduce
from experiments.paper.published import RowKey, published
from experiments.paper.rows import TABLES, UPSTREAM_TRAIN, finetune_steps, paper_rows, pretrain_cost, upstream_of
from jaxatoms.runs import chain
from jaxatoms.runs.chain import Step, run_chain
from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.types import InputError


def step(folder: Path, name: str, *words: str) -> Step:
    return Step(name, ("stub", name, *words), folder / f"{name}.json", folder / f"{name}.begun", ("--resume",))


class Ended:
    """A process that has ended."""

    def __init__(self, code: int):
        self.code = code

    def poll(self):
        return self.code


class Stub:
    """Stands in for processes: writes the proof of the step that it is called for."""

    def __init__(self, folder: Path, fail: str = ""):
        self.folder, self.fail, self.calls = folder, fail, []

    def __call__(self, argv, slot, jobs):
        self.calls.append(list(argv))
        if argv[1] == self.fail:
            (self.folder / f"{argv[1]}.begun").touch()
            return Ended(1)
        (self.folder / f"{argv[1]}.json").write_text('{"finished": true}')
        return Ended(0)


# --- chains -----------------------------------------------------------------------------------------


def test_a_chain_goes_on_where_it_broke_off(tmp_path):
    steps = [step(tmp_path, name) for name in "abc"]
    broken = Stub(tmp_path, fail="b")
    with pytest.raises(InputError, match="step b failed with exit code 1"):
        run_chain(steps, tmp_path, broken, say=lambda _: None)
    assert [call[1] for call in broken.calls] == ["a", "b"]
    said, whole = [], Stub(tmp_path)
    run_chain(steps, tmp_path, whole, said.append)
    assert whole.calls == [["stub", "b", "--resume"], ["stub", "c"]]
    assert said[0] == "[1/3] a: done already"
    again = Stub(tmp_path)
    run_chain(steps, tmp_path, again, said.append)
    assert again.calls == []


def test_an_unfinished_or_damaged_proof_is_none(tmp_path):
    one = step(tmp_path, "a")
    for text, done in (('{"finished": false}', False), ("{", False), ('{"finished": true}', True), ("{}", True)):
        one.proof.write_text(text)
        assert chain.is_done(one) is done


def test_a_step_that_ends_without_proof_stops_the_chain(tmp_path):
    with pytest.raises(InputError, match="step a ended early"):
        run_chain([step(tmp_path, "a")], tmp_path, lambda *_: Ended(0), say=lambda _: None)


def test_other_settings_are_refused_and_other_places_are_not(tmp_path):
    run_chain([step(tmp_path, "a", "--n", "10")], tmp_path, Stub(tmp_path), say=lambda _: None)
    with pytest.raises(InputError, match="step a in .* ran with other settings: 20 changed"):
        run_chain([step(tmp_path, "a", "--n", "20")], tmp_path, Stub(tmp_path), say=lambda _: None)
    moved = Step("a", ("stub", "a", "--n", "10"), tmp_path / "a.json", places=("--data-root", "/x"))
    run_chain([moved], tmp_path, Stub(tmp_path), say=lambda _: None)


def test_a_step_is_a_process_of_its_own(tmp_path):
    assert chain.start_process(["json.tool", "--help"], 0, 1).wait() == 0
    assert chain.start_process(["json.tool", str(tmp_path / "nowhere")], 0, 1).wait() != 0


def test_what_a_step_says_can_be_kept_and_its_end_is_told(tmp_path, monkeypatch):
    (tmp_path / "speaker.py").write_text(
        "import pathlib, sys\n"
        "print('words', flush=True); print('error: no such file', file=sys.stderr)\n"
        "pathlib.Path(sys.argv[1]).write_text('{}') if len(sys.argv) > 1 else sys.exit(2)\n"
    )
    monkeypatch.chdir(tmp_path)
    steps = [Step("a", ("speaker", "a.json"), tmp_path / "a.json"), Step("b", ("speaker",), tmp_path / "b.json")]
    ended = []
    with (tmp_path / "log").open("w") as log, pytest.raises(InputError, match="step b failed with exit code 2"):
        start = functools.partial(chain.start_process, output=log)
        run_chain(steps, tmp_path, start, say=lambda _: None, ended=ended.append)
    assert (tmp_path / "log").read_text() == "words\nerror: no such file\n" * 2
    assert ended == steps[:1]
    with pytest.raises(InputError):
        run_chain(steps, tmp_path, say=lambda _: None, ended=ended.append)
    assert ended == steps[:1] * 2, "a step that was done before counts too"


def test_steps_marked_together_run_at_the_same_time_each_on_its_cores(tmp_path, monkeypatch):
    # Each of the two waits for the other's file, so that one after the other would never end.
    (tmp_path / "meeting.py").write_text(
        "import json, os, pathlib, sys, time\n"
        "me, other = sys.argv[1:]\n"
        "pathlib.Path(me).touch(); end = time.time() + 60\n"
        "while not pathlib.Path(other).exists() and time.time() < end: time.sleep(0.01)\n"
        "pathlib.Path(me + '.json').write_text(json.dumps({'cores': sorted(os.sched_getaffinity(0))}))\n"
    )
    monkeypatch.chdir(tmp_path)
    steps = [Step(me, ("meeting", me, other), tmp_path / f"{me}.json", together="all") for me, other in ("ab", "ba")]
    before = os.sched_getaffinity(0)
    run_chain(steps, tmp_path, say=lambda _: None, jobs=2)
    cores = [set(json.loads((tmp_path / f"{me}.json").read_text())["cores"]) for me in "ab"]
    assert set.union(*cores) == before and (len(before) == 1 or not cores[0] & cores[1])
    assert os.sched_getaffinity(0) == before


def test_after_a_failure_the_rest_of_a_group_is_not_begun(tmp_path):
    steps = [Step(n, ("stub", n), tmp_path / f"{n}.json", together="all") for n in "abc"]
    broken = Stub(tmp_path, fail="b")
    with pytest.raises(InputError, match="step b failed"):
        run_chain(steps, tmp_path, broken, say=lambda _: None)
    assert [call[1] for call in broken.calls] == ["a", "b"]


def test_a_signal_reaches_the_step(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_): pathlib.Path('saved').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop); pathlib.Path('ready').touch(); time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)

    def interrupt():
        while not Path("ready").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InputError, match="step s was stopped"):
        run_chain([Step("s", ("sleeper",), tmp_path / "s.json")], tmp_path, say=lambda _: None)
    assert Path("saved").exists()


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_every_published_row_is_a_chain_whose_commands_parse(table):
    rows = paper_rows(table)
    assert len({row.key for row in rows}) == len(rows)
    assert sum(len(row.expected) for row in rows) == len(published(table))
    for row in rows:
        config = reproduce.ReproduceConfig(table=table, row=row.key, dry_run=True)
        for one in reproduce.make_steps(row, config):
            options = dict(zip(one.argv[1::2], one.argv[2::2], strict=False))
            if one.argv[0] == "experiments.pretrain":
                n, epochs = options["--n"], int(options["--epochs"])
                PretrainConfig(upstream=options["--upstream"], n=n, epochs=epochs)
                assert int(n) * epochs == row.row.budget or row.key.startswith("oc20-3M")
            if one.argv[0] == "experiments.finetune":
                FinetuneConfig(downstream=options["--downstream"], init=options["--init"])
        assert reproduce.row_cost(row, config).gpu_hours > 0


def test_steps_and_arithmetic_of_the_reference_pages():
    steps = {"rmd17:aspirin": 142_800, "md22:Ac-Ala3-NHMe": 285_000, "spice:solvated_amino_acids": 260_000,
             "qm9:U_0": 461_800, "qmof": 163_000, "matbench:phonons/0": 13_680}  # fmt: skip
    assert {name: finetune_steps(name) for name in steps} == steps
    rows = {row.key: row for row in paper_rows("1")}
    assert pretrain_cost(rows["ani1x"], 2_000_000, "gemnet_oc_s").steps == 500_000
    assert pretrain_cost(rows["ani1x"], 2_000_000, "gemnet_oc_s").flop == pytest.approx(4e17, rel=0.05)
    assert pretrain_cost(rows["oc20"], 2_000_000, "gemnet_oc_s").flop == pytest.approx(4e18, rel=0.1)


def test_matbench_cells_are_means_of_two_seeds_of_one_pretraining():
    row = next(row for row in paper_rows("4") if row.key.startswith("ani1x"))
    config = reproduce.ReproduceConfig(table="4", row=row.key, dry_run=True)
    seeds = {}
    for run in reproduce.runs_of(row, config):
        seeds.setdefault(run.task, []).append((run.init_seed, run.seed))
    assert all(found == [(0, 0), (0, 1)] for task, found in seeds.items() if task.startswith("matbench:"))
    assert all(found == [(0, 0)] for task, found in seeds.items() if not task.startswith("matbench:"))
    assert sum(step.argv[0] == "experiments.pretrain" for step in reproduce.make_steps(row, config)) == 1


def test_upstreams_of_mixtures():
    assert upstream_of(RowKey(3_000_000, 5, "ANI-1x (2M) + OC22 (1M)", "GemNet-OC-S")) == (("ani1x", "oc22"), "2:1")
    assert upstream_of(RowKey(2_000_000, 5, "Mixed (Temp)", "GemNet-OC-S"))[1] == "temperature"
    assert upstream_of(RowKey(120_000_000, 2, "Mixed (Temp)", "JMP-S (GemNet-OC-S)"))[0] == ()


def test_dry_run_prints_the_chain_and_makes_nothing(tmp_path, capsys):
    out = tmp_path / "paper"
    assert reproduce.main(["--table", "1", "--row", "mixed_balanced", "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "--upstream ani1x,transition1x,oc20,oc22 --n 2000000 --epochs 5 --model gemnet_oc_s" in said
    assert "--mix balanced" in said
    assert said.count("[to do]") == 6
    assert "expected rMD17 9.4 meV/A" in said
    assert "estimate" in said
    assert not out.exists()


def test_every_published_row_fits_the_known_sizes_of_its_training_sets(capsys):
    assert reproduce.main(["--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(len(paper_rows(table)) for table in TABLES)
    assert "table 1 oc20: 2,000,000 structures x 5" in lines
    assert "table 2 oc22-3M: 3,000,000 structures x 5" in lines
    (clamped,) = (line for line in lines if "clamps" in line)
    assert clamped.startswith("table 2 oc20-3M: 2,000,000 structures x 5 (N = 3,000,000 is printed")


def test_a_row_that_its_training_set_is_too_small_for_is_refused(monkeypatch, capsys):
    monkeypatch.setitem(UPSTREAM_TRAIN, "transition1x", 100_000)
    assert reproduce.main(["--check"]) == 1
    assert "mixed_balanced: cannot run: 500,000 structures of transition1x" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reproduce.main(["--table", "1", "--row", "mixed_balanced", "--dry-run"])
    assert "row mixed_balanced asks for 500,000 structures of transition1x" in capsys.readouterr().err
    reproduce.main(["--table", "1", "--row", "mixed_balanced", "--dry-run", "--scale", "0.1"])


def test_the_clamped_row_says_so_and_shares_the_run_of_two_million(capsys):
    reproduce.main(["--table", "2", "--row", "oc20-3M", "--dry-run"])
    said = capsys.readouterr().out
    assert "--n 2000000 " in said and "the authors' code clamps N" in said
    reproduce.main(["--table", "2", "--row", "oc20-3M", "--dry-run", "--upstream", "oc20@/big"])
    assert "--n 3000000 " in capsys.readouterr().out


def test_rows_share_their_pretraining(tmp_path, capsys):
    def names(table, key):
        reproduce.main(["--table", table, "--row", key, "--out", str(tmp_path), "--dry-run"])
        return {line.split()[2] for line in capsys.readouterr().out.splitlines() if "[to do]" in line}

    shared = names("1", "ani1x") & names("5", "ani1x-2M")
    assert sum(name.startswith("pretrain/") for name in shared) == 1
    assert sum(name.startswith("finetune/") for name in shared) == 4
    assert not names("5", "ani1x-2M") & names("5", "ani1x-1M")


@pytest.mark.parametrize(("argv", "message"), [
    (["--table", "6", "--row", "ani1x"], "--table must be"),
    (["--table", "1"], "give --table and --row, or --check"),
    (["--table", "1", "--row", "ani"], "its rows are jmp_l, jmp_s, jmp_s_rerun, ani1x"),
    (["--table", "1", "--row", "ani1x", "--scale", "2"], "--scale must be above 0"),
    (["--table", "1", "--row", "ani1x", "--upstream", "spice"], "is not one of ani1x"),
    (["--table", "1", "--row", "ani1x", "--downstream", "qmof"], "no task of table 1"),
    (["--table", "1", "--row", "jmp_s"], "give it as --jmp"),
])  # fmt: skip
def test_bad_options(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reproduce.main([*argv, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


# --- a whole row, with stubs ------------------------------------------------------------------------


def stub_process(argv, *_):
    """Leaves what the command would leave."""
    words = dict(zip(argv[1::2], argv[2::2], strict=False))
    if argv[0] == "experiments.pretrain":
        pretraining(Path(words["--run-dir"]), words["--upstream"], int(words["--n"]), int(words["--epochs"]),
                    model=words["--model"], seed=int(words["--seed"]))
    elif argv[0] == "experiments.csi":
        comparison(Path(argv[argv.index("--out") + 1]), {("demo:organic", "demo:aspirin"): 1.0})
    else:
        seed = int(words["--seed"])
        finetuning(Path(words["--run-dir"]), words["--init"], words["--downstream"], 100.0 + 2 * seed,
                   upstream="demo:organic", model="gemnet_oc_tiny", seed=seed, max_steps=int(words["--max-steps"]))
    return Ended(0)


def test_a_scaled_row_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chain, "start_process", stub_process)
    argv = ["--table", "1", "--row", "ani1x", "--scale", "1e-3", "--model", "gemnet_oc_tiny", "--seeds", "0", "1",
            "--upstream", "ani1x=demo:organic", "--downstream", "rmd17:aspirin=demo:aspirin", "--out", str(tmp_path)]
    assert reproduce.main(argv) == 0
    said = capsys.readouterr().out
    assert "rMD17                    101.00 ± 1.41 (2) meV/A, paper 5.4 (ours on demo:aspirin)" in said
    assert "--n 2000 --epochs 5" in said
    assert "--max-steps 143" in said
    page = (tmp_path / "tables" / "table1.md").read_text()
    assert "| 10k | 2k | 5 | demo:organic | GemNet-OC-tiny | - | 101.00 ± 1.41 (2) |" in page
    reproduce.main(argv)
    assert capsys.readouterr().out.count("done already") == 5
    record = json.loads((tmp_path / "chain.json").read_text())
    assert len(record) == 5


def test_the_command_line_is_there():
    done = subprocess.run([sys.executable, "-m", "experiments.reproduce", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--dry-run" in done.stdout

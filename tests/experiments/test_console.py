"""`jaxatoms COMMAND`: every command by its name, the same code as `python -m experiments.COMMAND`."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_listed_once():
    found = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert set(COMMANDS) == found
    assert all(callable(importlib.import_module(f"experiments.{name}").main) for name in ("tables", "data", "study"))


def test_the_overview_names_all(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_a_command_gets_its_options_and_its_own_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/jaxatoms", "tables", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0 and "usage: jaxatoms tables" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["tables"])
    assert "give --table 1, 2, 3" in capsys.readouterr().err


def test_mistyped_commands_get_the_nearest(capsys):
    assert main(["pretain"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'pretain'; did you mean 'pretrain'?\n"


def test_the_overview_starts_nothing():
    code = "import sys; from experiments.__main__ import main; main(['--help']); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=True)


@pytest.fixture(scope="module")
def script():
    done = subprocess.run([sys.executable, "-m", "experiments", "--completion", "bash"], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, check=True)  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("words, found", [
    (["jaxatoms", "pre"], ["predict", "pretrain"]),
    (["jaxatoms", "pretrain", "--upstr"], ["--upstream"]),
    (["jaxatoms", "csi", "--n", "5", "--dist"], ["--distance"]),
    (["jaxatoms", "select", "--n"], ["--n", "--no-quiet"]),
    (["jaxatoms", "pretrain", "file"], []),  # values are completed as files
])  # fmt: skip
def test_a_shell_completes_commands_and_options(script, words, found):
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _jaxatoms; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split()) == found and not done.stderr


def test_every_command_has_options_to_complete(script):
    lines = [line.split(")", 1) for line in script.splitlines() if ") words=" in line]
    assert [name.strip() for name, _ in lines] == list(COMMANDS)
    assert all('"--' in words for _, words in lines)


def test_other_shells_are_refused(capsys):
    assert main(["--completion", "fish"]) == 2
    assert capsys.readouterr().err == "error: --completion fish: give bash or zsh\n"

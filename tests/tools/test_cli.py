"""Command lines become exact configs or one line of error; commands stop and describe themselves."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from jaxatoms.runs.finetune_config import FinetuneConfig
from jaxatoms.runs.pretrain_config import PretrainConfig
from jaxatoms.tools import cli
from jaxatoms.tools import provenance as provenance_module
from jaxatoms.tools.cli import StopFlag, one_line_errors, parse, resolve_run_dir, whole_number
from jaxatoms.tools.provenance import peak_memory_gib, provenance
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    cutoff: float = 12.0
    """Radius of the main graph, A."""
    direct: bool = True
    """Forces from a head of their own."""

    def __post_init__(self):
        if self.cutoff <= 0:
            raise ValueError(f"cutoff must be positive, got {self.cutoff}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model."""

    run_dir: Path
    """Where results go."""
    batch_size: int = 64
    """Structures per step."""
    n_samples: int | None = None
    """Structures to draw in all."""
    learning_rate: float = 2e-4
    """Peak rate."""
    data: tuple[Path, ...] = ()
    """Stores to train on."""
    sizes: tuple[int, ...] = (1,)
    """Any sizes."""
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Loss weights."""
    mode: Literal["mean", "sum"] = "mean"
    """How to reduce."""
    ema: bool = True
    """Average parameters."""
    model: Model = Model()

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")


def train(*argv: str) -> Train:
    return parse(Train, ["--run-dir", "runs/x", *argv], "Trains a model.")


def test_options_are_field_names_with_dashes():
    config = train(
        "--batch-size", "8", "--model.cutoff=6", "--data", "a", "b", "--no-ema", "--learning_rate", "1e-3"
    )
    expected = {"batch_size": 8, "model": Model(cutoff=6.0), "data": (Path("a"), Path("b")), "ema": False}
    assert config == Train(run_dir=Path("runs/x"), learning_rate=1e-3, **expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e6", 2_000_000),
        ("1.5e3", 1500),
        ("12", 12),
        ("-1", -1),
        ("2_000", 2000),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_counts_are_exact_ints(text, value):
    config = train("--n-samples", text, "--sizes", text, "3e0")
    assert (config.n_samples, config.sizes) == (value, (value, 3))
    assert type(config.n_samples) is int and whole_number(text) == value


@pytest.mark.parametrize("option", ["--batch-size", "--n-samples"])
@pytest.mark.parametrize("text", ["2.5", "many", "inf", "nan", "1e-3", "1e999999999", ""])
def test_what_is_not_a_whole_number_is_refused(option, text):
    with pytest.raises(InputError, match=f"^{option}: expected a whole number .* got '{text}'$"):
        train(option, text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "3"], "unknown option '--batchsize'; did you mean '--batch-size'?"),
        (["--lerning_rate=3"], "unknown option '--lerning_rate'; did you mean '--learning-rate'?"),
        (["--model.cutof", "3"], "unknown option '--model.cutof'; did you mean '--model.cutoff'?"),
        (["--no-emma"], "unknown option '--no-emma'; did you mean '--no-ema'?"),
        (["--zzz"], "unknown option '--zzz'; see --help"),
        (["stray"], "unexpected argument 'stray'; options start with --, see --help"),
        (["--learning-rate", "fast"], "--learning-rate: could not convert string to float: 'fast'"),
        (["--mode", "max"], "invalid choice 'max' for argument '--mode'. Expected one of ('mean', 'sum')."),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["--batch-size"], "Missing value for argument '--batch-size'. Expected 1 values."),
        (["--config"], "--config needs a file, such as --config runs/x/config.json"),
    ],
)
def test_errors_say_what_is_wrong(argv, message):
    with pytest.raises(InputError) as error:
        train(*argv)
    assert str(error.value) == message


def test_nested_values_are_checked():
    with pytest.raises(InputError, match="cutoff must be positive, got -1.0"):
        train("--model.cutoff", "-1")


def test_missing_options_are_named_unless_one_is_misspelt():
    with pytest.raises(InputError, match="^missing --run-dir; see --help$"):
        parse(Train, [])
    with pytest.raises(InputError, match=r"'--rundir'; did you mean '--run-dir'"):
        parse(Train, ["--rundir", "x"])


def test_help_comes_from_the_docstrings(capsys):
    with pytest.raises(SystemExit) as stop:
        train("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(
        words in text for words in ("Trains a model.", "--batch-size INT", "Structures per step.", "--config")
    )


def test_a_config_file_gives_values_and_the_command_line_wins(tmp_path):
    file = tmp_path / "config.json"
    first = train(
        "--n-samples", "2e6", "--data", "a", "b", "--no-ema", "--weights", "force", "100", "--model.no-direct"
    )
    file.write_text(json.dumps(dataclasses.asdict(first), default=str))
    assert parse(Train, ["--config", str(file)]) == first
    again = parse(Train, [f"--config={file}", "--data", "c", "--ema", "--model.cutoff", "5"])
    assert again == dataclasses.replace(
        first, data=(Path("c"),), ema=True, model=Model(cutoff=5.0, direct=False)
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"batchsize": 3}', "unknown setting 'batchsize'; did you mean 'batch_size'"),
        ('{"model": {"cutof": 3}}', "unknown setting 'cutof'; did you mean 'cutoff'"),
        ('{"batch_size": 2.5}', r"whole number.*2\.5.*settings also come from .*config\.json"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_errors_in_a_config_file_name_it(tmp_path, content, words):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        train("--config", str(file))
    assert str(file) in str(error.value)


def test_input_errors_become_one_line_and_code_2(capsys):
    @one_line_errors()
    def command():
        raise InputError("first part\n  second part")

    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: first part second part\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="a bug"), one_line_errors():
        raise ValueError("a bug")


def test_a_whole_program_prints_one_line_of_error():
    program = (
        "import sys, dataclasses; from jaxatoms.tools.cli import *\n"
        "C = dataclasses.make_dataclass('C', [('batch_size', int, 3)], kw_only=True, frozen=True)\n"
        "with one_line_errors(): parse(C, sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--batch-sise", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd(), check=False)
    expected = "error: unknown option '--batch-sise'; did you mean '--batch-size'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_run_dir_is_created_or_refused(tmp_path):
    assert resolve_run_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/none/x")):
        with pytest.raises(InputError, match="cannot write the folder .*; choose another --run-dir"):
            resolve_run_dir(bad)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_stop_flag_and_handlers_return(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopFlag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopFlag():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.fixture
def fake_git(monkeypatch):
    answers = {"rev-parse": "0123abc", "status": " M jaxatoms/types.py"}
    monkeypatch.setattr(
        provenance_module, "_git", lambda root, *args: next(answers[a] for a in args if a in answers)
    )
    return answers


def test_provenance_names_code_versions_and_device(fake_git, monkeypatch, tmp_path):
    monkeypatch.setattr(provenance_module, "_ROOT", tmp_path)
    assert provenance()["commit"] is None  # an installed copy
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    monkeypatch.setattr(sys, "argv", ["/home/someone/train.py", "--n", "a b"])
    origin = json.loads(json.dumps(provenance()))
    assert (origin["commit"], origin["dirty"]) == ("0123abc", True)
    assert set(origin["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert origin["device"]["count"] >= 1 and origin["device"]["kind"]
    assert origin["command"] == "train.py --n 'a b'"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(origin["started"])).total_seconds()) < 100
    assert set(origin) == {"version", "commit", "dirty", "versions", "device", "command", "started"}


def test_provenance_tells_a_clean_checkout(fake_git, tmp_path):
    fake_git["status"] = ""
    (tmp_path / ".git").mkdir()
    assert provenance_module._git_state(tmp_path) == {"commit": "0123abc", "dirty": False}


def test_provenance_works_without_git(monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert provenance_module._git_state(tmp_path) == {"commit": None, "dirty": None}


def test_peak_memory_is_plausible():
    assert 0.05 < peak_memory_gib()["host"] < 1000


def test_a_full_disk_is_one_line_wherever_it_shows(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise OSError(28, "No space left on device", "runs/x/log")
    assert stop.value.code == 2
    text = "error: cannot write runs/x/log: No space left on device; free disk space or write elsewhere, then run the"
    assert capsys.readouterr().err.startswith(text)
    with pytest.raises(FileNotFoundError), one_line_errors():
        raise FileNotFoundError(2, "No such file", "runs/x")


@pytest.mark.parametrize(("config", "most"), [(PretrainConfig, 20), (FinetuneConfig, 20)])
def test_long_help_shows_the_main_options_first_and_the_rest_in_groups(config, most, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(config, ["--help"], prog="command")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(config)]
    grouped = [name for names in config.GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped) and set(grouped) <= set(fields)
    assert len(fields) - len(grouped) <= most
    first = text.index("--upstream" if config is PretrainConfig else "--downstream")
    assert all(text.index(f" {title} options ") > first for title in config.GROUPS)
    assert all(f"--{name.replace('_', '-')}" in text for name in fields)
    assert all(cli._field_docs(config).get(name) for name in fields), "every option says what it does"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reserved:
    """Has an option that Python reserves as a word."""

    with_: Annotated[str, tyro.conf.arg(name="with")]
    """What it is done with."""


def test_an_option_may_be_a_reserved_word(tmp_path):
    assert parse(Reserved, ["--with", "a"]).with_ == "a"
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(Reserved(with_="b"))))
    assert parse(Reserved, ["--config", str(tmp_path / "config.json")]).with_ == "b"
    with pytest.raises(InputError, match="did you mean '--with'"):
        parse(Reserved, ["--wit", "a"])

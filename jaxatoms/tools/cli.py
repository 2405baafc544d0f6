"""Command lines from frozen dataclasses: arguments enter, a config or a one-line error leaves.

Each field is an option (`batch_size` -> `--batch-size`), its help is the docstring below the field, nested
dataclasses become `--model.cutoff`. A word that Python reserves is written `with_: Annotated[str, tyro.conf.arg(name=
"with")]`. Also here: what every command needs around its work, a run directory
that can be written, stopping on a signal, errors in one line. Built on tyro's public interface.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import json
import re
import signal
import sys
import tempfile
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import tyro

from jaxatoms.types import DISK_REFUSALS, InputError

Config = TypeVar("Config")
_MAX_DIGITS = 30  # of a count; keeps "1e999999999" from filling the memory


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    description: str = "",
    prog: str | None = None,
) -> Config:
    """Builds a config from a command line.

    `--config FILE.json` (unless the class has a field of that name) reads settings from a file, such as the
    config.json of an earlier run; options on the command line win. `--help` prints and exits.

    Args:
      config_class: a dataclass, best frozen and keyword-only.
      argv: arguments without the program's name; None means sys.argv[1:].
      description: what the command does, for --help.
      prog: the command's name in --help; None means sys.argv[0].

    Raises:
      InputError: an unknown option (with the nearest valid name), a bad value, a missing option, or a
        ValueError raised by the class itself.

    A class with many fields may have GROUPS, {title: (field, ...)}: --help shows each group apart, after the rest.

    Example:
      config = parse(TrainConfig, ["--batch-size", "64", "--n-samples", "2e6"])
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if prog is not None and Path(sys.argv[0]).name == "jaxatoms":  # the console command
        prog = prog.replace("python -m experiments.", "jaxatoms ")
    from_file, files = [], []
    if "config" not in _fields(config_class):
        given, files = _take_config_option(given)
        description += "\n\n--config FILE.json reads options from a file; those on the command line win."
        from_file = [token for file in files for token in _file_tokens(config_class, Path(file))]
    if {"-h", "--help"} & set(given) and hasattr(config_class, "GROUPS"):
        _show_grouped_help(config_class, description.strip(), prog)
    config, unknown = _run_tyro(config_class, from_file + given, description.strip(), prog, files)
    if unknown:
        raise InputError(_describe_unknown(config_class, unknown))
    return config


def whole_number(text: str) -> int:
    """An exact int from "2000000", "2_000_000", "2e6" or "1.5e3".

    Raises:
      ValueError: not a whole number, like "2.5" or "many".
    """
    with contextlib.suppress(InvalidOperation):
        number = Decimal(text)
        if number.is_finite() and number.adjusted() < _MAX_DIGITS and number == number.to_integral_value():
            return int(number)
    raise ValueError(f"expected a whole number such as 2000000 or 2e6, got {text!r}")


def check_positive(config: Any, *names: str) -> None:
    """Refuse options that are set, and not above zero.

    Raises:
      InputError: naming the option and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InputError(f"{option_of(name)} must be positive, got {value}")


def check_choices(config: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuse options whose value is none of those allowed: field -> values.

    Raises:
      InputError: naming the option, what is allowed and the value.
    """
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise InputError(f"{option_of(name)} must be {' or '.join(allowed)}, got {getattr(config, name)!r}")


def check_suffix(config: Any, name: str, *allowed: str) -> None:
    """Refuse a file's path that is set, and whose suffix is none of those allowed, such as ".npz".

    Raises:
      InputError: naming the option, the path and what is allowed.
    """
    path = getattr(config, name)
    if path is not None and Path(path).suffix not in allowed:
        raise InputError(f"{option_of(name)} {path}: its suffix must be {', '.join(allowed)}")


def refuse_unused(config: Any, names: Sequence[str], why: str) -> None:
    """Refuse options that were given but would have no effect, so that none is recorded as if it had been used.

    Args:
      names: fields whose default means that the option was not given.
      why: ends the sentence "--x has no effect ...".

    Raises:
      InputError: naming the option.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise InputError(f"{option_of(name)} has no effect {why}; leave it out")


def with_defaults(config_class: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings, those that are younger than their file at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(config_class) if f.default is not dataclasses.MISSING}
    return defaults | up_to_date(config_class, record)


def up_to_date(config_class: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings under the names of this version: a class whose names have changed has `from_earlier`."""
    rename = getattr(config_class, "from_earlier", dict)
    return rename(record)


def option_of(name: str) -> str:
    """batch_size -> --batch-size; with_ -> --with."""
    return "--" + name.rstrip("_").replace("_", "-")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Decorator or context: an InputError becomes one line `error: ...` on stderr and exit code 2; so does a full disk.

    An interrupt from the keyboard ends with code 130. Other exceptions are bugs and keep their traceback.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
        what = f"cannot write {error.filename or 'a file'}: {error.strerror}"
        print(f"error: {what}; free disk space or write elsewhere, then run the command again", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from error


def resolve_run_dir(run_dir: str | Path, option: str = "--run-dir") -> Path:
    """Creates a run directory, proves that it can be written, and returns its absolute path.

    Args:
      option: names the directory, or a file in it, on the command line.

    Raises:
      InputError: it cannot be created or written.
    """
    path = Path(run_dir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write the folder {path}: {error.strerror}; choose another {option}"
        ) from error
    return path


class StopFlag:
    """True once SIGINT or SIGTERM asked the run to stop, so that it can save first.

    A second SIGINT raises KeyboardInterrupt at once. Use in the main thread, as a context manager; the
    handlers found at the start are put back at the end.

    Example:
      with StopFlag() as stop:
          while step < total and not stop:
              step += 1
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # which one came, for messages
        self._previous: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


# --- tyro ---------------------------------------------------------------------------------------------


def _registry() -> tyro.constructors.ConstructorRegistry:
    """The rules of tyro plus ours for int."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def count_rule(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda args: whole_number(args[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _run_tyro(
    config_class: type[Config], argv: list[str], description: str, prog: str | None, files: list[str]
) -> tuple[Config, list[str]]:
    """(config, unknown arguments); tyro's framed messages become an InputError."""
    options: dict[str, Any] = {"args": argv, "description": description or None, "prog": prog}
    frame = io.StringIO()
    try:
        with contextlib.redirect_stderr(frame):
            return tyro.cli(config_class, registry=_registry(), return_unknown_args=True, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A ValueError of the class itself is what tyro was handling when it gave up.
        own = type(stop.__context__) in (ValueError, InputError)
        message = str(stop.__context__) if own else _unframe(frame.getvalue())
        unknown = _unknown_options(config_class, argv)
        if unknown:  # say this first: a misspelt option is often why another one is missing
            raise InputError(_describe_unknown(config_class, unknown)) from stop
        origin = f" (settings also come from {', '.join(files)})" if files else ""
        raise InputError(_one_line(message) + origin) from stop


def _unframe(text: str) -> str:
    """The message inside tyro's frame, without its help text."""
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    head = lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), None)]
    message = _one_line(" ".join(head))
    if message.startswith("Missing from"):
        names = re.findall(r"(?<=\s)--[\w.-]+", message)
        return f"missing {', '.join(dict.fromkeys(names))}; see --help"
    message = message.removeprefix("Error parsing ")
    # For `int | None` tyro lists what every member of the union said; the last one is the telling one.
    return re.sub(r"no type matching .* Got errors: .* - <class '\w+'>: ", "", message)


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- help ---------------------------------------------------------------------------------------------


def _show_grouped_help(config_class: type, description: str, prog: str | None) -> None:
    """Print --help with the options of each group apart, and exit.

    `config_class.GROUPS` is {title: (field, ...)}; fields in no group come first. Groups exist in the help alone, as
    nested classes made for it, so that settings and their files stay flat.
    """
    docs = _field_docs(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    types = _fields(config_class)

    def option(name: str) -> tuple:
        kind: Any = typing.Annotated[types[name], tyro.conf.arg(help=docs.get(name, ""))]  # type: ignore[valid-type]
        default = fields[name].default
        return (name, kind) if default is dataclasses.MISSING else (name, kind, dataclasses.field(default=default))

    grouped = {name for names in config_class.GROUPS.values() for name in names}  # type: ignore[attr-defined]
    options: list[Any] = [option(name) for name in fields if name not in grouped]
    for title, names in config_class.GROUPS.items():  # type: ignore[attr-defined]
        group = dataclasses.make_dataclass(title, [option(name) for name in names], kw_only=True)
        group.__doc__ = ""
        options.append((title, group, dataclasses.field(default_factory=group)))
    whole = dataclasses.make_dataclass(config_class.__name__, options, kw_only=True)
    shown: Any = tyro.conf.OmitArgPrefixes[whole]  # type: ignore[valid-type, misc]
    tyro.cli(shown, args=["--help"], description=description, prog=prog, registry=_registry())


def _field_docs(config_class: type) -> dict[str, str]:
    """The docstring below each field."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }  # fmt: skip


# --- names --------------------------------------------------------------------------------------------


def _fields(config_class: type) -> dict[str, Any]:
    """{field name: type} of what the class's constructor accepts."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def _option_names(config_class: type, prefix: str = "--") -> list[str]:
    names = []
    for name, hint in _fields(config_class).items():
        option = prefix + option_of(name).removeprefix("--")
        if dataclasses.is_dataclass(hint):
            names += _option_names(hint, option + ".")
        else:
            names.append(option)
            if hint is bool:
                names.append(f"{prefix}no-{option.removeprefix(prefix)}")
    return names


def _unknown_options(config_class: type, argv: list[str]) -> list[str]:
    names = [token.split("=")[0].replace("_", "-") for token in argv if token.startswith("--")]
    return [name for name in names if name not in _option_names(config_class)]


def _describe_unknown(config_class: type, unknown: list[str]) -> str:
    option = next((token for token in unknown if token.startswith("-")), None)
    if option is None:
        return f"unexpected argument {unknown[0]!r}; options start with --, see --help"
    name = option.split("=")[0]
    return f"unknown option {name!r}{_nearest(name.replace('_', '-'), _option_names(config_class))}"


def _nearest(name: str, valid: Sequence[str]) -> str:
    bare = {option.lstrip("-"): option for option in valid}  # the dashes would make anything look alike
    close = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.5)
    return f"; did you mean {bare[close[0]]!r}?" if close else "; see --help"


# --- config files -------------------------------------------------------------------------------------


def _take_config_option(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits `--config FILE` off: (other arguments, files)."""
    rest, files = [], []
    tokens = iter(argv)
    for token in tokens:
        if token == "--config":
            file = next(tokens, None)
            if file is None:
                raise InputError("--config needs a file, such as --config runs/x/config.json")
            files.append(file)
        elif token.startswith("--config="):
            files.append(token.removeprefix("--config="))
        else:
            rest.append(token)
    return rest, files


def _file_tokens(config_class: type, path: Path) -> list[str]:
    """A JSON file's settings as command-line arguments, so that they pass the same checks."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--config {path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} must hold a JSON object of settings")
    return _tokens(config_class, up_to_date(config_class, settings), "--", path)


def _tokens(config_class: type, settings: Mapping[str, Any], prefix: str, path: Path) -> list[str]:
    fields, tokens = _fields(config_class), []
    for name, value in settings.items():
        if name not in fields:
            raise InputError(f"--config {path}: unknown setting {name!r}{_nearest(name, list(fields))}")
        option = prefix + option_of(name).removeprefix("--")
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, dict):
            tokens += _tokens(fields[name], value, option + ".", path)
        elif fields[name] is bool and isinstance(value, bool):
            tokens.append(f"{prefix}{'' if value else 'no-'}{name.replace('_', '-')}")
        elif isinstance(value, list | dict):
            tokens += [option, *_words(value)]
        else:
            tokens.append(f"{option}={value}")
    return tokens


def _words(value: Any) -> list[str]:
    """Lists and dicts, flattened the way tyro reads tuples and dicts."""
    if isinstance(value, dict):
        return [word for item in value.items() for word in _words(list(item))]
    return [word for item in value for word in _words(item)] if isinstance(value, list) else [str(value)]

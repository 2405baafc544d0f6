"""The command reference of the documentation: every option of every command, read from the config dataclasses.

Sources are parsed and not imported, so neither the documentation nor its test needs JAX. A command is a module of
`experiments/` with a `main`. Its options are the fields of the dataclass that it gives to `jaxatoms.tools.cli.parse`,
and the help of an option is the docstring below its field.
"""

import ast
import dataclasses
import itertools
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_DEFAULT = "required"
# `experiments.data` has a word before its options, which decides on the dataclass.
SUBCOMMANDS = {
    "data": {"info": "InfoConfig", "check": "InfoConfig", "download": "DownloadConfig", "prepare": "DataConfig"},
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str  # --batch-size
    kind: str  # the annotation of the field, as written
    default: str  # the value as one would type it; "" where None stands for a rule that the help states
    help: str  # the docstring below the field; "" where there is none
    group: str  # title in --help; "" for the main options


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with its options, in the order of --help."""

    name: str  # experiments.pretrain, experiments.data info
    description: str  # docstring of the module
    options: tuple[Option, ...]

    @property
    def flags(self) -> set[str]:
        """All spellings that the command accepts, `--no-x` of switches, `--config` and `--help` included."""
        named = {option.name for option in self.options}
        negated = {f"--no-{o.name.removeprefix('--')}" for o in self.options if o.kind == "bool"}
        own = set() if "--config" in named else {"--config"}
        return named | negated | own | {"--help"}


def commands() -> list[Command]:
    """Every command of `experiments/`, by name."""
    found = []
    for path in sorted((ROOT / "experiments").glob("[!_]*.py")):
        tree = _parsed(path)
        if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            continue
        name, description = f"experiments.{path.stem}", ast.get_docstring(tree) or ""
        if path.stem in SUBCOMMANDS:
            for word, config in SUBCOMMANDS[path.stem].items():
                found.append(Command(f"{name} {word}", description, options_of(path, config)))
        else:
            options = module_options(path)
            settings = _assigned(path, "SETTINGS")  # of the demo: other defaults than those of the study
            values = {} if settings is None else {k: " ".join(v) for k, v in ast.literal_eval(settings).items()}
            own = (dataclasses.replace(o, default=values.get(o.name, o.default)) for o in options)
            found.append(Command(name, description, tuple(own)))
    return found


def module_options(path: Path) -> tuple[Option, ...]:
    """The options of the dataclass that a module gives to `cli.parse`."""
    return options_of(path, _parsed_class(path, _parsed(path)))


def options_of(path: Path, config: str) -> tuple[Option, ...]:
    """The options of a dataclass that `path` defines or imports, those of its base first."""
    path, body = _definition(path, config)
    inherited = [options_of(path, base.id) for base in body.bases if isinstance(base, ast.Name)]
    groups = _groups(body)
    own = []
    for field, below in itertools.pairwise([*body.body, ast.Pass()]):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kind = _kind(field.annotation)
        if "ClassVar" in kind:
            continue
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        own.append(
            Option(
                name="--" + field.target.id.rstrip("_").replace("_", "-"),
                kind=kind,
                default=_typed(path, field.value),
                help=" ".join(str(text).split()),
                group=groups.get(field.target.id, ""),
            )
        )
    titles = ["", *dict.fromkeys(groups.values())]
    own.sort(key=lambda option: titles.index(option.group))  # stable: the order of --help
    return tuple(itertools.chain(*inherited, own))


def _kind(annotation: ast.expr) -> str:
    """An annotation as written, without what `Annotated` adds to it."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        annotation = annotation.slice.elts[0]  # type: ignore[attr-defined]
    return ast.unparse(annotation)


def page(title: str, members: list[Command]) -> str:
    """A Markdown page of one module's commands."""
    first = members[0]
    summary, _, rest = first.description.partition("\n\n")
    lines = [f"# {title}", "", _prose(summary), ""]
    lines += _blocks(rest)
    for command in members:
        if len(members) > 1:
            lines += [f"## `{command.name}`", ""]
        for group, options in itertools.groupby(command.options, lambda option: option.group):
            level = "###" if len(members) > 1 else "##"
            lines += [f"{level} {f'Options: {group}' if group else 'Options'}", ""]
            lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
            for o in options:
                shown = f"`{o.default}`" if o.default and o.default != NO_DEFAULT else o.default
                flag = f"`{o.name}`" + (f"<br>`--no-{o.name[2:]}`" if o.kind == "bool" else "")
                lines.append(f"| {flag} | {_value(o.kind)} | {shown} | {_cell(o.help)} |")
            lines.append("")
        if "--config" not in {o.name for o in command.options}:
            lines += [
                "`--config FILE.json` reads settings from a file, such as the `config.json` of an earlier run. Options",
                "on the command line win over the file. `--help` prints the options and exits.",
                "",
            ]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """{file name: page} of all commands, with an index."""
    by_module: dict[str, list[Command]] = {}
    for command in commands():
        by_module.setdefault(command.name.split()[0], []).append(command)
    made = {f"{module.split('.')[1]}.md": page(f"`{module}`", members) for module, members in by_module.items()}
    rows = []
    for module, members in by_module.items():
        summary = members[0].description.partition("\n\n")[0]
        rows.append(f"| [`{module}`]({module.split('.')[1]}.md) | {_cell(_prose(summary))} |")
    head = ["# Commands", "", "Every command is started with `python -m`, such as `python -m experiments.pretrain`.",
            "Where the package is installed, `jaxatoms pretrain` is the same command.", "",
            "These pages are made from the settings classes when the documentation is built.", "",
            "| command | what it does |", "|---|---|"]  # fmt: skip
    return made | {"index.md": "\n".join([*head, *rows, ""])}


# --- reading sources ----------------------------------------------------------------------------------


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _parsed_class(path: Path, tree: ast.Module) -> str:
    """The class that the module gives to `cli.parse`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.parse":
            return ast.unparse(node.args[0])
    raise ValueError(f"{path} has a main and no cli.parse; name its classes in SUBCOMMANDS")


def _definition(path: Path, dotted: str) -> tuple[Path, ast.ClassDef]:
    """The file and the body of a class, followed through imports."""
    *module, name = dotted.split(".")
    if module:
        return _definition(_imported(path, module[0])[0], name)
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
    source, original = _imported(path, name)
    return _definition(source, original)


def _imported(path: Path, name: str) -> tuple[Path, str]:
    """The file that a name is imported from (or that it stands for), and its name there."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    folder = ROOT / Path(*node.module.split("."))
                    inside = folder / f"{alias.name}.py"
                    return (inside if inside.exists() else folder.with_suffix(".py")), alias.name
    raise ValueError(f"{path} does not import {name}")


def _typed(path: Path, value: ast.expr | None) -> str:
    """A default as one would type it."""
    if value is None:
        return NO_DEFAULT
    found = _constant(path, value)
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, tuple):
        return " ".join(map(str, found))
    return "" if found is None else str(found)


def _constant(path: Path, value: ast.expr):
    """The value of an expression of constants, which may be names of this module or of imported ones."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        pass
    if isinstance(value, ast.Name):
        own = _assigned(path, value.id)
        return _constant(_imported(path, value.id)[0], value) if own is None else _constant(path, own)
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        source, name = _imported(path, value.value.id)
        if source.stem == name:  # a module: its constant
            return _constant(source, ast.Name(value.attr))
        made = _assigned(source, name)  # an object: the keyword that it was made with
        if isinstance(made, ast.Call):
            return next(ast.literal_eval(k.value) for k in made.keywords if k.arg == value.attr)
    raise ValueError(f"{path}: no value known for {ast.unparse(value)}")


def _assigned(path: Path, name: str) -> ast.expr | None:
    """What a module assigns to a name, also as one of several (`A, B = 1, 2`)."""
    for node in _parsed(path).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if ast.unparse(target) == name:
                return value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, part in zip(target.elts, value.elts):
                    if ast.unparse(one) == name:
                        return part
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node.value
    return None


def _groups(body: ast.ClassDef) -> dict[str, str]:
    """{field: title} of GROUPS."""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "GROUPS" and node.value is not None:
            return {name: title for title, names in ast.literal_eval(node.value).items() for name in names}
    return {}


# --- writing pages ------------------------------------------------------------------------------------


def _value(kind: str) -> str:
    """What one types after the option."""
    plain = kind.replace(" | None", "")
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "switch"}
    several = plain.removeprefix("tuple[").removesuffix(", ...]")
    return f"one or more: {words.get(several, several)}" if plain.startswith("tuple[") else words.get(plain, plain)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _prose(text: str) -> str:
    return " ".join(text.split())


def _blocks(text: str) -> list[str]:
    """Indented paragraphs of a docstring as code, the others as text."""
    lines = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(("    ", "python -m ")):
            lines += ["```bash", *(line.removeprefix("    ") for line in paragraph.splitlines()), "```", ""]
        elif paragraph.strip():
            lines += [paragraph.strip(), ""]
    return lines

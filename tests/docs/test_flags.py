"""Options in the documentation: the reference has every one with a sentence, and no page names one that does not exist.

Commands and pages are read as text, so that this takes seconds. `scripts.command_reference` parses the sources; that it
finds what the command line really accepts is tested against the classes that need no JAX.
"""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from jaxatoms.tools import cli
from scripts import command_reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
COMMANDS = {command.name: command for command in command_reference.commands()}
WITHOUT_JAX = {
    "jaxatoms.runs.pretrain_config:PretrainConfig": ("experiments.pretrain",),
    "jaxatoms.runs.finetune_config:FinetuneConfig": ("experiments.finetune",),
    "jaxatoms.runs.study:StudyConfig": ("experiments.study", "experiments.demo"),
    "experiments.data:InfoConfig": ("experiments.data info", "experiments.data check"),
    "experiments.data:DownloadConfig": ("experiments.data download",),
    "experiments.data:DataConfig": ("experiments.data prepare",),
    "experiments.reproduce:ReproduceConfig": ("experiments.reproduce",),
    "experiments.tables:TablesConfig": ("experiments.tables",),
    "experiments.label:LabelConfig": ("experiments.label",),
}
# Flags that pages name and that belong to other programs.
FOREIGN = {
    "--upgrade": "pip", "--editable": "pip", "--ref-energy": "fairchem's preprocessing",
    "--large": "a script of the released code", "--completion": "the console command jaxatoms, before any command",
    "--xla_force_host_platform_device_count": "XLA", "--xla_backend_extra_options": "XLA",
}  # fmt: skip
# Every help text contains a finite verb, or begins with an imperative. New verbs may join; fragments have neither.
FINITE = re.compile(
    r"\b(is|are|has|have|does|can|may|uses?|takes?|names|gives|reads|means|makes?|trains?|passes|rises|sets|decays|keeps?"
    r"|drops|counts|recomputes|saves|end|ends|needs|shares?|spreads|reports|consists|asks|holds?|builds?|converts?"
    r"|determines?|starts|fits|predicts?|peaks|draws|mixes|reach|adds|pads|validates|cover|chooses|replaces|come|run|get"
    r"|selects|refuses|writes?|use|compares?)\b"
)
IMPERATIVE = re.compile(
    r"(Also )?(compare|continue|do not|draw|export|fine-tune|fit|keep|look|pass|pretrain|print|rank|train|use|write)\b",
    re.IGNORECASE,
)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)*)`")
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"\b(?:experiments|benchmarks|scripts)\.[a-z]\w*")


def is_sentence(text: str) -> bool:
    """Whether a help text ends as a sentence does and contains a verb."""
    return text.endswith(".") and bool(IMPERATIVE.match(text) or FINITE.search(text))


def test_fragments_are_told_from_sentences():
    assert is_sentence("The seed determines which structures are drawn.")
    for fragment in (
        "Of the subset, the order, the edge dropout and the weights.",
        "Structures per step.",
        "A, of pretraining; default: the data set's.",
        "The run writes all its files into this folder",
        "",
    ):
        assert not is_sentence(fragment), fragment


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence_and_is_in_the_reference(name):
    command = COMMANDS[name]
    assert command.options, "a command without options has not been understood"
    unclear = [f"{o.name}: {o.help!r}" for o in command.options if not is_sentence(o.help)]
    assert not unclear, "\n".join(unclear)
    page = command_reference.pages()[f"{name.split()[0].split('.')[1]}.md"]
    section = page.split(f"## `{name}`")[-1].split("\n## `")[0] if " " in name else page
    rows = dict(re.findall(r"^\| `(--[\w-]+)`.*\| (.*) \|$", section, re.MULTILINE))
    assert list(rows) == [option.name for option in command.options]
    assert all(len(meaning) > 10 for meaning in rows.values())


def test_every_command_has_a_page_in_the_navigation():
    modules = {path.stem for path in (ROOT / "experiments").glob("[!_]*.py") if "\ndef main(" in path.read_text()}
    assert {name.split()[0].split(".")[1] for name in COMMANDS} == modules
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [page for page in command_reference.pages() if f"reference/commands/{page}\n" not in navigation]
    assert not missing


@pytest.mark.parametrize("place", WITHOUT_JAX)
def test_the_reference_has_what_the_command_line_accepts(place):
    module, name = place.split(":")
    config = getattr(importlib.import_module(module), name)
    for command in WITHOUT_JAX[place]:
        listed = COMMANDS[command].flags - {"--config", "--help"}
        assert listed == set(cli._option_names(config)), command
        if command == "experiments.demo":
            continue  # it has defaults of its own
        defaults = {cli.option_of(f.name): f.default for f in dataclasses.fields(config)}
        for option in COMMANDS[command].options:
            value = defaults[option.name]
            if value is dataclasses.MISSING:
                assert option.default == command_reference.NO_DEFAULT
            elif isinstance(value, str | float | int) and not isinstance(value, bool):
                assert option.default == str(value)


# --- pages --------------------------------------------------------------------------------------------


def own_flags(module: str) -> set[str]:
    """The flags of one of our modules: of a command from its settings, of a benchmark from its parser."""
    found = {flag for name, command in COMMANDS.items() if name.split()[0] == module for flag in command.flags}
    if found:
        return found
    path = ROOT / Path(*module.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if "cli.parse(" in path.read_text():
        return {option.name for option in command_reference.module_options(path)} | {"--help", "--config"}
    return set(re.findall(r'"(--[\w-]+)"', path.read_text())) | {"--help"}


def spelt_out(text: str) -> str:
    """The text with `jaxatoms pretrain` as `experiments.pretrain`."""
    names = "|".join({name.split()[0].split(".")[1] for name in COMMANDS})
    return re.sub(rf"(?<![/\w.])jaxatoms ({names})\b", r"experiments.\1", text)


def command_lines(text: str) -> list[list[str]]:
    """The words of every line that starts one of our modules, with what `|` and `#` cut off."""
    lines = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if found := MODULE.search(line):
            with_comment = line[found.start() :]
            try:
                words = shlex.split(with_comment, comments=True)
            except ValueError:  # an apostrophe in a comment or a prose line
                words = with_comment.split("#")[0].split()
            lines.append(words)
    return lines


def unknown_in_fences(text: str) -> list[str]:
    """Flags in fenced shell blocks that the command of their line does not have."""
    wrong = []
    for language, block in FENCE.findall(spelt_out(text)):
        if language not in ("", "bash", "sh", "shell", "console"):
            continue
        for words in command_lines(block):
            known = own_flags(words[0])
            flags = [found[0] for word in words if (found := FLAG.match(word))]
            wrong += [f"{words[0]} {flag}" for flag in flags if flag not in known]
    return wrong


def unknown_in_prose(text: str) -> list[str]:
    """Flags in inline code that no command has, or not the one that the same span names."""
    everywhere = {flag for command in COMMANDS.values() for flag in command.flags}
    for module in ("benchmarks", "scripts"):
        for path in (ROOT / module).rglob("*.py"):
            everywhere |= set(re.findall(r'"(--[\w-]+)"', path.read_text()))
    short = {name.split()[0].split(".")[1]: name.split()[0] for name in COMMANDS}
    wrong = []
    for span in SPAN.findall(FENCE.sub("", spelt_out(text))):
        words, flags = span.split(), FLAG.findall(span)
        module = next((found[0] for word in words if (found := MODULE.match(word))), short.get(words[0]))
        known = everywhere if module is None else own_flags(module)
        wrong += [f"{span}: {flag}" for flag in flags if flag not in known and flag not in FOREIGN]
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flag_of_a_page_exists(path):
    text = path.read_text()
    assert not unknown_in_fences(text) + unknown_in_prose(text)


def test_a_wrong_flag_is_found():
    fence = "```bash\npython -m experiments.pretrain --upstream a --batchsize 3 \\\n  --sampling x  # --no-such\n```\n"
    assert unknown_in_fences(fence) == ["experiments.pretrain --batchsize", "experiments.pretrain --sampling"]
    assert unknown_in_fences("```\njaxatoms predict --lr 1\n```\n") == ["experiments.predict --lr"]
    prose = "Give `--batch-size 3`, `--batchsize 3`, `pip install --upgrade x` or `predict --lr 1`."
    assert unknown_in_prose(prose) == ["--batchsize 3: --batchsize", "predict --lr 1: --lr"]


def test_the_pages_name_flags_at_all():
    named = [flag for path in PAGES for flag in FLAG.findall(path.read_text())]
    assert len(named) > 300 and sum(len(FENCE.findall(path.read_text())) for path in PAGES) > 30

"""`jaxatoms COMMAND`, and `python -m experiments COMMAND`: every command by its name."""

import difflib
import importlib
import sys

import jaxatoms

STEPS = {
    "Try it": {"demo": "select, pretrain, fine-tune and compare on data that ship with the package"},
    "Data": {
        "data": "list, download, convert, describe and check data sets",
        "csi": "rank upstream sets by their similarity to a task",
        "select": "choose structures of an upstream set",
        "extract": "write node features of a data set, or the losses of its structures",
    },
    "Train": {
        "pretrain": "pretrain on one or several upstream sets under a budget",
        "finetune": "fine-tune on a task, and test",
        "evaluate": "errors of a run on a split of its data",
        "uncertainty": "standard deviations of a run's energies, calibrated on its validation split",
    },
    "Use": {
        "predict": "energies, forces or properties of structures",
        "label": "energies and forces from any ASE calculator, written as a data set",
        "convert": "PyTorch checkpoints and safetensors to and from checkpoints",
    },
    "Report": {
        "study": "does the closest upstream set win? a whole comparison",
        "reproduce": "run a row of the paper, whole or scaled down",
        "tables": "tables and figures beside the published numbers",
    },
}
COMMANDS = {name: words for commands in STEPS.values() for name, words in commands.items()}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `jaxatoms`."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(jaxatoms.__version__)
        return 0
    if name == "--completion":
        return completion(*rest[:1])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"experiments.{name}").main(rest)


def overview() -> str:
    """The commands by step."""
    purpose = "Pretrain and fine-tune atomic-property models, and choose the data."
    lines = ["usage: jaxatoms COMMAND [OPTIONS]", "", purpose, ""]
    for title, commands in STEPS.items():
        lines += [f"{title}:", *(f"  {name:11s} {words}" for name, words in commands.items()), ""]
    ends = ["jaxatoms COMMAND --help lists the options of a command.",
            "jaxatoms --completion bash prints a script that completes commands and options (also zsh)."]  # fmt: skip
    return "\n".join(lines + ends)


def completion(shell: str = "bash") -> int:
    """Prints the script of `jaxatoms --completion`."""
    from jaxatoms.tools.completion import SHELLS, completion_script, options_of

    if shell not in SHELLS:
        print(f"error: --completion {shell}: give {' or '.join(SHELLS)}", file=sys.stderr)
        return 2
    mains = {name: importlib.import_module(f"experiments.{name}").main for name in COMMANDS}
    print(completion_script("jaxatoms", {name: options_of(main) for name, main in mains.items()}, shell))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

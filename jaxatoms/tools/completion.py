"""Completion of a command line in a shell, for a program whose commands have long options.

tyro completes programs of one command; ours starts one of many by its first word, so the script is written here.
"""

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence

SHELLS = ("bash", "zsh")
_OPTION = re.compile(r"(?<![\w-])--[a-z](?:[a-z0-9.-]*[a-z0-9])?")


def options_of(command: Callable[[list[str]], int]) -> list[str]:
    """The long options that the help of a command names, in its order."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command(["--help"])
    return list(dict.fromkeys(_OPTION.findall(text.getvalue())))


def completion_script(program: str, options: Mapping[str, Sequence[str]], shell: str) -> str:
    """A script to be sourced: commands for the first word, options for words that begin with a dash, else files."""
    function = f"_{re.sub(r'[^a-z]', '_', program)}"
    cases = [f'        {command}) words="{" ".join(found)}" ;;' for command, found in options.items()]
    lines = [
        "autoload -U +X bashcompinit && bashcompinit" if shell == "zsh" else "",
        f"{function}() {{",
        '    local current="${COMP_WORDS[COMP_CWORD]}" words=""',
        '    if [[ "$COMP_CWORD" == 1 ]]; then',
        f'        COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$current"))',
        "        return",
        "    fi",
        '    case "${COMP_WORDS[1]}" in',
        *cases,
        "    esac",
        '    if [[ "$current" == -* ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); fi',
        "}",
        f"complete -o default -F {function} {program}",
    ]
    return "\n".join(line for line in lines if line)

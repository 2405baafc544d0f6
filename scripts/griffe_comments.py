"""An extension of griffe, which reads the sources for the API pages.

Comments behind attributes count as docstrings, because shapes and units of NamedTuples and dataclasses stand there:
`positions: np.ndarray  # [n_node, 3] float, A`. Arguments that a docstring describes together
(`cutoff, max_neighbors:`) are described one by one, so that each gets its type and default.
"""

import ast
import re

import griffe

_TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_COMMENT = re.compile(r"\s{2}# (.+)$")
_NOT_FOR_READERS = ("noqa", "type:", "fmt:")


class CommentsAsDocstrings(griffe.Extension):
    """Gives an attribute without a docstring the comment at the end of its line."""

    def on_attribute_instance(self, *, node, attr, agent, **kwargs) -> None:
        """Called by griffe for every attribute that it reads."""
        if attr.docstring is not None or not isinstance(node, ast.AST) or attr.lineno is None:
            return
        line = attr.lines_collection[attr.filepath][attr.lineno - 1]
        found = _COMMENT.search(line)
        if found and not found[1].startswith(_NOT_FOR_READERS):
            attr.docstring = griffe.Docstring(found[1], lineno=attr.lineno, parent=attr)

    def on_function(self, *, func, **kwargs) -> None:
        """Called by griffe for every function that it has read."""
        _describe_one_by_one(func)

    def on_class(self, *, cls, **kwargs) -> None:
        """Called by griffe for every class that it has read."""
        _describe_one_by_one(cls)


def _describe_one_by_one(found) -> None:
    if found.docstring is not None:
        found.docstring.value = _TOGETHER.sub(_apart, found.docstring.value)


def _apart(match: re.Match) -> str:
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))

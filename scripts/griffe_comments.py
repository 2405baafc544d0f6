"""An extension of griffe, which reads the sources for the API pages: comments behind attributes count as docstrings.

Shapes and units of NamedTuples and dataclasses stand in such comments: `positions: np.ndarray  # [n_node, 3] float, A`.
"""

import ast
import re

import griffe

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

"""Comment lines of extended XYZ: read without loss where ASE's parser swallows a value, written so that it does not."""

import json
import re
from typing import Any

import numpy as np
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

_NOTHING = "jaxatoms-empty-value"
# Quoted text first, so that nothing inside it is taken for a key; then the ways to write no value: key="" and, before
# another key or at the end, key=
_EMPTY = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])+"|'(?:\\.|[^'\\])+'|\{[^}]+\}|\[[^\]]+\])"""
    r"""|=\s*(?:""|''|\{\}|\[\])(?=\s|$)|=(?=\s+(?:"[^"]*"|[^\s="]+)=)|=(?=\s*$)"""
)


def parse_comment(line: str) -> dict[str, Any]:
    """The keys and values of a comment line, as ASE parses it; an empty value is "".

    ASE's parser gives `name="" energy=-1.0` one key, `name`, with the value "energy=-1.0".
    """
    marked = _EMPTY.sub(lambda found: found["text"] or f"={_NOTHING}", line)
    found = key_val_str_to_dict(marked)
    return {key: "" if isinstance(value, str) and value == _NOTHING else value for key, value in found.items()}


def writable_info(info: dict[str, Any]) -> dict[str, Any]:
    """`info` whose values ASE writes so that its parser gives them back: text it would mistake becomes JSON."""
    return {str(key): _writable(value) for key, value in info.items()}


def _writable(value: Any) -> Any:
    if isinstance(value, str) and _survives(value):
        return value
    if value is None or isinstance(value, str | dict | list | tuple) or _is_awkward(value):
        # ASE's parser takes a backslash away before it reads the JSON.
        return "_JSON " + json.dumps(_plain(value), default=str).replace("\\", "\\\\")
    return value


def _is_awkward(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind not in "ifb" or value.size < 2)


def _survives(text: str) -> bool:
    line = key_val_dict_to_str({"x": text})
    try:
        return "\n" not in line and "\r" not in line and key_val_str_to_dict(f"{line} y=1") == {"x": text, "y": 1}
    except (ValueError, TypeError):
        return False


def _plain(value: Any) -> Any:
    """Nested containers of Python's own types, as JSON wants them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value

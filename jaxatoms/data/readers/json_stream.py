"""The items of one long JSON array, one at a time, so that a file of any size is read in little memory."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

_CHUNK = 1 << 20  # characters
_SHORT = 4096  # characters that a list of column names may have
_SPACE = re.compile(r"[\s,]*")


def iter_items(stream: TextIO, key: str | None = None) -> Iterator:
    """Yields the items of the array that a JSON text is, or of the array under the first `"key":`.

    Where `key` is given, the first thing yielded is a dictionary of what stands before that array.

    Raises:
      ValueError: no such array, or the text ends inside it.
    """
    buffer = stream.read(_CHUNK)
    head = re.compile(r"\s*\[" if key is None else rf'"{re.escape(key)}"\s*:\s*\[')
    while not (found := head.search(buffer)):
        more = stream.read(_CHUNK)
        if not more:
            raise ValueError(f"no array {key or ''}")
        buffer += more
    if key is not None:
        yield json.loads(buffer[: found.start()].rstrip().rstrip(",") + "}")
    yield from _items(stream, buffer, found.end())


def find_list(stream: TextIO, key: str) -> list:
    """The short list under the first `"key":`, wherever it stands; [] without one."""
    pattern = re.compile(rf'"{re.escape(key)}"\s*:\s*(\[[^\]]*\])')
    buffer = ""
    while more := stream.read(_CHUNK):
        buffer = buffer[-_SHORT:] + more
        if found := pattern.search(buffer):
            return json.loads(found[1])
    return []


def _items(stream: TextIO, buffer: str, place: int) -> Iterator:
    decoder = json.JSONDecoder()
    while True:
        place = _SPACE.match(buffer, place).end()  # type: ignore[union-attr]  # matches anything
        if buffer[place : place + 1] == "]":
            return
        try:
            item, end = decoder.raw_decode(buffer, place)
            complete = end < len(buffer)  # a number at the very end may go on in the next chunk
        except json.JSONDecodeError:
            complete = False
        if complete:
            yield item
            place = end
            continue
        more = stream.read(max(_CHUNK, len(buffer)))  # doubling: a long item costs no quadratic time
        if not more:
            raise ValueError("the text ends inside an array")
        buffer, place = buffer[place:] + more, 0

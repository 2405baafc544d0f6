"""What is read off the text of a compiled program: bytes of collectives, and of a TPU's main memory."""

import re
from collections import Counter
from math import prod
from typing import NamedTuple

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
# They move nothing: names for what is there already, and the ends of copies that are counted where they start.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}
STILL_CALLS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
_CALLS = re.compile(r"\bcalls=%([\w.\-]+)")
_BODY = re.compile(r"\bbody=%([\w.\-]+)")


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective in a compiled program, on one device."""
    total: Counter[str] = Counter()
    for shapes, kind in _COLLECTIVE.findall(hlo):
        total[kind] += sum(size for size, _ in _arrays(shapes))
    return dict(total)


def main_memory_bytes(hlo: str) -> int:
    """Bytes that a compiled TPU program reads from and writes to main memory, on one device.

    The compiler's own "bytes accessed" also counts what stays in on-chip memory (`S(1)` in a layout) and copies there,
    most of the total in steps with small parts. Here only arrays in main memory count: of asynchronous copies the
    piece, of a fusion that reads slices of an array or writes a slice in place the slices, of anything else all
    operands and results. The body of a loop counts once.
    """
    computations = _computations(hlo)
    looped = {body for lines in computations.values() for line in lines for body in _BODY.findall(line)}
    parts = {name: _slices(lines) for name, lines in computations.items()}
    return sum(_traffic(lines, parts) for name, lines in computations.items() if name == "ENTRY" or name in looped)


def _computations(hlo: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            lines.append(line)
    return found


class _Slices(NamedTuple):
    """What a fused computation touches of its arrays, where that is less than all."""

    read: dict[int, int]  # bytes read, by parameter
    written: int | None  # bytes of a result that is a parameter changed in place


def _slices(lines: list[str]) -> _Slices:
    sizes: dict[str, int] = {}
    parameters: dict[str, int] = {}
    uses: dict[str, list[tuple[str, int]]] = {}  # (kind, bytes of what follows from it)
    written = None
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        sizes[name] = sum(size for size, _ in _arrays(result))
        named = re.findall(r"%([\w.\-]+)", operands)
        if kind == "parameter":
            parameters[name] = int(operands)
        elif kind == "dynamic-update-slice" and "ROOT " in line and named[0] in parameters:
            written = sizes[named[1]]
            uses.setdefault(named[0], []).append(("slice", 0))
            named = named[1:]
        for operand in named:
            uses.setdefault(operand, []).append((kind, sizes[name]))
    read = {
        index: sum(size for _, size in uses[name])
        for name, index in parameters.items()
        if name in uses and all(kind == "slice" for kind, _ in uses[name])
    }
    return _Slices(read, written)


def _traffic(lines: list[str], parts: dict[str, _Slices]) -> int:
    arrays: dict[str, list[tuple[int, bool]]] = {}
    total = 0
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        arrays[name] = _arrays(result)
        if kind in STILL or kind.endswith("-done") or any(call in line for call in STILL_CALLS):
            continue
        if kind in ("copy-start", "slice-start"):  # (source, destination, semaphore) or the other way round
            ends = arrays[name][:2]
            total += min(size for size, _ in ends) * sum(in_main for _, in_main in ends)
        else:
            called = _CALLS.search(line)
            slices = parts[called[1]] if kind == "fusion" and called else _Slices({}, None)
            for i, operand in enumerate(re.findall(r"%([\w.\-]+)", operands)):
                total += sum(min(size, slices.read.get(i, size)) for size, in_main in arrays[operand] if in_main)
            written = [(slices.written or size, in_main) for size, in_main in arrays[name]]
            total += sum(size for size, in_main in written if in_main)
    return total


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether in main memory) of each array in an HLO type."""
    return [
        (BYTES.get(dtype, 0) * prod(int(d) for d in dims.split(",") if d), "S(" not in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(shape)
    ]

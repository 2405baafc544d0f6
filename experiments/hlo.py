"""What is read off the text of a compiled program: bytes of collectives, and of a TPU's main memory."""

import re
from collections import Counter
from math import prod

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
# They move nothing: names for what is there already, and the ends of copies that are counted where they start.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}
STILL_CALLS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
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
    piece, of anything else all operands and results, also where an instruction reads them in part. The body of a loop
    counts once.
    """
    computations = _computations(hlo)
    looped = {body for lines in computations.values() for line in lines for body in _BODY.findall(line)}
    return sum(_traffic(lines) for name, lines in computations.items() if name == "ENTRY" or name in looped)


def _computations(hlo: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            lines.append(line)
    return found


def _traffic(lines: list[str]) -> int:
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
            touched = arrays[name] + [x for operand in re.findall(r"%([\w.\-]+)", operands) for x in arrays[operand]]
            total += sum(size for size, in_main in touched if in_main)
    return total


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether in main memory) of each array in an HLO type."""
    return [
        (BYTES.get(dtype, 0) * prod(int(d) for d in dims.split(",") if d), "S(" not in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(shape)
    ]

"""Reads the text of a compiled program and lists its operations with their bytes, arithmetic and part of the model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import NamedTuple

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
PRECISIONS = {"bf16": "bfloat16", "f16": "float16", "f64": "float64"}  # of products; those of f32 have several
COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
# These operations move no data: they name existing arrays, or end copies that are counted at their start.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}
_ALLOCATION = "AllocateBuffer"
STILL_CALLS = ("ConcatBitcast", _ALLOCATION, "AssumeGatherIndicesInBound")
# These are the named scopes of the model, innermost first. An operation inside several belongs to the first of them.
PARTS = {
    "quad_interaction": "quadruplets",
    "trip_interaction": "triplets, edges to edges",
    "atom_edge_interaction": "triplets, atoms to edges",
    "edge_atom_interaction": "triplets, edges to atoms",
    "atom_interaction": "pairs, atoms to atoms",
    "atom_update": "atom updates",
    "interaction_block": "dense chains of the blocks",
    "output_block": "output blocks",
    "final_mlp": "final MLPs",
    "edge_embedding": "edge embedding",
    "bases": "geometry and bases",
    "indices": "indices",
    "heads": "heads",
    "loss": "loss",
    "optimizer": "optimiser and average",
}
OTHER = "other"

_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
_CALLS = re.compile(r"\b(?:calls|to_apply)=%([\w.\-]+)")
_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PATH = re.compile(r'\bop_name="([^"]*)"')
_PRODUCT_CALLS = ("__cublas$gemm", "__cublas$lt$matmul")  # of a GPU; their further results are scratch memory
_MOSAIC_CALL = 'custom_call_target="mosaic_gpu'  # a kernel of Pallas Mosaic GPU: its text does not say what it computes
# Products [n, c] x [c, c] in bfloat16 of the kernels in `kernels`, by their names; results have the shape [..., n, c].
KERNEL_PRODUCTS = {"residual_pair_forward": 2, "residual_pair_backward": 2}
_ASKED = re.compile(r'\boperand_precision(?:=\{|":\[)([\w",]*)')
_CONTRACTED = re.compile(r'\blhs_contracting_(?:dims=\{|dimensions":\[)([\d,"]*)')


class Operation(NamedTuple):
    """One operation of a program, as it is launched."""

    name: str
    kind: str
    part: str  # a value of PARTS, or OTHER
    backward: bool
    bytes: int  # read from and written to main memory
    products: Mapping[str, int]  # operations by precision of the factors; none on TPU, where they are convolutions

    @property
    def flops(self) -> int:
        """Operations of its products."""
        return sum(self.products.values())


class Collective(NamedTuple):
    """One exchange between devices."""

    kind: str  # of COLLECTIVES
    bytes: int  # of its results
    beside: int  # launches between its start and its end; 0 where it is synchronous


def collectives(hlo: str) -> list[Collective]:
    """Lists the exchanges between devices in a compiled program, with the launches that run beside each."""
    return [exchange for lines in _computations(hlo).values() for exchange in _collectives(lines)]


def launches(hlo: str) -> list[Operation]:
    """Lists the operations of a compiled program that a GPU launches a kernel, a copy or a library call for."""
    return [operation for operation in operations(hlo) if operation.bytes and operation.kind not in STILL]


def products_by_precision(found: Iterable[Operation]) -> dict[str, tuple[int, int]]:
    """Returns {precision of the factors: (operations of products, launches that compute some)}, most first."""
    arithmetic: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for operation in found:
        arithmetic.update(operation.products)
        calls.update(operation.products.keys())
    return {precision: (count, calls[precision]) for precision, count in arithmetic.most_common()}


def flops_by_part(found: Iterable[Operation]) -> dict[str, int]:
    """Returns the arithmetic of products in each part of the model, most first."""
    total: Counter[str] = Counter()
    for operation in found:
        total[operation.part] += operation.flops
    return dict(total.most_common())


def bytes_by_part(found: Iterable[Operation]) -> dict[str, int]:
    """Returns the bytes of main memory that each part of the model moves, largest first."""
    total: Counter[str] = Counter()
    for operation in found:
        total[operation.part] += operation.bytes
    return dict(total.most_common())


def operations(hlo: str) -> list[Operation]:
    """Lists what a compiled program launches on one device; the body of a loop is listed as often as it runs.

    (Once, where the program does not say how often.)

    A TPU compiler's own "bytes accessed" also counts what stays in on-chip memory (`S(1)` in a layout) and copies
    there, most of the total in steps with small parts. Here only arrays in main memory count: of asynchronous copies
    the piece, of a fusion that reads slices of an array or writes a slice in place the slices, of anything else all
    operands and results.
    """
    computations = _computations(hlo)
    times = _times(computations)
    slices = {name: _slices(lines) for name, lines in computations.items()}
    products: dict[str, Counter[str]] = {}
    for name, lines in computations.items():  # a computation is printed before those that call it
        products[name] = sum(_products(lines, products).values(), Counter())
    found: list[Operation] = []
    for name, lines in computations.items():
        if name in times:
            found += times[name] * _launched(lines, slices, _products(lines, products))
    return found


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """Returns how often the entry and the bodies of loops run; of a loop inside a branch or a call once."""
    times = {"ENTRY": 1}
    for name, lines in reversed(computations.items()):  # a body is printed before the loop
        for line in lines if name in times else []:
            if body := _BODY.search(line):
                known = _TRIPS.search(line)
                times[body[1]] = times[name] * (int(known[1]) if known else 1)
    bodies = {body for lines in computations.values() for line in lines for body in _BODY.findall(line)}
    return dict.fromkeys(bodies, 1) | times


def part_of(path: str) -> str:
    """Returns the part of the model that an operation with this `op_name` belongs to."""
    words = set(re.findall(r"\w+", path))
    return next((part for scope, part in PARTS.items() if scope in words), OTHER)


def _computations(hlo: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            lines.append(line)
    return found


def _collectives(lines: list[str]) -> list[Collective]:
    found: list[Collective] = []
    under_way: dict[str, tuple[int, int]] = {}  # name -> (index in `found`, launches before it)
    launched = 0
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        if kind.removesuffix("-start") in COLLECTIVES:
            found.append(Collective(kind.removesuffix("-start"), sum(array.size for array in _arrays(result)), 0))
            if kind.endswith("-start") and '"is_sync":true' not in line:
                under_way[name] = (len(found) - 1, launched)
        elif kind.endswith("-done") and (start := _names(operands)[0]) in under_way:
            index, before = under_way[start]
            found[index] = found[index]._replace(beside=launched - before)
        elif kind not in STILL and not kind.endswith("-done"):
            launched += 1
    return found


class _Slices(NamedTuple):
    """Holds how much of its arrays a fused computation reads or writes, where that is less than all."""

    read: dict[int, int]  # bytes read, by parameter
    written: int | None  # bytes of a result that is a parameter changed in place


class _Array(NamedTuple):
    size: int  # bytes
    in_main: bool  # not in on-chip memory
    shape: tuple[int, ...]
    dtype: str  # as HLO names it


_NOTHING = _Array(0, False, (), "")


def _slices(lines: list[str]) -> _Slices:
    results: dict[str, _Array] = {}
    parameters: dict[str, int] = {}
    steps: list[tuple[str, str, list[str]]] = []  # (name, kind, operands), a result before its uses
    root, written = "", None
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        results[name] = next(iter(_arrays(result)), _NOTHING)
        named = _names(operands)
        root = name if "ROOT " in line else root
        if kind == "parameter":
            parameters[name] = int(operands)
        elif kind == "dynamic-update-slice" and name == root and named[0] in parameters:
            written = results[named[1]].size
            named = named[1:]
        steps.append((name, kind, named))
    parts = _parts_read(steps, results, root)
    read = {index: round(parts[name] * results[name].size) for name, index in parameters.items() if parts[name] < 1}
    return _Slices(read, written)


def _parts_read(steps: list[tuple[str, str, list[str]]], results: dict[str, _Array], root: str) -> dict[str, float]:
    """Returns which part of every array a fusion needs for its result.

    A slice needs a part of its operand, and a fusion computes no more than that of what the slice is taken from.
    """
    parts = dict.fromkeys(results, 0.0) | {root: 1.0}
    for name, kind, operands in reversed(steps):
        count = prod(results[name].shape)
        for operand in operands:
            size = prod(results[operand].shape)
            if kind in ("slice", "dynamic-slice") and operand == operands[0]:
                part = parts[name] * count / max(size, 1)
            elif size == count or kind in ("concatenate", "reduce", "tuple"):  # elementwise, or along other axes
                part = parts[name]
            else:
                part = float(parts[name] > 0)
            parts[operand] = min(1.0, parts[operand] + part)
    return parts


def _products(lines: list[str], called: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Counts the operations of each line's products by precision, including those of computations that it calls."""
    arrays: dict[str, _Array] = {}
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        arrays[name] = next(iter(_arrays(result)), _NOTHING)
        counts[name] = sum((called[callee] for callee in _CALLS.findall(line) if callee in called), Counter())
        if (kind == "dot" or _is_product_call(line)) and (axes := _CONTRACTED.search(line)):
            left = arrays[_names(operands)[0]]
            contracted = prod(left.shape[int(axis)] for axis in axes[1].replace('"', "").split(",") if axis)
            counts[name][_precision(line, left.dtype)] += 2 * prod(arrays[name].shape) * contracted
        elif _MOSAIC_CALL in line:
            shape = arrays[name].shape
            counts[name]["bfloat16"] += 2 * _kernel_products(line) * prod(shape) * shape[-1]
    return counts


def _kernel_products(line: str) -> int:
    """Returns how many products of rows with square weights a kernel computes; none of a kernel that is not known."""
    words = re.findall(r"\w+", path[1] if (path := _PATH.search(line)) else "")
    return sum(KERNEL_PRODUCTS.get(word, 0) for word in words)


def _precision(line: str, dtype: str) -> str:
    """Returns how an NVIDIA GPU multiplies: float32 factors lose digits unless the highest precision is asked for."""
    if dtype != "f32":
        return PRECISIONS.get(dtype, dtype)
    asked = re.findall(r"[a-z]+", found[1].lower()) if (found := _ASKED.search(line)) else []
    return "float32" if asked and set(asked) == {"highest"} else "tf32"


def _launched(lines: list[str], slices: dict[str, _Slices], products) -> list[Operation]:
    arrays: dict[str, list[_Array]] = {}
    users: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    found = []
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, operands = match.groups()
        arrays[name] = _arrays(result)[: 1 if _is_product_call(line) else None]
        if _ALLOCATION in line:  # what is written there is a result of the call that it is given to
            arrays[name] = []
        paths[name] = path[1] if (path := _PATH.search(line)) else ""
        for operand in _names(operands):
            users.setdefault(operand, []).append(name)
        still = kind in STILL or kind.endswith("-done") or any(call in line for call in STILL_CALLS)
        moved = 0 if still else _moved(line, kind, arrays[name], [arrays[n] for n in _names(operands)], slices)
        found.append(Operation(name, kind, OTHER, False, moved, products[name]))
    named = {operation.name: _path(operation.name, paths, users) for operation in found}
    return [o._replace(part=part_of(named[o.name]), backward="transpose(" in named[o.name]) for o in found]


def _is_product_call(line: str) -> bool:
    return any(call in line for call in _PRODUCT_CALLS)


def _path(name: str, paths: dict[str, str], users: dict[str, list[str]]) -> str:
    """Returns the `op_name` of an operation, or of the nearest user of its result; copies by the compiler have none."""
    nearest, seen = [name], {name}
    while nearest:
        if path := next((paths[near] for near in nearest if paths[near]), ""):
            return path
        nearest = [user for near in nearest for user in users.get(near, []) if user not in seen]
        seen.update(nearest)
    return ""


def _moved(line: str, kind: str, result: list[_Array], operands: list[list[_Array]], slices) -> int:
    if kind in ("copy-start", "slice-start"):  # (source, destination, semaphore) or the other way round
        ends = result[:2]
        return min(array.size for array in ends) * sum(array.in_main for array in ends)
    called = _CALLS.search(line)
    partly = slices[called[1]] if kind == "fusion" and called else _Slices({}, None)
    read = sum(
        min(array.size, partly.read.get(i, array.size))
        for i, operand in enumerate(operands)
        for array in operand
        if array.in_main
    )
    return read + sum(partly.written or array.size for array in result if array.in_main)


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _arrays(shape: str) -> list[_Array]:
    """Returns the arrays in an HLO type."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        axes = tuple(int(d) for d in dims.split(",") if d)
        found.append(_Array(BYTES.get(dtype, 0) * prod(axes), "S(" not in (layout or ""), axes, dtype))
    return found

"""Reads what XLA's GPU compiler writes into a folder (`xla_dump_to`): CUDA graphs, and registers of kernels."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

LARGEST = 20  # modules of PTX whose kernels are assembled again to see their registers
_THUNK = re.compile(r"^( *)\d+: (k\w+)", re.MULTILINE)
_ORDERS = ("*thunk_sequence_after_thunk_passes.txt", "*thunk_sequence.txt")  # the second where no pass made graphs
_TARGET = re.compile(r"^\.target (\w+)", re.MULTILINE)
_KERNEL = re.compile(
    r"Function properties for (\S+)\s+.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


class Graphs(NamedTuple):
    """CUDA graphs of a program."""

    graphs: int
    inside: int  # launches in graphs
    outside: int  # launches one by one


class Kernel(NamedTuple):
    """What one kernel takes of a multiprocessor."""

    name: str
    registers: int  # per thread
    spilled: int  # bytes per thread that are written to and read from memory for want of registers


def cuda_graphs(folder: Path) -> Graphs:
    """The CUDA graphs of the program that was dumped into a folder.

    Raises:
      FileNotFoundError: the compiler did not write the order of launches.
    """
    orders = [path for pattern in _ORDERS for path in folder.glob(pattern)]
    if not orders:
        raise FileNotFoundError(f"no {' or '.join(_ORDERS)} in {folder}")
    return count_graphs(orders[0].read_text())


def count_graphs(order: str) -> Graphs:
    """Graphs in a sequence of thunks, one a line, where those inside another one are indented below it."""
    thunks = [(len(indent), kind) for indent, kind in _THUNK.findall(order)]
    graphs = inside = outside = 0
    depth = None  # of the graph that the thunk is in
    for (indent, kind), following in zip(thunks, [*thunks[1:], (0, "")], strict=True):
        if depth is not None and indent <= depth:
            depth = None
        if kind == "kCommandBuffer" and depth is None:
            graphs, depth = graphs + 1, indent
        elif following[0] <= indent:  # a launch and no list of launches
            inside, outside = (inside + 1, outside) if depth is not None else (inside, outside + 1)
    return Graphs(graphs, inside, outside)


def find_ptxas() -> str | None:
    """The assembler of the packages nvidia-cuda-nvcc, or else of an installed toolkit; None without either."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    packaged = [path for root in roots for path in (root / "cuda_nvcc/bin/ptxas", root / "cu13/bin/ptxas")]
    return next((str(path) for path in packaged if path.exists()), None) or shutil.which("ptxas")


def largest_kernels(folder: Path, ptxas: str) -> list[Kernel]:
    """Kernels of the `LARGEST` modules that were dumped into a folder, most registers first.

    Raises:
      subprocess.CalledProcessError: the assembler refuses a module.
    """
    modules = sorted(folder.glob("*.ptx"), key=lambda path: path.stat().st_size, reverse=True)[:LARGEST]
    found = [kernel for path in modules if path.stat().st_size for kernel in _assembled(path, ptxas)]
    return sorted(found, key=lambda kernel: (kernel.registers, kernel.spilled), reverse=True)


def _assembled(path: Path, ptxas: str) -> list[Kernel]:
    target = _TARGET.search(path.read_text())
    assert target is not None, f"{path} names no target"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as out:
        command = [ptxas, "-v", f"-arch={target[1]}", str(path), "-o", out.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return kernels_of(done.stderr)


def kernels_of(report: str) -> list[Kernel]:
    """The kernels in what `ptxas -v` reports."""
    return [
        Kernel(name, int(registers), int(stores) + int(loads))
        for name, stores, loads, registers in _KERNEL.findall(report)
    ]

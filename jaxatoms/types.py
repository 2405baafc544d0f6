"""The types that packages exchange: structures, their graphs and padded batches, with shapes and units.

This module needs NumPy only, so data workers import it without importing JAX.
Internal units are Angstrom, eV and eV/Angstrom; `cell` rows are lattice vectors (ASE).
"""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class InputError(ValueError):
    """A user's file, record or setting is wrong. The message is one line: where, what, remedy."""


class UnusableStructure(InputError):
    """A structure that no model takes; whoever knows its file says it again with file and record.

    Attributes:
      index: its place among the structures at hand.
      problem: what is wrong, and the remedy.
    """

    def __init__(self, index: int, problem: str):
        super().__init__(f"structure {index} of the batch: {problem}")
        self.index, self.problem = int(index), problem

    def __reduce__(self):  # it may come from a worker process
        return type(self), (self.index, self.problem)


@contextlib.contextmanager
def naming(place: Callable[[int], str]) -> Iterator[None]:
    """Says of an unusable structure which one it is: `place(i)` names file and record of the i-th at hand."""
    try:
        yield
    except UnusableStructure as error:
        raise InputError(f"{place(error.index)}: {error.problem}") from error


# What a disk says that is full, limited by a quota or not to be written: the user's to mend, not the program's.
DISK_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class System(NamedTuple):
    """One labelled structure as a reader yields it (float64 energy, nothing subtracted).

    Missing labels are NaN (energy) or None (forces), never 0.
    """

    atomic_numbers: np.ndarray  # [n_node] uint8, 1..120
    positions: np.ndarray  # [n_node, 3] float, A
    cell: np.ndarray | None = None  # [3, 3] A, rows are lattice vectors; None for a molecule
    pbc: tuple[bool, bool, bool] = (False, False, False)
    energy: float = float("nan")  # eV, total energy
    forces: np.ndarray | None = None  # [n_node, 3] eV/A, forces = -dE/dpositions
    tags: np.ndarray | None = None  # [n_node] 0 sub-surface, 1 surface, 2 adsorbate; None means all 2
    fixed: np.ndarray | None = None  # [n_node] bool, True = held fixed in the calculation; None: all False
    group: str = ""  # what must not be split: formula, reaction or system id
    key: str = ""  # where the record stands in its file, for messages: "C2H6[12]"
    # Further values per structure, each a column of the store: target_gap, stress, sid. NaN or -1 where missing.
    extra: Mapping[str, float | int | np.ndarray] | None = None
    # Further numbers per atom, [n_node] each, such as atom_charges; a column of the store with a row per atom.
    atom_extra: Mapping[str, np.ndarray] | None = None


class SystemBatch(NamedTuple):
    """Structures concatenated along their atoms, as the store hands them out.

    n_node total atoms, n_graph structures; atoms of one structure are contiguous.
    """

    n_node: np.ndarray  # [n_graph] int32
    atomic_numbers: np.ndarray  # [sum n_node] uint8
    positions: np.ndarray  # [sum n_node, 3] float32, A
    forces: np.ndarray  # [sum n_node, 3] float32, eV/A; NaN where missing
    tags: np.ndarray  # [sum n_node] uint8
    fixed: np.ndarray  # [sum n_node] bool
    energy: np.ndarray  # [n_graph] float64, eV; NaN where missing
    cell: np.ndarray  # [n_graph, 3, 3] float32, A; zeros for molecules
    pbc: np.ndarray  # [n_graph, 3] bool


class Edges(NamedTuple):
    """Directed edges, `edge_vectors = positions[receivers] - positions[senders] + shifts @ cell`.

    Sorted by receiver. `shifts` counts cell translations of the receiver (ASE's `S`); the image offset of
    the *sender* that the GemNet-OC code calls `o` is `-shifts` (docs/reference/gemnet_oc.md, Edges).
    """

    senders: np.ndarray  # [n_edge] int32, index into the concatenated atoms
    receivers: np.ndarray  # [n_edge] int32, non-decreasing
    shifts: np.ndarray  # [n_edge, 3] int32


class Graphs(NamedTuple):
    """The four GemNet-OC graphs of a batch of structures (docs/reference/gemnet_oc.md, Four graphs)."""

    main: Edges  # symmetrised: contains the counter-edge of each of its edges
    swap: np.ndarray  # [n_edge of main] int32, index of the counter-edge (an involution)
    a2ee2a: Edges  # atom-to-edge and edge-to-atom interactions
    qint: Edges  # middle edges b -> a of the quadruplets, after the tag filter
    a2a: Edges  # all pairs in the cutoff; sorted by (receiver, sender, shift)

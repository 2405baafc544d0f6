"""Structures and their graphs -> arrays of fixed shape.

Enter: concatenated structures, their four graphs, normalised targets, a `BatchBudget`. Leaves: a `GraphBatch`
of NumPy arrays whose shapes depend on the budget alone. Nothing is truncated: what does not fit raises.

Layout: edges are flat lists sorted by receiver (no padding per atom), and small tables `[n_node, k]` name the
edges that arrive at each atom, so that the model sums over neighbours by gathering (no colliding scatter).
Table entries equal to the edge budget mean "no edge". Padding follows jraph: the last graph and the last node
are always padding; padding edges connect the last node to itself. Padding nodes count to the last graph (jraph counts
them to the first one after the real graphs; `interop/jraph.py` translates).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxatoms.graphs.neighbors import MAX_TRANSLATION, home_cells
from jaxatoms.types import Edges, Graphs, InputError, SystemBatch, UnusableStructure

Array = Any  # np.ndarray on the host, jax.Array on the device
MAX_PER_GRAPH = 4096  # atoms of one structure; the model codes an atom image in one int32 (gemnet_oc/indices.py)


class BudgetOverflow(InputError):
    """A batch needs more slots than its budget has; `name`, `need` and `have` say which."""

    def __init__(self, name: str, need: int, have: int):
        remedy = "collate it with a larger BatchBudget"
        super().__init__(f"a batch needs {name}={need}, its shape holds {name}={have}; {remedy}")
        self.name, self.need, self.have = name, need, have


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchBudget:
    """Fixed sizes of a batch. Edges are directed; `k_*` bound the edges of one atom, `n_per_graph` its atoms."""

    n_graph: int  # including the padding graph
    n_node: int  # including at least one padding node
    n_main: int
    n_a2ee2a: int
    n_qint: int
    n_a2a: int
    n_per_graph: int  # largest structure
    k_main: int  # largest in-degree of the main graph, after symmetrisation
    k_a2ee2a: int
    k_a2ee2a_out: int  # largest out-degree
    k_qint: int
    k_qint_out: int
    k_main_out: int = 0  # largest out-degree of the main graph; 0: no table (a symmetrised graph needs none)

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            floor = {"n_graph": 2, "n_node": 2, "k_main_out": 0}.get(name, 1)
            if value < floor:
                raise ValueError(f"{name} must be >= {floor}, got {value}")


class PaddedEdges(NamedTuple):
    """One directed graph: flat edges sorted by receiver, and the edges of each atom as tables."""

    senders: Array  # [n_edge] int32
    receivers: Array  # [n_edge] int32
    shifts: Array  # [n_edge, 3] int32, cell translations of the receiver
    in_table: Array = None  # [n_node, k] int32 edges arriving at an atom; n_edge = none
    out_table: Array = None  # [n_node, k_out] int32 edges leaving an atom; n_edge = none


class Labels(NamedTuple):
    """Normalised labels of some structures, as a task gives them; NaN where missing."""

    energy: np.ndarray  # [n_graph] float32 energies or scalars
    forces: np.ndarray  # [n_node, 3] float32
    stress: np.ndarray | None = None  # [n_graph, 3, 3] float32; None: not learnt
    properties: np.ndarray | None = None  # [n_graph, P] float32, see `graphs.properties`; None: not learnt
    atom_properties: np.ndarray | None = None  # [n_node, Q] float32


class Targets(NamedTuple):
    """Normalised training targets of concatenated structures; NaN marks a missing label."""

    energy: np.ndarray  # [n_graph] float32
    forces: np.ndarray  # [n_node, 3] float32
    task: np.ndarray  # [n_graph] int32, which head the structure trains
    stress: np.ndarray | None = None  # [n_graph, 3, 3] float32; None: not learnt
    properties: np.ndarray | None = None  # [n_graph, P] float32; None: not learnt
    atom_properties: np.ndarray | None = None  # [n_node, Q] float32


class GraphBatch(NamedTuple):
    """A padded batch. Shapes follow from the `BatchBudget` alone; `stack` puts axes before them."""

    atomic_numbers: Array  # [n_node] int32, 0 = padding
    positions: Array  # [n_node, 3] float32, A
    node_graph: Array  # [n_node] int32
    node_slot: Array  # [n_node] int32, graph * n_per_graph + rank; n_graph * n_per_graph for padding
    node_table: Array  # [n_graph, n_per_graph] int32 nodes of a graph; n_node = none
    free: Array  # [n_node] bool, real atoms that were not held fixed
    cell: Array  # [n_graph, 3, 3] float32, A
    main: PaddedEdges
    swap: Array  # [n_main] int32, index of the counter-edge; n_main for padding
    a2ee2a: PaddedEdges
    qint: PaddedEdges
    a2a: PaddedEdges
    energy: Array  # [n_graph] float32 normalised, 0 where `energy_mask` is False
    energy_mask: Array  # [n_graph] bool
    forces: Array  # [n_node, 3] float32 normalised, 0 where `force_mask` is False
    force_mask: Array  # [n_node] bool
    task: Array  # [n_graph] int32
    stress: Array = None  # [n_graph, 3, 3] float32 normalised, 0 where `stress_mask` is False; None: not learnt
    stress_mask: Array = None  # [n_graph] bool
    properties: Array = None  # [n_graph, P] float32 normalised, 0 where `properties_mask` is False; None: not learnt
    properties_mask: Array = None  # [n_graph, P] bool
    atom_properties: Array = None  # [n_node, Q] float32 normalised, 0 where `atom_properties_mask` is False
    atom_properties_mask: Array = None  # [n_node, Q] bool

    @property
    def node_mask(self):
        """[n_node] bool, True = a real atom."""
        return self.atomic_numbers > 0

    @property
    def graph_mask(self):
        """[n_graph] bool, True = a real structure."""
        return self.node_table[..., 0] < self.atomic_numbers.shape[-1]

    @property
    def volume(self):
        """[n_graph] A^3 of the cells; 0 for structures without one."""
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (
            [self.cell[..., row, column] for column in range(3)] for row in range(3)
        )
        return abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))


def collate(
    systems: SystemBatch, graphs: Graphs, targets: Targets, budget: BatchBudget, dtype=np.float32
) -> GraphBatch:
    """Pad concatenated structures and graphs to `budget`; atoms outside their periodic cell are put back into it.

    Args:
      dtype: of positions and cells.

    Raises:
      BudgetOverflow: if anything does not fit; nothing is truncated.
      UnusableStructure: more than 4096 atoms, or neighbours more than 15 cells away.
    """
    systems, graphs = _wrapped(systems, graphs)
    check_atoms(systems.n_node)
    n_node, n_graph = int(systems.n_node.sum()), len(systems.n_node)
    _check("n_graph", n_graph + 1, budget.n_graph)
    _check("n_node", n_node + 1, budget.n_node)
    _check("n_per_graph", int(systems.n_node.max(initial=0)), budget.n_per_graph)
    node_graph = np.repeat(np.arange(n_graph, dtype=np.int32), systems.n_node)
    starts = np.cumsum(systems.n_node) - systems.n_node
    rank = np.arange(n_node) - np.repeat(starts, systems.n_node)
    _check_translations(graphs, node_graph)
    node_table = np.full((budget.n_graph, budget.n_per_graph), budget.n_node, np.int32)
    node_table[node_graph, rank] = np.arange(n_node)
    has_energy, has_forces = np.isfinite(targets.energy), np.isfinite(targets.forces).all(1)
    n = budget.n_node
    return GraphBatch(
        atomic_numbers=_pad(systems.atomic_numbers.astype(np.int32), n, 0),
        positions=_pad(systems.positions.astype(dtype), n, 0),
        node_graph=_pad(node_graph, n, budget.n_graph - 1),
        node_slot=_pad((node_graph * budget.n_per_graph + rank).astype(np.int32), n, node_table.size),
        node_table=node_table,
        free=_pad(~systems.fixed, n, False),
        cell=_pad(systems.cell.astype(dtype), budget.n_graph, 0),
        main=_pad_edges("main", graphs.main, budget, in_table=True, out_table=budget.k_main_out > 0),
        swap=_pad(graphs.swap.astype(np.int32), budget.n_main, budget.n_main),
        a2ee2a=_pad_edges("a2ee2a", graphs.a2ee2a, budget, in_table=True, out_table=True),
        qint=_pad_edges("qint", graphs.qint, budget, in_table=True, out_table=True),
        a2a=_pad_edges("a2a", graphs.a2a, budget),
        energy=_pad(np.where(has_energy, targets.energy, 0).astype(np.float32), budget.n_graph, 0),
        energy_mask=_pad(has_energy, budget.n_graph, False),
        forces=_pad(np.where(has_forces[:, None], targets.forces, 0).astype(np.float32), n, 0),
        force_mask=_pad(has_forces, n, False),
        task=_pad(targets.task.astype(np.int32), budget.n_graph, 0),
        **_stress(targets.stress, budget.n_graph),
        **_properties("properties", targets.properties, budget.n_graph),
        **_properties("atom_properties", targets.atom_properties, n),
    )


def _stress(stress: np.ndarray | None, n_graph: int) -> dict[str, np.ndarray]:
    """The fields of a batch that training on stress has and others do without."""
    if stress is None:
        return {}
    known = np.isfinite(stress).all(axis=(1, 2))
    filled = np.where(known[:, None, None], stress, 0).astype(np.float32)
    return {"stress": _pad(filled, n_graph, 0), "stress_mask": _pad(known, n_graph, False)}


def _properties(name: str, values: np.ndarray | None, n: int) -> dict[str, np.ndarray]:
    """The same of several properties, whose columns are masked one by one."""
    if values is None:
        return {}
    known = np.isfinite(values)
    filled = np.where(known, values, 0).astype(np.float32)
    return {name: _pad(filled, n, 0), f"{name}_mask": _pad(known, n, False)}


def _wrapped(systems: SystemBatch, graphs: Graphs) -> tuple[SystemBatch, Graphs]:
    """The same structures with their atoms inside the cell: the model can count few cells only."""
    home = home_cells(systems.positions, systems.n_node, systems.cell, systems.pbc)
    if not home.any():
        return systems, graphs
    cell = np.repeat(np.asarray(systems.cell, np.float64), systems.n_node, axis=0)
    inside = systems.positions - np.einsum("ni,nij->nj", home, cell)

    def moved(edges: Edges) -> Edges:
        return edges._replace(shifts=edges.shifts + home[edges.receivers] - home[edges.senders])

    graphs = Graphs(*(moved(field) if isinstance(field, Edges) else field for field in graphs))
    return systems._replace(positions=inside), graphs


def stack(batches: Sequence[GraphBatch]) -> GraphBatch:
    """Batches of one shape -> one with a new leading axis."""

    def join(*values):
        if isinstance(values[0], tuple):
            return type(values[0])(*map(join, *values))
        return None if values[0] is None else np.stack(values)

    return join(*batches)


def empty_structures(
    stress: bool = False, widths: tuple[int, int] | None = None
) -> tuple[SystemBatch, Graphs, Targets]:
    """No structures at all, as arrays that `collate` turns into a batch of padding.

    Args:
      stress: with room for it.
      widths: with room for properties of so many columns, see `graphs.properties.widths`.
    """
    zero = np.zeros
    systems = SystemBatch(
        n_node=zero(0, np.int32),
        atomic_numbers=zero(0, np.uint8),
        positions=zero((0, 3), np.float32),
        forces=zero((0, 3), np.float32),
        tags=zero(0, np.uint8),
        fixed=zero(0, bool),
        energy=zero(0),
        cell=zero((0, 3, 3), np.float32),
        pbc=zero((0, 3), bool),
    )
    none = Edges(zero(0, np.int32), zero(0, np.int32), zero((0, 3), np.int32))
    values = zero((0, 3, 3), np.float32) if stress else None
    properties = [None, None] if widths is None else [zero((0, n), np.float32) for n in widths]
    targets = Targets(zero(0, np.float32), zero((0, 3), np.float32), zero(0, np.int32), values, *properties)
    return systems, Graphs(none, zero(0, np.int32), none, none, none), targets


def budget_of(batch: GraphBatch) -> BatchBudget:
    """The budget whose shapes a batch has."""
    width = lambda table: 0 if table is None else table.shape[1]  # noqa: E731
    return BatchBudget(
        n_graph=batch.node_table.shape[0],
        n_node=batch.atomic_numbers.shape[0],
        n_main=batch.swap.shape[0],
        n_a2ee2a=batch.a2ee2a.senders.shape[0],
        n_qint=batch.qint.senders.shape[0],
        n_a2a=batch.a2a.senders.shape[0],
        n_per_graph=batch.node_table.shape[1],
        k_main=width(batch.main.in_table),
        k_a2ee2a=width(batch.a2ee2a.in_table),
        k_a2ee2a_out=width(batch.a2ee2a.out_table),
        k_qint=width(batch.qint.in_table),
        k_qint_out=width(batch.qint.out_table),
        k_main_out=width(batch.main.out_table),
    )


def check_atoms(n_node: np.ndarray):
    """Refuse structures larger than the model can count.

    Raises:
      UnusableStructure: the first of them.
    """
    over = np.flatnonzero(n_node > MAX_PER_GRAPH)
    if over.size:
        problem = f"has {n_node[over[0]]} atoms, a batch holds {MAX_PER_GRAPH}; cut it or leave it out"
        raise UnusableStructure(over[0], problem)


def _check_translations(graphs: Graphs, node_graph: np.ndarray):
    for edges in graphs:
        if isinstance(edges, Edges) and np.abs(edges.shifts).max(initial=0) > MAX_TRANSLATION:
            edge = np.abs(edges.shifts).max(axis=1).argmax()
            problem = f"has neighbours more than {MAX_TRANSLATION} cells away; give it a larger or less oblique cell"
            raise UnusableStructure(node_graph[edges.receivers[edge]], problem)


def _check(name: str, need: int, have: int):
    if need > have:
        raise BudgetOverflow(name, need, have)


def _pad(array: np.ndarray, size: int, value) -> np.ndarray:
    out = np.full((size, *array.shape[1:]), value, array.dtype)
    out[: len(array)] = array
    return out


def _pad_edges(name, edges: Edges, budget: BatchBudget, in_table=False, out_table=False) -> PaddedEdges:
    size, last = getattr(budget, f"n_{name}"), budget.n_node - 1
    _check(f"n_{name}", len(edges.senders), size)
    tables = {}
    if in_table:
        tables["in_table"] = _edge_table(f"k_{name}", edges.receivers, size, budget)
    if out_table:
        tables["out_table"] = _edge_table(f"k_{name}_out", edges.senders, size, budget)
    return PaddedEdges(
        senders=_pad(edges.senders.astype(np.int32), size, last),
        receivers=_pad(edges.receivers.astype(np.int32), size, last),
        shifts=_pad(edges.shifts.astype(np.int32), size, 0),
        **tables,
    )


def _edge_table(name: str, nodes: np.ndarray, n_edge: int, budget: BatchBudget) -> np.ndarray:
    """[n_node, k] the edges whose end `nodes` is this atom, in increasing order; `n_edge` = none."""
    k = getattr(budget, name)
    order = np.argsort(nodes, kind="stable")
    counts = np.bincount(nodes, minlength=budget.n_node)
    _check(name, int(counts.max(initial=0)), k)
    first = np.cumsum(counts) - counts
    table = np.full((budget.n_node, k), n_edge, np.int32)
    table[nodes[order], np.arange(len(nodes)) - first[nodes[order]]] = order
    return table

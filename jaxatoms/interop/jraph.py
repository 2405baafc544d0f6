"""jraph's graphs -> structures that this library takes, predictions -> jraph's graphs, and our batches as such graphs.

For users of jraph's tools; nothing inside the library needs this. Units are eV, A and eV/A, rows of a cell are lattice
vectors. Padding is that of `jraph.pad_with_graphs`: the first graph after the real ones holds all nodes and edges of
padding, whose features are 0, and further graphs are empty. No real atom has the atomic number 0, so a padded graph
can be told from one that is not.
"""

from collections.abc import Mapping, Sequence

import ase
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.types import InputError

_REQUIRED = ("atomic_numbers", "positions")
_NODES = {  # shape of a row, type
    "atomic_numbers": ((), "integers"),
    "positions": ((3,), "numbers"),
    "forces": ((3,), "numbers"),
    "tags": ((), "integers"),
    "fixed": ((), "bool"),
}
_GLOBALS = {"cell": ((3, 3), "numbers"), "pbc": ((3,), "bool"), "energy": ((), "numbers")}
_KINDS = {"integers": "iu", "numbers": "iuf", "bool": "b"}  # of NumPy's types


def to_graphs_tuple(batch: GraphBatch) -> jraph.GraphsTuple:
    """The main graph of a batch as a `jraph.GraphsTuple` of the same sizes, padded as `jraph.pad_with_graphs` does.

    Nodes carry `atomic_numbers` [n_node], `positions` [n_node, 3] A (inside the cell), `fixed` [n_node] and
    `normalised_forces` [n_node, 3]; edges `shifts` [n_edge, 3]; globals `cell` [n_graph, 3, 3] A and
    `normalised_energy` [n_graph]. The labels are a batch's training targets, which have no unit, hence their names;
    NaN where missing. A batch does not know which axes are periodic and what the tags were.
    """
    n_graph, n_nodes = batch.node_table.shape[0], batch.atomic_numbers.shape[0]
    padding = jnp.sum(batch.graph_mask)  # the first graph after the real ones
    n_node = jnp.sum(batch.node_table < n_nodes, axis=1)
    in_degree = jnp.sum(batch.main.in_table < len(batch.swap), axis=1)
    n_edge = jnp.zeros(n_graph, jnp.int32).at[batch.node_graph].add(in_degree)
    unlabelled = batch.node_mask & ~batch.force_mask, batch.graph_mask & ~batch.energy_mask
    return jraph.GraphsTuple(
        nodes={
            "atomic_numbers": batch.atomic_numbers,
            "positions": batch.positions,
            "fixed": batch.node_mask & ~batch.free,
            "normalised_forces": jnp.where(unlabelled[0][:, None], jnp.nan, batch.forces),
        },
        edges={"shifts": batch.main.shifts},
        senders=batch.main.senders,
        receivers=batch.main.receivers,
        globals={"cell": batch.cell, "normalised_energy": jnp.where(unlabelled[1], jnp.nan, batch.energy)},
        n_node=n_node.at[padding].add(n_nodes - jnp.sum(n_node)),
        n_edge=n_edge.at[padding].add(len(batch.swap) - jnp.sum(n_edge)),
    )


def from_graphs_tuple(graph: jraph.GraphsTuple) -> list[ase.Atoms]:
    """The structures of a graph from `jraph.batch`, padded by `jraph.pad_with_graphs` or not; padding is left out.

    Senders, receivers and edge features are not read: the models build neighbour graphs of their own, by rules that
    belong to their weights (cutoff, nearest-neighbour limits, four graphs of GemNet-OC).

    Args:
      graph: `nodes` is a dictionary with `atomic_numbers` [n_node] integers and `positions` [n_node, 3] A, and may
        hold `forces` [n_node, 3] eV/A, `tags` [n_node] integers (0 sub-surface, 1 surface, 2 adsorbate) and `fixed`
        [n_node] bool. `globals` may be a dictionary with `cell` [n_graph, 3, 3] A, `pbc` [n_graph, 3] bool and
        `energy` [n_graph] eV; without cells the structures are molecules. Other keys are not read.

    Returns:
      One per real graph, nodes in their order, labels as results of a calculator. A label that is NaN is missing there;
      forces that are NaN for some atoms of a structure only stay so.

    Raises:
      InputError: a key is missing, an array has another shape or type, a graph has no atoms, an atomic number below 1
        stands before the padding, or a cell comes without pbc.
    """
    graph = _without_padding(graph)
    nodes, of_graph, n_graph = graph.nodes, graph.globals, len(graph.n_node)
    cell, pbc = of_graph.get("cell", np.zeros((n_graph, 3, 3))), of_graph.get("pbc", np.zeros((n_graph, 3), bool))
    energy = of_graph.get("energy", np.full(n_graph, np.nan))
    structures, ends = [], np.cumsum(graph.n_node)
    for i, own in enumerate(map(slice, ends - graph.n_node, ends)):
        row = {name: values[own] for name, values in nodes.items()}
        atoms = ase.Atoms(row["atomic_numbers"], row["positions"], cell=cell[i], pbc=pbc[i], tags=row.get("tags"))
        if "fixed" in row and row["fixed"].any():
            atoms.set_constraint(FixAtoms(mask=row["fixed"]))
        _label(atoms, energy[i], row.get("forces"))
        structures.append(atoms)
    return structures


def with_predictions(
    graph: jraph.GraphsTuple, energies: Sequence[float | None], forces: Sequence[np.ndarray | None]
) -> jraph.GraphsTuple:
    """The graph with what a model predicts for the structures of `from_graphs_tuple(graph)`, in their order.

    Args:
      energies: eV, one per real graph; None where there is no prediction.
      forces: [n_node of the graph, 3] eV/A, one per real graph; None likewise.

    Returns:
      A graph with `globals["energy"]` [n_graph] and `nodes["forces"]` [n_node, 3] in place of labels of these names,
      which `graph` keeps; 0 for padding, NaN without a prediction. NumPy float64, as float32 rounds the energies of
      large structures by some meV.

    Raises:
      InputError: another number of structures or atoms, or a graph that `from_graphs_tuple` refuses.
    """
    counts = np.asarray(_without_padding(graph).n_node)
    if not len(energies) == len(forces) == len(counts):
        raise InputError(
            f"{len(energies)} energies and {len(forces)} forces for a GraphsTuple of {len(counts)} graphs without "
            "padding; give one of each, or None, for every graph"
        )
    energy, force = np.zeros(len(graph.n_node)), np.zeros((int(np.sum(graph.n_node)), 3))
    energy[: len(counts)] = [np.nan if value is None else value for value in energies]
    ends = np.cumsum(counts)
    for i, (own, values) in enumerate(zip(map(slice, ends - counts, ends), forces, strict=True)):
        if values is not None and np.shape(values) != (counts[i], 3):
            shape, expected = np.shape(values), (int(counts[i]), 3)
            raise InputError(f"forces[{i}] has shape {shape}, graph {i} needs {expected}; keep the order of the graphs")
        force[own] = np.nan if values is None else values
    return graph._replace(nodes={**graph.nodes, "forces": force}, globals={**(graph.globals or {}), "energy": energy})


def _without_padding(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The real graphs with the known keys of nodes and globals, as NumPy's arrays, and without edges.

    Raises:
      InputError: as `from_graphs_tuple`.
    """
    n_node = np.asarray(jax.device_get(graph.n_node))
    nodes = _read("nodes", graph.nodes, int(n_node.sum()), _NODES)
    missing = [name for name in _REQUIRED if name not in nodes]
    if missing:
        has = ", ".join(map(repr, graph.nodes or ())) or "nothing"
        raise InputError(f"nodes of the GraphsTuple lack the key {missing[0]!r}, they have {has}; name the array so")
    of_graph = _read("globals", graph.globals, len(n_node), _GLOBALS)
    _check_cells(of_graph)
    none = {"edges": None, "senders": None, "receivers": None, "n_edge": np.zeros_like(n_node)}
    real = jraph.GraphsTuple(nodes=nodes, globals=of_graph, n_node=n_node, **none)
    numbers = nodes["atomic_numbers"]
    real = jraph.unpad_with_graphs(real) if len(numbers) and numbers[-1] == 0 else real
    if not np.all(real.n_node):
        raise InputError(f"graph {int(np.argmin(real.n_node))} of the GraphsTuple has no atoms; leave it out")
    bad = np.flatnonzero(real.nodes["atomic_numbers"] < 1)
    if bad.size:
        where = f"nodes['atomic_numbers'][{bad[0]}] of the GraphsTuple"
        raise InputError(f"{where} is {numbers[bad[0]]}; give the number of an element, 1 or more")
    return real


def _read(where: str, fields, n_row: int, known: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The known arrays that `nodes` or `globals` hold."""
    if fields is None:
        return {}
    if not isinstance(fields, Mapping):
        kind = type(fields).__name__
        raise InputError(f"{where} of the GraphsTuple are of type {kind}; make them a dictionary of arrays by name")
    arrays = {}
    for name, (row, kind) in known.items():
        if name not in fields:
            continue
        values, shape = np.asarray(jax.device_get(fields[name])), (n_row, *row)
        if values.shape != shape:
            remedy = f"give one row for each {'node' if where == 'nodes' else 'graph'}"
            raise InputError(f"{where}[{name!r}] of the GraphsTuple has shape {values.shape}, not {shape}; {remedy}")
        if values.dtype.kind not in _KINDS[kind]:
            raise InputError(f"{where}[{name!r}] of the GraphsTuple is of type {values.dtype}; give {kind}")
        arrays[name] = values
    return arrays


def _check_cells(of_graph: dict[str, np.ndarray]):
    """Refuse cells without pbc and pbc without cells; a guess could turn crystals into molecules.

    Raises:
      InputError: naming what is missing.
    """
    cell, pbc = of_graph.get("cell"), of_graph.get("pbc")
    if cell is not None and cell.any() and pbc is None:
        raise InputError("globals of the GraphsTuple have 'cell' without 'pbc'; add 'pbc', [n_graph, 3] bool")
    if pbc is not None and pbc.any() and cell is None:
        raise InputError("globals of the GraphsTuple have 'pbc' without 'cell'; add 'cell', [n_graph, 3, 3] A")


def _label(atoms: ase.Atoms, energy: float, forces: np.ndarray | None):
    """Attach the labels that are there; NaN is missing."""
    results: dict = {}
    if not np.isnan(energy):
        results["energy"] = float(energy)
    if forces is not None and not np.isnan(forces).all():
        results["forces"] = forces
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)

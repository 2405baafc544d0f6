"""jraph's graphs at our border: its own padding functions are the oracle of ours, structures and labels survive."""

import ase.build
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from fixtures import equiformer
from fixtures.structures import BUDGET, GALLERY, ROOMY, concatenate, graphs_of, pad

from jaxatoms.data.packing import whole_size
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.graphs.batch import BatchBudget, Targets, collate, empty_structures
from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.interop.jraph import from_graphs_tuple, to_graphs_tuple, with_predictions
from jaxatoms.types import InputError

NAMES = list(GALLERY)


def _batches():
    """Full, part-filled, without a slot to spare, of EquiformerV2's graph, and of padding alone."""
    some = [GALLERY[name] for name in ("seven", "crystal", "atom")]
    systems = concatenate(some)
    graphs = graphs_of(systems)
    targets = Targets(np.zeros(3), np.zeros((len(systems.positions), 3)), np.zeros(3, int))
    tight = BatchBudget(**{k: v + (k in ("n_graph", "n_node")) for k, v in whole_size(systems, graphs).items()})
    nearest = NEAREST_GRAPH.build(systems.positions, systems.n_node, systems.cell, systems.pbc, None,
                                   np.full(3, 5.0), np.full(3, 8)).main  # fmt: skip
    return {
        "full": pad(list(GALLERY.values())),
        "part-filled": pad(some, budget=ROOMY),
        "tight": collate(systems, graphs, targets, tight),
        "nearest": equiformer.padded(systems, nearest, np.float64, 0.3),
        "empty": collate(*empty_structures(), BUDGET),
    }


BATCHES = _batches()


@pytest.fixture(params=BATCHES)
def batch(request):
    return BATCHES[request.param]


# ------------------------------------------------------------------------------------------- our batches


def test_padding_is_what_jraph_takes_for_padding(batch):
    graph = to_graphs_tuple(batch)
    edges = np.asarray(batch.main.receivers) < batch.node_mask.sum()
    np.testing.assert_array_equal(jraph.get_node_padding_mask(graph), batch.node_mask)
    np.testing.assert_array_equal(jraph.get_graph_padding_mask(graph), batch.graph_mask)
    np.testing.assert_array_equal(jraph.get_edge_padding_mask(graph), edges)
    assert int(jraph.get_number_of_padding_with_graphs_graphs(graph)) == (~batch.graph_mask).sum()
    assert int(graph.n_node.sum()) == len(batch.atomic_numbers) and int(graph.n_edge.sum()) == len(batch.swap)


def test_unpadded_by_jraph_it_holds_the_real_graphs(batch):
    graph, n_graph, n_node = to_graphs_tuple(batch), int(batch.graph_mask.sum()), int(batch.node_mask.sum())
    real = jraph.unpad_with_graphs(graph)
    counts = np.bincount(batch.node_graph[:n_node], minlength=n_graph)[:n_graph]
    np.testing.assert_array_equal(real.n_node, counts)
    np.testing.assert_array_equal(real.nodes["atomic_numbers"], batch.atomic_numbers[:n_node])
    np.testing.assert_array_equal(real.globals["cell"], batch.cell[:n_graph])
    assert len(real.senders) == int(real.n_edge.sum())
    assert np.all(np.asarray(real.receivers) < n_node) and np.all(np.asarray(real.senders) < n_node)


@pytest.mark.parametrize("name", ["full", "part-filled", "tight", "nearest"])
def test_each_graph_of_it_has_its_own_edges(name):
    """jraph cuts the flat lists by `n_node` and `n_edge`; edge vectors are those of the whole batch."""
    batch = BATCHES[name]
    real = jraph.unpad_with_graphs(to_graphs_tuple(batch))
    lengths = []
    for part in jraph.unbatch(real):
        n = int(part.n_node[0])
        assert np.all(np.asarray(part.senders) < n) and np.all(np.asarray(part.receivers) < n)
        assert np.all(np.asarray(part.senders) >= 0) and np.all(np.asarray(part.receivers) >= 0)
        vectors = part.nodes["positions"][part.receivers] - part.nodes["positions"][part.senders]
        vectors = vectors + part.edges["shifts"] @ part.globals["cell"][0]
        lengths += np.linalg.norm(vectors, axis=1).tolist()
    assert lengths and min(lengths) > 0.5 and max(lengths) < 5.0


def test_missing_labels_are_nan_and_padding_is_zero():
    systems = concatenate([GALLERY["seven"], GALLERY["water"]])
    forces = np.ones((10, 3))
    forces[3, 1] = np.nan
    batch = collate(systems, graphs_of(systems), Targets(np.array([0.5, np.nan]), forces, np.zeros(2, int)), BUDGET)
    graph = to_graphs_tuple(batch)
    energy, forces = np.asarray(graph.globals["normalised_energy"]), np.asarray(graph.nodes["normalised_forces"])
    np.testing.assert_array_equal(energy[:2], [0.5, np.nan])
    assert np.isnan(forces[3]).all() and np.isfinite(np.delete(forces, 3, axis=0)).all()
    assert not energy[2:].any() and not forces[10:].any()


def test_a_batch_comes_back_as_its_structures():
    """Through jraph's graph and back; which axes are periodic is not in a batch."""
    names = ["seven", "crystal", "water"]
    systems = concatenate([GALLERY[name] for name in names])
    systems = systems._replace(fixed=np.arange(len(systems.fixed)) == 4)
    targets = Targets(np.ones(3), np.ones((len(systems.fixed), 3)), np.zeros(3, int))
    graph = to_graphs_tuple(collate(systems, graphs_of(systems), targets, ROOMY, np.float64))
    pbc = np.zeros((ROOMY.n_graph, 3), bool)
    pbc[1] = True
    out = from_graphs_tuple(graph._replace(globals={**graph.globals, "pbc": pbc}))
    assert len(out) == 3
    for atoms, name in zip(out, names, strict=True):
        np.testing.assert_array_equal(atoms.numbers, GALLERY[name].atomic_numbers)
        difference = atoms.positions - GALLERY[name].positions
        if name == "crystal":  # an atom outside its cell is inside the batch's
            difference = difference @ np.linalg.inv(GALLERY[name].cell)
            difference -= np.round(difference)
        np.testing.assert_allclose(difference, 0, atol=1e-5)
        assert atoms.pbc.all() == (name == "crystal") and atoms.calc is None, "normalised targets are no labels"
    assert [len(atoms.constraints) for atoms in out] == [1, 0, 0] and out[0].constraints[0].index.tolist() == [4]


# ------------------------------------------------------------------------------------------- users' graphs


def graph_of(atoms: ase.Atoms, array=np.asarray, **more) -> jraph.GraphsTuple:
    """One structure as a user of jraph holds it, with edges of a kind of his own."""
    n = len(atoms)
    senders, receivers = np.nonzero(~np.eye(n, dtype=bool))
    nodes = {"atomic_numbers": atoms.numbers, "positions": atoms.positions, **more}
    of_graph = {"cell": atoms.cell.array[None], "pbc": atoms.pbc[None], "energy": np.array([-1.5 * n])}
    return jraph.GraphsTuple(
        nodes={name: array(values) for name, values in nodes.items()},
        edges={"kind": array(np.ones(len(senders)))},
        senders=array(senders),
        receivers=array(receivers),
        globals={name: array(values) for name, values in of_graph.items()},
        n_node=array([n]),
        n_edge=array([len(senders)]),
    )


STRUCTURES = [ase.build.molecule("CH3OH"), ase.build.bulk("Cu", cubic=True), ase.Atoms("H"), ase.build.molecule("H2O")]
N_NODE = sum(map(len, STRUCTURES))


def labelled(array=np.asarray):
    graphs = []
    for atoms in STRUCTURES:
        forces = np.full((len(atoms), 3), float(len(atoms)))
        more = {"forces": forces, "tags": np.arange(len(atoms)) % 3, "fixed": np.arange(len(atoms)) == 1}
        graphs.append(graph_of(atoms, array, **more))
    return graphs


def padded(graph, n_node=N_NODE + 5, n_graph=7):
    return jraph.pad_with_graphs(graph, n_node=n_node, n_edge=200, n_graph=n_graph)


def check(out):
    assert len(out) == len(STRUCTURES)
    for atoms, expected in zip(out, STRUCTURES, strict=True):
        np.testing.assert_array_equal(atoms.numbers, expected.numbers)
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-6)
        np.testing.assert_allclose(atoms.cell.array, expected.cell.array, atol=1e-6)
        np.testing.assert_array_equal(atoms.pbc, expected.pbc)
        np.testing.assert_array_equal(atoms.get_tags(), np.arange(len(atoms)) % 3)
        system = system_from_atoms("memory", "0", atoms, "")
        assert system.energy == -1.5 * len(atoms) and np.all(system.forces == len(atoms))
        assert (system.fixed is not None and system.fixed.tolist() == (np.arange(len(atoms)) == 1).tolist()) or (
            system.fixed is None and len(atoms) == 1
        )


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("change", [lambda g: g, padded, lambda g: padded(g, N_NODE + 1, 5)],
                         ids=["batched", "padded", "tightly padded"])  # fmt: skip
def test_structures_and_labels_come_in(array, change):
    check(from_graphs_tuple(change(jraph.batch(labelled(array)))))


def test_a_graph_without_edges_is_enough():
    graph = padded(jraph.batch(labelled()))
    check(from_graphs_tuple(graph._replace(edges=None, senders=None, receivers=None, n_edge=None)))


def test_nodes_alone_are_molecules_without_labels():
    graph = jraph.batch([graph_of(atoms) for atoms in STRUCTURES[2:]])._replace(globals=None)
    for atoms in from_graphs_tuple(graph):
        assert not atoms.pbc.any() and not atoms.cell.array.any() and atoms.calc is None and not atoms.constraints


def test_nan_is_a_missing_label():
    graph = jraph.batch(labelled())
    energy, forces = np.array(graph.globals["energy"]), np.array(graph.nodes["forces"])
    energy[[1, 2]] = np.nan
    forces[-4:] = np.nan  # of the last two structures
    graph = graph._replace(globals={**graph.globals, "energy": energy}, nodes={**graph.nodes, "forces": forces})
    out = from_graphs_tuple(padded(graph))
    assert [sorted(atoms.calc.results) if atoms.calc else [] for atoms in out] == [
        ["energy", "forces"], ["forces"], [], ["energy"]]  # fmt: skip


def test_padding_alone_holds_no_structure():
    graph = padded(jraph.batch(labelled()))
    nodes = {name: np.zeros_like(values) for name, values in graph.nodes.items()}
    assert from_graphs_tuple(graph._replace(nodes=nodes, n_node=np.array([N_NODE + 5] + 6 * [0]))) == []


@pytest.mark.parametrize("pad_it", [False, True])
def test_predictions_go_back_to_their_nodes(pad_it):
    graph = jraph.batch(labelled())
    graph = padded(graph) if pad_it else graph
    energies = [-1.0, None, -3.0, -4.0]
    forces = [np.full((len(atoms), 3), i) + np.arange(len(atoms))[:, None] for i, atoms in enumerate(STRUCTURES)]
    forces[2] = None
    out = with_predictions(graph, energies, forces)
    parts = [part for part in jraph.unbatch_np(out) if int(part.n_node[0])][:4]
    for part, atoms, energy, force in zip(parts, STRUCTURES, energies, forces, strict=True):
        np.testing.assert_array_equal(part.nodes["atomic_numbers"], atoms.numbers)
        np.testing.assert_array_equal(part.globals["energy"], [np.nan if energy is None else energy])
        np.testing.assert_array_equal(part.nodes["forces"], np.full((1, 3), np.nan) if force is None else force)
    assert not out.globals["energy"][4:].any() and not out.nodes["forces"][N_NODE:].any()
    assert graph.globals["energy"][0] == -9 and out.edges is graph.edges, "the given graph is as it was"
    if pad_it:
        np.testing.assert_array_equal(jraph.get_node_padding_mask(out), jraph.get_node_padding_mask(graph))


def changed(nodes=None, of_graph=None):
    """A batched graph with some arrays replaced, those that are None removed."""
    graph = jraph.batch(labelled())
    new = [{k: v for k, v in {**old, **(update or {})}.items() if v is not None}
           for old, update in ((graph.nodes, nodes), (graph.globals, of_graph))]  # fmt: skip
    return graph._replace(nodes=new[0], globals=new[1])


WRONG = {
    "nodes of the GraphsTuple lack the key 'positions'": dict(nodes={"positions": None}),
    "they have 'fixed', 'forces', 'positions', 'tags'; name": dict(nodes={"atomic_numbers": None}),
    "nodes['positions'] of the GraphsTuple has shape (14, 2), not (14, 3)": dict(nodes={"positions": np.ones((14, 2))}),
    "nodes['atomic_numbers'] of the GraphsTuple is of type float64; give integers": dict(
        nodes={"atomic_numbers": np.ones(14)}
    ),
    "nodes['atomic_numbers'] of the GraphsTuple has shape (14, 5)": dict(
        nodes={"atomic_numbers": np.eye(14, 5, dtype=int)}
    ),
    "nodes['atomic_numbers'][0] of the GraphsTuple is 0": dict(nodes={"atomic_numbers": np.arange(14)}),
    "nodes['fixed'] of the GraphsTuple is of type int64; give bool": dict(nodes={"fixed": np.arange(14)}),
    "nodes['forces'] of the GraphsTuple has shape (4, 3)": dict(nodes={"forces": np.ones((4, 3))}),
    "globals['energy'] of the GraphsTuple has shape (4, 1), not (4,); give one row for each graph": dict(
        of_graph={"energy": np.ones((4, 1))}
    ),
    "globals['cell'] of the GraphsTuple has shape (3, 3), not (4, 3, 3)": dict(of_graph={"cell": np.eye(3)}),
    "'cell' without 'pbc'": dict(of_graph={"pbc": None}),
    "'pbc' without 'cell'": dict(of_graph={"cell": None}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_graphs_are_refused_in_one_line(message):
    with pytest.raises(InputError) as error:
        from_graphs_tuple(changed(**WRONG[message]))
    assert message in str(error.value) and ";" in str(error.value) and "\n" not in str(error.value)


def test_nodes_that_are_one_array_and_empty_graphs_are_refused():
    graph = jraph.batch(labelled())
    with pytest.raises(InputError, match="nodes of the GraphsTuple are of type ndarray; make them a dictionary"):
        from_graphs_tuple(graph._replace(nodes=np.ones((14, 4))))
    with pytest.raises(InputError, match="lack the key 'atomic_numbers', they have nothing"):
        from_graphs_tuple(graph._replace(nodes=None))
    with pytest.raises(InputError, match="graph 1 of the GraphsTuple has no atoms"):
        from_graphs_tuple(graph._replace(n_node=np.array([6, 0, 5, 3])))


def test_predictions_of_other_structures_are_refused():
    graph = padded(jraph.batch(labelled()))
    forces = [np.zeros((len(atoms), 3)) for atoms in STRUCTURES]
    with pytest.raises(InputError, match="3 energies and 4 forces for a GraphsTuple of 4 graphs"):
        with_predictions(graph, [0.0] * 3, forces)
    with pytest.raises(InputError, match=r"forces\[0\] has shape \(3, 3\), graph 0 needs \(6, 3\)"):
        with_predictions(graph, [0.0] * 4, forces[::-1])

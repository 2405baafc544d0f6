"""The four GemNet-OC graphs against golden files, published counts and a brute-force twin."""

import os
from pathlib import Path

import numpy as np
import pytest
import twin
from twin import as_list

from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS, count_edges, cut_nearest, neighbor_limits
from jaxatoms.graphs.neighbors import candidate_edges

DATA = os.environ.get("JAXATOMS_DATA")
GOLDEN = Path(DATA or ".").parent / "golden" / "gemnet_oc"
needs_golden = pytest.mark.skipif(not (DATA and GOLDEN.is_dir()), reason="JAXATOMS_DATA is not set")
GRAPHS = ("main", "a2ee2a", "qint", "a2a")


def golden(name: str):
    """The file, the arguments of `candidate_edges`, and the neighbour limits."""
    data = np.load(GOLDEN / f"{name}.npz")
    pbc = np.repeat(data["input/pbc"][:, None], 3, axis=1)
    positions, cell = (data[f"input/{key}"].astype(np.float32) for key in ("positions", "cell"))
    return data, (positions, data["input/natoms"], cell, pbc, data["input/cutoff"])


def build(arguments, tags, limits, **options):
    """`GEMNET_GRAPHS.build` from the arguments of `candidate_edges`."""
    return GEMNET_GRAPHS.build(*arguments[:4], tags, arguments[4], limits, **options)


def golden_edges(data, graph):
    """Golden edges in our convention, sorted by (receiver, sender, shift); shift = -offset."""
    pairs, offsets = data[f"graph/{graph}/edge_index"].T.tolist(), data[f"graph/{graph}/cell_offset"]
    shifts = (-offsets.astype(int)).tolist()
    return [(s, t, tuple(shift)) for (s, t), shift in zip(pairs, shifts, strict=True)]


@needs_golden
@pytest.mark.parametrize("name", ["tiny", "tiny_gradient", "tiny_gradient_linear", "small_S"])
def test_golden_graphs(name):
    data, arguments = golden(name)
    graphs = build(arguments, data["input/tags"], data["input/max_neighbors"])
    for graph in GRAPHS:
        assert as_list(getattr(graphs, graph)) == twin.in_order(golden_edges(data, graph)), graph
        np.testing.assert_array_equal(
            count_edges(graphs, arguments[1])[graph], data[f"count/edges_{graph}"], err_msg=graph
        )
    limits = np.repeat(data["input/max_neighbors"], arguments[1], axis=0)
    main_unsym = cut_nearest(*candidate_edges(*arguments), limits)[0]
    assert as_list(main_unsym) == twin.in_order(golden_edges(data, "main_unsym"))


@needs_golden
@pytest.mark.parametrize("name", ["tiny", "tiny_gradient", "tiny_gradient_linear", "small_S"])
def test_golden_swap(name):
    data, arguments = golden(name)
    graphs = build(arguments, data["input/tags"], data["input/max_neighbors"])
    reference = golden_edges(data, "main")
    counter = {edge: reference[i] for edge, i in zip(reference, data["graph/main/id_swap"], strict=True)}
    ours = as_list(graphs.main)
    assert all(ours[i] == counter[edge] for edge, i in zip(ours, graphs.swap, strict=True))


@needs_golden
def test_golden_ties_give_the_same_distances():
    data, arguments = golden("graph_ties")
    limits = np.repeat(data["input/max_neighbors"], arguments[1], axis=0)
    cuts = dict(zip(GRAPHS, cut_nearest(*candidate_edges(*arguments), limits), strict=True))
    cuts["qint"] = build(arguments, data["input/tags"], data["input/max_neighbors"]).qint
    positions, n_node, cell = arguments[0].astype(float), arguments[1], arguments[2].astype(float)
    graph_of_node = np.repeat(np.arange(len(n_node)), n_node)
    for graph, edges in cuts.items():
        g = graph_of_node[edges.receivers]
        vectors = positions[edges.receivers] - positions[edges.senders]
        distance = np.linalg.norm(vectors + np.einsum("es,esx->ex", edges.shifts, cell[g]), axis=1)
        order = np.lexsort((distance, edges.receivers))
        for i, first in enumerate(np.cumsum(n_node) - n_node):
            if graph == "qint" and data[f"struct{i}/qint/count_is_tie_dependent"]:
                continue
            mine = order[g[order] == i]
            target = data[f"struct{i}/{graph}/target"]  # counted within the structure
            np.testing.assert_array_equal(edges.receivers[mine] - first, target)
            reference = data[f"struct{i}/{graph}/sorted_distance"]
            np.testing.assert_allclose(distance[mine], reference, atol=2e-5)


MOL = np.array(
    [
        (1.165, -0.402, 0.031), (-0.012, 0.553, -0.024), (-1.192, -0.219, 0.042), (-1.951, 0.371, -0.083),
        (2.108, 0.149, -0.052), (1.121, -1.071, 0.914), (1.147, -1.029, -0.903), (0.043, 1.203, 0.868),
        (0.029, 1.162, -0.941),
    ]
)  # fmt: skip
CRY = np.array(
    [
        (0.102, 0.031, 0.225), (2.569, 2.128, 0.824), (1.002, 1.717, 2.697),
        (3.467, 3.877, 3.072), (1.295, 0.194, 5.170), (4.016, 2.059, 5.770),
    ]
)  # fmt: skip
CRY_CELL = np.array([(4.213, 0, 0), (0.817, 4.651, 0), (0.331, -0.527, 7.493)])


def test_published_counts():
    """Edge counts of the two systems of docs/reference/gemnet_oc.md, Reference values."""
    graphs = GEMNET_GRAPHS.build(
        np.concatenate([MOL, CRY]).astype(np.float32),
        np.array([9, 6]),
        np.stack([np.zeros((3, 3)), CRY_CELL]).astype(np.float32),
        np.array([[False] * 3, [True] * 3]),
        np.array([2] * 9 + [0, 0, 1, 0, 2, 0]),
        np.array([8.0, 12.0]),
        np.tile(neighbor_limits(30), (2, 1)),
    )
    counts = {key: value.tolist() for key, value in count_edges(graphs, np.array([9, 6])).items()}
    assert counts == {"main": [72, 180], "a2a": [72, 1766], "a2ee2a": [72, 120], "qint": [72, 29]}
    assert np.bincount(graphs.main.receivers)[:9].max() == 8
    assert np.bincount(graphs.main.receivers)[9:].max() == 30


def test_neighbor_limits():
    assert neighbor_limits(30) == (30, 20, 8, 1000)
    assert neighbor_limits(100) == (100, 66, 26, 3333)
    assert neighbor_limits(10) == (10, 6, 2, 333)
    assert neighbor_limits(5) == (5, 3, 1, 166)


def random_batch(rng, n_graph=6):
    """Crystals (some on a grid, so full of ties), slabs and molecules, with their own limits."""
    positions, cells, pbcs = [], [], []
    for _ in range(n_graph):
        n_node = int(rng.integers(1, 9))
        pbc = [(False,) * 3, (True,) * 3, (True, True, False)][rng.integers(3)]
        grid = rng.random() < 0.5
        cell = 4.0 * np.eye(3) + (0 if grid else 1) * rng.uniform(-1, 1, (3, 3))
        fractional = rng.uniform(-1, 2, (n_node, 3))
        fractional = np.unique(np.round(2 * fractional) / 2 if grid else fractional, axis=0)
        positions.append((rng.permutation(fractional) @ cell).astype(np.float32))
        cells.append(cell.astype(np.float32))
        pbcs.append(pbc)
    n_node = np.array([len(p) for p in positions])
    cutoff = rng.uniform(3, 7, n_graph)
    limits = np.stack([(k, k // 2, k // 3, 4 * k) for k in rng.integers(3, 30, n_graph)])
    tags = rng.integers(0, 3, n_node.sum())
    return (np.concatenate(positions), n_node, np.stack(cells), np.array(pbcs), cutoff), tags, limits


def offset_ids(edges, first):
    return [(s + first, t + first, shift) for s, t, shift in edges]


@pytest.mark.parametrize("seed", range(12))
def test_batch_matches_brute_force(seed):
    (positions, n_node, cell, pbc, cutoff), tags, limits = random_batch(np.random.default_rng(seed))
    expected = {graph: [] for graph in GRAPHS}
    for g, first in enumerate(np.cumsum(n_node) - n_node):
        part = slice(first, first + n_node[g])
        one = twin.graphs(positions[part], cell[g], pbc[g], tags[part], cutoff[g], tuple(limits[g]))
        for graph in GRAPHS:
            expected[graph] += offset_ids(one[graph], first)
    graphs = GEMNET_GRAPHS.build(positions, n_node, cell, pbc, tags, cutoff, limits)
    for graph in GRAPHS:
        assert as_list(getattr(graphs, graph)) == expected[graph], graph


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_swap_is_an_involution_onto_counter_edges(seed, dropout):
    rng = np.random.default_rng(seed)
    arguments, tags, limits = random_batch(rng)
    main, swap, *_ = build(arguments, tags, limits, rng=rng, edge_dropout=dropout)
    np.testing.assert_array_equal(swap[swap], np.arange(len(swap)))
    assert (swap != np.arange(len(swap))).all() and swap.dtype == np.int32
    np.testing.assert_array_equal(main.senders[swap], main.receivers)
    np.testing.assert_array_equal(main.shifts[swap], -main.shifts)
    assert as_list(main) == twin.in_order(as_list(main))
    assert len(set(as_list(main))) == len(swap)


def test_negative_image_wins_a_tie():
    """One atom, six images at equal distance: an odd limit keeps the deciding one of the last pair."""
    arguments = (np.zeros((1, 3)), np.array([1]), 3 * np.eye(3)[None], np.ones((1, 3), bool), np.array([3.1]))
    graphs = build(arguments, None, np.array([[3, 2, 1, 6]]))
    assert as_list(graphs.qint) == [(0, 0, (1, 0, 0))]  # offset (-1, 0, 0) sorts first
    assert as_list(graphs.a2ee2a) == [(0, 0, (0, 1, 0)), (0, 0, (1, 0, 0))]
    assert len(graphs.main.senders) == 6 and len(graphs.a2a.senders) == 6


def test_structures_without_edges():
    positions = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 20]], np.float32)
    n_node, cell, pbc = np.array([1, 2, 0]), np.zeros((3, 3, 3)), np.zeros((3, 3), bool)
    limits = np.tile(neighbor_limits(30), (3, 1))
    graphs = GEMNET_GRAPHS.build(positions, n_node, cell, pbc, None, np.full(3, 8.0), limits)
    assert all(len(getattr(graphs, graph).senders) == 0 for graph in GRAPHS) and graphs.swap.shape == (0,)
    assert all((count == 0).all() and len(count) == 3 for count in count_edges(graphs, n_node).values())


def test_permuting_structures_permutes_graphs():
    rng = np.random.default_rng(5)
    (positions, n_node, cell, pbc, cutoff), tags, limits = random_batch(rng)
    first = np.cumsum(n_node) - n_node
    order = rng.permutation(len(n_node))
    atoms = np.concatenate([np.arange(first[g], first[g] + n_node[g]) for g in order])
    graphs = GEMNET_GRAPHS.build(positions, n_node, cell, pbc, tags, cutoff, limits)
    moved = GEMNET_GRAPHS.build(
        positions[atoms], n_node[order], cell[order], pbc[order], tags[atoms], cutoff[order], limits[order]
    )
    for graph in GRAPHS:
        back = [(atoms[s], atoms[t], shift) for s, t, shift in as_list(getattr(moved, graph))]
        assert twin.in_order(back) == as_list(getattr(graphs, graph))


def lattice(n_graph=40):
    """Ordered molecules of 27 atoms without truncation, enough edges for statistics."""
    points = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(-1, 3)
    n_node = np.full(n_graph, 27)
    return (
        np.tile(points, (n_graph, 1)), n_node, np.zeros((n_graph, 3, 3)),
        np.zeros((n_graph, 3), bool), np.full(n_graph, 8.0),
    )  # fmt: skip


def test_dropout_removes_directed_edges_independently():
    arguments, limits = lattice(), np.tile(neighbor_limits(30), (40, 1))
    full = build(arguments, None, limits)
    dropped = build(arguments, None, limits, rng=np.random.default_rng(0), edge_dropout=0.1)
    n_edge = len(full.a2a.senders)  # 28080
    tolerance = 5 * np.sqrt(0.09 / n_edge)
    assert abs(len(dropped.a2a.senders) / n_edge - 0.9) < tolerance
    pairs = set(zip(dropped.a2a.senders.tolist(), dropped.a2a.receivers.tolist(), strict=True))
    both = np.mean([(t, s) in pairs for s, t in pairs])
    assert abs(both - 0.9) < 0.02  # the reverse direction survives no more often than any other edge
    # A pair stays in main with the single edge that decides for it, not with the square of its chance.
    assert abs(len(dropped.main.senders) / len(full.main.senders) - 0.9) < 2 * tolerance


def test_dropout_refills_the_cuts_from_farther_neighbours():
    arguments, limits = lattice(), np.tile([8, 5, 3, 1000], (40, 1))
    dropped = build(arguments, None, limits, rng=np.random.default_rng(0), edge_dropout=0.3)
    assert len(dropped.a2ee2a.senders) == 5 * 27 * 40 and len(dropped.qint.senders) == 3 * 27 * 40
    kept = set(as_list(dropped.a2a))
    assert kept.issuperset(as_list(dropped.a2ee2a))


def test_dropout_is_determined_by_rng():
    arguments, limits = lattice(2), np.tile(neighbor_limits(30), (2, 1))
    runs = [
        as_list(build(arguments, None, limits, rng=np.random.default_rng(s), edge_dropout=0.1).a2a)
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(ValueError, match="rng"):
        build(arguments, None, limits, edge_dropout=0.1)

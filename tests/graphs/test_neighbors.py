"""Candidate edges against a brute-force twin, ASE and the definition of `Edges`."""

import numpy as np
import pytest
import twin
from ase import Atoms
from ase.neighborlist import neighbor_list
from twin import as_list

from jaxatoms.graphs import neighbors
from jaxatoms.graphs.neighbors import candidate_edges
from jaxatoms.types import Edges, InputError, UnusableStructure

NO_CELL = np.zeros((3, 3), np.float32)
FREE = np.zeros(3, bool)


def single(positions, cell=NO_CELL, pbc=FREE, cutoff=5.0) -> tuple[Edges, np.ndarray]:
    """Candidates of one structure."""
    return candidate_edges(
        np.asarray(positions, np.float32).reshape(-1, 3),
        np.array([np.size(positions) // 3]),
        np.asarray(cell, np.float32)[None],
        np.asarray(pbc)[None],
        np.array([cutoff]),
    )


def random_crystal(rng, n_node, pbc=(True, True, True), size=4.0):
    """A triclinic cell with atoms scattered up to one cell outside of it."""
    cell = (size * np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)) * size).astype(np.float32)
    positions = (rng.uniform(-1, 2, (n_node, 3)) @ cell).astype(np.float32)
    return positions, cell, np.array(pbc)


@pytest.fixture(params=["dense", "vesin"])
def search(request, monkeypatch):
    """Runs a test with the dense search and with vesin's cell list."""
    monkeypatch.setattr(neighbors, "DENSE_GRID_LIMIT", {"dense": 2**40, "vesin": 0}[request.param])


def assert_twin(positions, cell, pbc, cutoff, reach=8):
    edges, distance = single(positions, cell, pbc, cutoff)
    expected = twin.candidates(positions, cell, pbc, cutoff, reach)
    assert as_list(edges) == [edge for edge, _ in expected]
    np.testing.assert_allclose(distance, [d for _, d in expected], rtol=2e-7)
    assert [field.dtype for field in edges] == [np.int32] * 3 and distance.dtype == np.float32


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1)], ids=lambda p: "".join(map(str, p))
)
def test_periodic_cells_match_brute_force(search, seed, pbc):
    rng = np.random.default_rng(seed)
    assert_twin(*random_crystal(rng, rng.integers(1, 7), np.array(pbc, bool)), cutoff=rng.uniform(2, 6))


def test_tiny_cell_has_many_images(search):
    cell = np.array([[1.3, 0, 0], [0.4, 1.1, 0], [-0.2, 0.3, 1.5]])
    assert_twin(np.array([[0.1, 0.2, 0.3]]), cell, np.ones(3, bool), cutoff=5.0, reach=10)


@pytest.mark.parametrize("axis", range(3))
def test_rows_of_free_axes_are_ignored(search, axis):
    rng = np.random.default_rng(axis)
    positions, cell, _ = random_crystal(rng, 5)
    pbc = np.arange(3) != axis
    expected = as_list(single(positions, cell, pbc)[0])
    for row in (np.zeros(3), np.full(3, 900.0), cell[axis - 1]):
        cell[axis] = row
        assert as_list(single(positions, cell, pbc)[0]) == expected


def test_dense_and_vesin_agree_in_a_large_cell(monkeypatch):
    rng = np.random.default_rng(0)
    arguments = (*random_crystal(rng, 120, size=11.0), 6.0)
    dense, dense_distance = single(*arguments)
    monkeypatch.setattr(neighbors, "DENSE_GRID_LIMIT", 0)
    listed, listed_distance = single(*arguments)
    assert len(dense.senders) > 5000
    for a, b in zip((*dense, dense_distance), (*listed, listed_distance), strict=True):
        np.testing.assert_array_equal(a, b)


def test_edge_vectors_follow_ase(search):
    rng = np.random.default_rng(3)
    positions, cell, pbc = random_crystal(rng, 6)
    edges, distance = single(positions, cell, pbc, 5.0)
    i, j, d, vectors, shifts = neighbor_list("ijdDS", Atoms("H6", positions, cell=cell, pbc=pbc), 5.0)
    order = np.lexsort((*shifts.T[::-1], i, j))
    np.testing.assert_array_equal(edges.senders, i[order])
    np.testing.assert_array_equal(edges.receivers, j[order])
    np.testing.assert_array_equal(edges.shifts, shifts[order])
    ours = positions[edges.receivers] - positions[edges.senders] + edges.shifts @ cell
    np.testing.assert_allclose(ours, vectors[order], atol=1e-5)
    np.testing.assert_allclose(distance, d[order], rtol=1e-6)


@pytest.mark.parametrize("n_node", [1, 2, 7, 30])
def test_molecules_match_brute_force(n_node):
    positions = np.random.default_rng(n_node).uniform(-4, 4, (n_node, 3)).astype(np.float32)
    assert_twin(positions, NO_CELL, FREE, cutoff=4.0)


def test_molecule_cutoff_is_strict_and_periodic_cutoff_is_not(search):
    pair = [[0, 0, 0], [0, 0, 3]]
    assert len(single(pair, cutoff=3.0)[1]) == 0
    assert len(single(pair, cutoff=3.001)[1]) == 2
    assert len(single(pair, 50 * np.eye(3), np.ones(3, bool), 3.0)[1]) == 2
    assert len(single([[0, 0, 0]], 3 * np.eye(3), np.ones(3, bool), 3.0)[1]) == 6


def test_coincident_atoms(search):
    pair = [[1, 1, 1], [1, 1, 1.005]]
    assert len(single(pair)[1]) == 2
    assert len(single(pair, 50 * np.eye(3), np.ones(3, bool))[1]) == 0


@pytest.mark.parametrize("offset", [0.0, 1e-6])
def test_atoms_of_a_molecule_in_one_place_are_refused(offset):
    """The edge between them has no direction in float32: every prediction of the batch became NaN."""
    positions = [[9, 0, 0], [8, 0, 0], [0, 0, 0], [2, 0, 0], [0, 0, offset]]
    with pytest.raises(UnusableStructure, match="atoms 0 and 2 .* in one place; correct") as found:
        candidate_edges(positions, [2, 3], np.tile(NO_CELL, (2, 1, 1)), np.tile(FREE, (2, 1)), [5.0, 5.0])
    assert found.value.index == 1


@pytest.mark.parametrize("positions", [[], [[0, 0, 0]], [[0, 0, 0], [0, 0, 9]]])
@pytest.mark.parametrize("pbc", [False, True])
def test_structures_without_edges(search, positions, pbc):
    edges, distance = single(positions, 50 * np.eye(3), np.full(3, pbc))
    assert edges.shifts.shape == (0, 3) and len(edges.senders) == len(edges.receivers) == len(distance) == 0
    assert [field.dtype for field in edges] == [np.int32] * 3 and distance.dtype == np.float32


def test_empty_batch():
    edges, distance = candidate_edges(
        np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3, 3)), np.zeros((0, 3)), []
    )
    assert edges.shifts.shape == (0, 3) and distance.shape == (0,)


def mixed_batch(rng):
    """Molecules, crystals, slabs, a lone atom and an empty structure, with different cutoffs."""
    parts = []
    for kind in ("mol", "bulk", "mol", "atom", "slab", "empty", "mol", "bulk"):
        n_node = {"atom": 1, "empty": 0}.get(kind, int(rng.integers(2, 9)))
        pbc = {"bulk": (True, True, True), "slab": (True, True, False)}.get(kind, (False,) * 3)
        parts.append((*random_crystal(rng, n_node, pbc), rng.uniform(2, 5)))
    return parts


def stack(parts):
    """Structures -> arguments of `candidate_edges`."""
    positions, cells, pbcs, cutoffs = zip(*parts, strict=True)
    n_node = np.array([len(p) for p in positions])
    return np.concatenate(positions), n_node, np.stack(cells), np.stack(pbcs), np.array(cutoffs)


@pytest.mark.parametrize("seed", range(4))
def test_batch_equals_singles_in_any_order(search, seed):
    rng = np.random.default_rng(seed)
    parts = mixed_batch(rng)
    parts = [parts[i] for i in rng.permutation(len(parts))]
    edges, distance = candidate_edges(*stack(parts))
    singles, lengths, first = [], [], 0
    for part in parts:
        one, d = single(*part)
        singles += [(s + first, t + first, shift) for s, t, shift in as_list(one)]
        lengths.append(d)
        first += len(part[0])
    assert as_list(edges) == singles
    np.testing.assert_array_equal(distance, np.concatenate(lengths))


def test_degenerate_periodic_cell_is_refused():
    with pytest.raises(InputError, match="structure 0 .* lattice vectors"):
        single([[0, 0, 0]], NO_CELL, np.ones(3, bool))
    with pytest.raises(InputError, match="linearly dependent"):
        single([[0, 0, 0]], [[2, 0, 0], [4, 0, 0], [0, 0, 3]], np.array([True, True, False]))


@pytest.mark.parametrize("pbc", [(1, 1, 1), (0, 1, 1)])
def test_atoms_many_cells_away_have_the_edges_of_atoms_inside(search, pbc):
    rng, pbc = np.random.default_rng(3), np.array([pbc], bool)
    cell = 4 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    positions, steps = rng.uniform(0, 1, (6, 3)) @ cell, rng.integers(-400, 400, (6, 3)) * pbc
    rest = np.array([6]), cell[None], pbc, np.array([5.0])
    edges, distance = candidate_edges(positions, *rest)
    far, far_distance = candidate_edges(positions + steps @ cell, *rest)
    assert np.array_equal(edges.senders, far.senders) and np.array_equal(edges.receivers, far.receivers)
    np.testing.assert_array_equal(far.shifts, edges.shifts + steps[edges.senders] - steps[edges.receivers])
    np.testing.assert_allclose(far_distance, distance, rtol=2e-7)


def test_a_cell_too_flat_for_the_cutoff_is_refused_with_its_place():
    with pytest.raises(UnusableStructure, match="structure 0 of the batch: neighbours within 12 A lie 19 cells away"):
        single(np.zeros((1, 3)), np.diag([0.6, 9.0, 9.0]), np.ones(3, bool), cutoff=12.0)

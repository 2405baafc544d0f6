"""Padding: what fits keeps every value in its place, what does not fit raises and names the size."""

import dataclasses

import numpy as np
import pytest

from jaxatoms.data.packing import exact_budget, whole_size
from jaxatoms.graphs.batch import MAX_TRANSLATION, BatchBudget, BudgetOverflow, Targets, collate
from jaxatoms.graphs.gemnet_graphs import GEMNET_GRAPHS, neighbor_limits
from jaxatoms.types import Edges, Graphs, InputError, SystemBatch, UnusableStructure

COUNTS = np.array([3, 6, 4], np.int32)
SIZES = [f.name for f in dataclasses.fields(BatchBudget) if f.name != "k_main_out"]  # optional: 0 = no table


@pytest.fixture(scope="module")
def parts():
    """Three structures, the second one periodic, with labels missing here and there."""
    rng = np.random.default_rng(0)
    n = int(COUNTS.sum())
    cell = np.zeros((3, 3, 3), np.float32)
    cell[1] = 5 * np.eye(3)
    pbc = np.zeros((3, 3), bool)
    pbc[1] = True
    systems = SystemBatch(
        n_node=COUNTS,
        atomic_numbers=rng.integers(1, 9, n).astype(np.uint8),
        positions=rng.uniform(0, 5, (n, 3)).astype(np.float32),
        forces=rng.normal(size=(n, 3)).astype(np.float32),
        tags=np.full(n, 2, np.uint8),
        fixed=np.arange(n) == 4,
        energy=rng.normal(size=3),
        cell=cell,
        pbc=pbc,
    )
    forces = systems.forces.copy()
    forces[7, 1] = np.nan
    targets = Targets(np.array([0.5, np.nan, -1.0], np.float32), forces, np.array([1, 0, 1], np.int32))
    limits = np.tile(neighbor_limits(30), (3, 1))
    graphs = GEMNET_GRAPHS.build(systems.positions, COUNTS, cell, pbc, systems.tags, np.full(3, 6.0), limits)
    return systems, graphs, targets


@pytest.fixture(scope="module")
def tight(parts):
    """The budget without one slot to spare (the additive sizes that `make_budget` rounds up are exact here)."""
    systems, graphs, _ = parts
    return BatchBudget(**{k: v + (k in ("n_graph", "n_node")) for k, v in whole_size(systems, graphs).items()})


@pytest.fixture(scope="module")
def roomy(parts):
    systems, graphs, _ = parts
    exact = exact_budget([whole_size(systems, graphs)])
    return dataclasses.replace(exact, n_graph=6, n_node=24, k_main=80, k_qint_out=90)


def test_a_budget_without_a_slot_to_spare_holds_its_batch(parts, tight):
    batch = collate(*parts, tight)
    assert batch.graph_mask.sum() == 3 and batch.node_mask.sum() == COUNTS.sum()


@pytest.mark.parametrize("name", SIZES)
def test_one_slot_too_few_raises_and_names_the_size(parts, tight, name):
    small = getattr(tight, name) - 1
    with pytest.raises(BudgetOverflow, match=f"{name}={small + 1}.*{name}={small}") as caught:
        collate(*parts, dataclasses.replace(tight, **{name: small}))
    assert (caught.value.name, caught.value.need, caught.value.have) == (name, small + 1, small)
    assert isinstance(caught.value, InputError) and "\n" not in str(caught.value)


def test_a_cell_translation_that_the_model_cannot_code_is_refused(parts, roomy):
    systems, graphs, targets = parts
    shifts = graphs.a2a.shifts.copy()
    shifts[0, 0] = MAX_TRANSLATION + 1
    with pytest.raises(UnusableStructure, match="structure 0 .* more than 15 cells away"):
        collate(systems, graphs._replace(a2a=graphs.a2a._replace(shifts=shifts)), targets, roomy)


@pytest.mark.parametrize("moved", [0, 21, -300])
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1)])
def test_atoms_outside_the_cell_are_put_back_along_its_periodic_axes(moved, pbc):
    """Edge vectors stay, whatever cell an atom has drifted to, and the batch holds few translations."""
    rng, n, pbc = np.random.default_rng(1), 5, np.array([pbc], bool)
    cell = (5 * np.eye(3) + rng.uniform(-1, 1, (3, 3)))[None]
    steps = moved * rng.integers(-1, 2, (n, 3)) * pbc
    base = rng.uniform(0, 1, (n, 3)) @ cell[0]
    n_node = np.array([n], np.int32)
    zero = np.zeros(n)
    batches = []
    for positions in (base, base + steps @ cell[0]):
        tags = np.full(n, 2, np.uint8)
        ones, none = np.ones(n, np.uint8), np.zeros((n, 3))
        systems = SystemBatch(n_node, ones, positions, none, tags, zero > 1, zero[:1], cell, pbc)
        limits = np.array([neighbor_limits(20)])
        graphs = GEMNET_GRAPHS.build(positions, n_node, cell, pbc, tags, np.full(1, 6.0), limits)
        targets = Targets(zero[:1], np.zeros((n, 3)), np.zeros(1, np.int32))
        budget = exact_budget([whole_size(systems, graphs)])
        batches.append(collate(systems, graphs, targets, budget, np.float64))
    for name in ("main", "a2ee2a", "qint", "a2a"):
        edges, other = (getattr(batch, name) for batch in batches)
        assert np.array_equal(edges.senders, other.senders) and np.array_equal(edges.receivers, other.receivers)
        ours, theirs = (_vectors(getattr(b, name), b.positions, cell[0]) for b in batches)
        assert ours == pytest.approx(theirs, abs=1e-11)
        assert np.abs(other.shifts).max() <= 3
    fractional = batches[1].positions[:n] @ np.linalg.pinv(cell[0] * pbc[0][:, None])
    assert ((fractional >= -1e-9) & (fractional < 1))[:, pbc[0]].all()


def _vectors(edges, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    return positions[edges.receivers] - positions[edges.senders] + edges.shifts @ cell


def test_a_structure_of_too_many_atoms_is_named(roomy):
    n = 4097
    systems = SystemBatch(
        np.array([1, n], np.int32), np.ones(n + 1, np.uint8), np.zeros((n + 1, 3)), np.zeros((n + 1, 3)),
        np.zeros(n + 1, np.uint8), np.zeros(n + 1, bool), np.zeros(2), np.zeros((2, 3, 3)), np.zeros((2, 3), bool),
    )  # fmt: skip
    none = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32))
    graphs = Graphs(none, np.zeros(0, np.int32), none, none, none)
    with pytest.raises(UnusableStructure, match="structure 1 of the batch: has 4097 atoms"):
        collate(systems, graphs, Targets(np.zeros(2), np.zeros((n + 1, 3)), np.zeros(2, np.int32)), roomy)


@pytest.mark.parametrize("name", SIZES)
def test_a_budget_size_below_its_least_is_refused(tight, name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(tight, **{name: 0})


def test_shapes_follow_from_the_budget_alone(parts, roomy):
    systems, _, targets = parts
    first = SystemBatch(*(c[:3] if c.shape[0] == COUNTS.sum() else c[:1] for c in systems))
    limits = np.array([neighbor_limits(30)])
    cutoff = np.array([6.0])
    alone = GEMNET_GRAPHS.build(first.positions, first.n_node, first.cell, first.pbc, first.tags, cutoff, limits)
    few = collate(first, alone, Targets(targets.energy[:1], targets.forces[:3], targets.task[:1]), roomy)
    full = collate(*parts, roomy)

    def shapes(batch):
        flat = [x for field in batch for x in (field if isinstance(field, tuple) else (field,)) if x is not None]
        return [(x.shape, x.dtype) for x in flat]

    assert shapes(few) == shapes(full)


def test_no_value_is_lost_or_moved(parts, roomy):
    systems, graphs, targets = parts
    batch, n = collate(*parts, roomy), int(COUNTS.sum())
    np.testing.assert_array_equal(batch.atomic_numbers[:n], systems.atomic_numbers)
    np.testing.assert_array_equal(batch.positions[:n], systems.positions)
    np.testing.assert_array_equal(batch.node_graph[:n], [0] * 3 + [1] * 6 + [2] * 4)
    np.testing.assert_array_equal(batch.free[:n], ~systems.fixed)
    np.testing.assert_array_equal(batch.cell[:3], systems.cell)
    np.testing.assert_array_equal(batch.task[:3], targets.task)
    for name in ("main", "a2ee2a", "qint", "a2a"):
        edges, padded = getattr(graphs, name), getattr(batch, name)
        for real, kept in zip(edges, padded[:3], strict=True):
            np.testing.assert_array_equal(kept[: len(real)], real)
        assert (np.diff(padded.receivers) >= 0).all(), "padding must not break the order by receiver"


def test_padding_is_the_last_node_and_the_last_graph(parts, roomy):
    _, graphs, _ = parts
    batch, n = collate(*parts, roomy), int(COUNTS.sum())
    assert not batch.node_mask[n:].any() and not batch.free[n:].any() and not batch.force_mask[n:].any()
    assert (batch.node_graph[n:] == roomy.n_graph - 1).all()
    assert (batch.node_slot[n:] == roomy.n_graph * roomy.n_per_graph).all()
    assert not batch.graph_mask[3:].any() and not batch.energy_mask[3:].any()
    assert not batch.cell[3:].any() and not batch.positions[n:].any()
    for name in ("main", "a2ee2a", "qint", "a2a"):
        padded, n_edge = getattr(batch, name), len(getattr(graphs, name).senders)
        assert (padded.senders[n_edge:] == roomy.n_node - 1).all()
        assert (padded.receivers[n_edge:] == roomy.n_node - 1).all() and not padded.shifts[n_edge:].any()


def test_the_node_table_and_the_slots_are_inverse(parts, roomy):
    batch = collate(*parts, roomy)
    flat = batch.node_table.reshape(-1)
    real = np.flatnonzero(batch.node_mask)
    np.testing.assert_array_equal(flat[batch.node_slot[real]], real)
    assert (flat == roomy.n_node).sum() == flat.size - len(real)
    for graph, count in enumerate(COUNTS):
        assert (batch.node_table[graph] < roomy.n_node).sum() == count


@pytest.mark.parametrize("name", ["main", "a2ee2a", "qint"])
def test_edge_tables_hold_each_real_edge_once_at_its_end(parts, roomy, name):
    graphs, batch = parts[1], collate(*parts, roomy)
    edges, padded = getattr(graphs, name), getattr(batch, name)
    none = len(padded.senders)
    for table, ends in ((padded.in_table, edges.receivers), (padded.out_table, edges.senders)):
        if table is None:
            assert name == "main"
            continue
        node, place = np.nonzero(table < none)
        edge = table[node, place]
        assert sorted(edge.tolist()) == list(range(len(ends)))
        np.testing.assert_array_equal(ends[edge], node)
        assert (table[table >= len(ends)] == none).all(), "padding edges must not be in a table"
        assert (np.diff(table.astype(np.int64), axis=1)[table[:, 1:] < none] > 0).all(), "increasing, gaps last"
    assert batch.a2a.in_table is None and batch.a2a.out_table is None


def test_swap_is_an_involution_and_names_no_edge_in_padding(parts, roomy):
    batch, n_edge = collate(*parts, roomy), len(parts[1].swap)
    swap = batch.swap[:n_edge]
    np.testing.assert_array_equal(swap[swap], np.arange(n_edge))
    np.testing.assert_array_equal(batch.main.senders[swap], batch.main.receivers[:n_edge])
    assert (batch.swap[n_edge:] == roomy.n_main).all()


def test_a_missing_label_is_masked_and_stored_as_zero(parts, roomy):
    batch = collate(*parts, roomy)
    np.testing.assert_array_equal(batch.energy_mask[:3], [True, False, True])
    np.testing.assert_array_equal(batch.energy[:3], np.array([0.5, 0, -1], np.float32))
    assert not batch.force_mask[7] and not batch.forces[7].any(), "one missing component hides the atom's force"
    assert batch.force_mask.sum() == COUNTS.sum() - 1
    assert all(np.isfinite(x).all() for x in (batch.energy, batch.forces, batch.positions))

"""Fitted scale factors against variances over rows that are gathered one by one from enumerated lists."""

import jax
import numpy as np
import pytest
from fixtures import golden
from fixtures.structures import GALLERY, concatenate, graphs_of, pad
from twins import gemnet_oc_enumerated as twin

from jaxatoms.models.gemnet_oc.scale_fit import factor_statistics, fit_scale_factors, fitting_stages, scale_factors

PARTS = (["seven", "crystal", "co2", "atom"], ["six", "water", "h2", "c2h2"])
TOLERANCE = 2e-4  # variances in float32


def _observe(model, batch):
    found = {}

    def observe(name, value=None, reference=None, **_):
        if reference is not None:
            found[name] = value, reference

    model.backbone(batch, model.embedding(batch.atomic_numbers), observe=observe)
    return found, factor_statistics(model.backbone, batch, model.embedding(batch.atomic_numbers))


@pytest.fixture(scope="module")
def fitted():
    """(factors by name, rows that each factor saw per batch, statistics per batch, graphs per batch)."""
    model = golden.model("tiny", np.float32)
    parts = [[GALLERY[name] for name in part] for part in PARTS]
    batches = [pad(part, np.float32) for part in parts]
    fit_scale_factors(model, batches)
    observe = jax.jit(_observe)
    results = [jax.tree.map(np.asarray, observe(model, batch)) for batch in batches]
    factors = {name: float(f.scale_factor[...]) for name, f in scale_factors(model.backbone)}
    systems = [concatenate(part) for part in parts]
    graphs = [(s, graphs_of(s), batch) for s, batch in zip(systems, batches, strict=True)]
    return factors, [r[0] for r in results], [r[1] for r in results], graphs


def test_every_factor_is_fitted_once(fitted):
    factors, seen, _, _ = fitted
    stages = [name for stage in fitting_stages(2, True) for name in stage]
    assert sorted(stages) == sorted(factors) == sorted(seen[0])
    assert all(gamma > 0 for gamma in factors.values())


def test_variances_match_after_fitting(fitted):
    factors, _, statistics, _ = fitted
    for name, gamma in factors.items():
        reference, value = sum(s[name].astype(np.float64) for s in statistics)
        assert value * gamma**2 == pytest.approx(reference, rel=TOLERANCE), name


def _rows(part, systems, graphs, batch):
    """(rows of the value, rows of the reference, one entry per gathered row)."""
    main, a2ee2a, qint, a2a = (
        (np.stack([g.senders, g.receivers]), -g.shifts) for g in (graphs.main, graphs.a2ee2a, graphs.qint, graphs.a2a)
    )
    n_main, n_node = len(graphs.swap), len(systems.positions)
    edges, k = np.arange(n_main), batch.main.in_table.shape[1]
    in_table = batch.main.in_table
    slot = np.full(len(batch.swap), -1)  # column of each edge among those of its receiver
    row, column = np.nonzero(in_table < len(batch.swap))
    slot[in_table[row, column]] = column
    main_slots = graphs.main.receivers * k + slot[:n_main]
    if part == "trip_interaction.scale_cbf_sum":
        return main_slots, twin.triplets_e2e(main)[0]
    if part == "atom_edge_interaction.scale_cbf_sum":
        return main_slots, twin.triplets_mixed(a2ee2a, main)[0]
    if part == "edge_atom_interaction.scale_cbf_sum":
        return np.arange(n_node), twin.triplets_mixed(main, a2ee2a)[0]
    if part.startswith("quad_interaction.scale_") and "rbf" not in part:
        quads = twin.quadruplets(main, qint)
        db, ba = quads["abd"]
        in_rows = ba * k + slot[db]
        return (in_rows, in_rows) if part.endswith("scale_cbf") else (main_slots, in_rows[quads["abd_of"]])
    if part == "atom_interaction.scale_rbf_sum":
        return np.arange(n_node), a2a[0][0]
    if part == "atom_edge_interaction.scale_rbf":
        return (np.arange(len(graphs.a2ee2a.senders)),) * 2
    if part.endswith("scale_sum"):
        return np.arange(n_node), edges
    return edges, edges


def _variance(x, rows):
    return np.var(x.reshape(-1, x.shape[-1])[rows].astype(np.float64), axis=0, ddof=1).mean()


def test_factors_equal_variances_over_gathered_rows(fitted):
    factors, seen, _, graphs = fitted
    errors = {}
    for name, gamma in factors.items():
        reference = value = 0.0
        for rows_of, arrays in zip(graphs, seen, strict=True):
            value_rows, reference_rows = _rows(name.split(".", 2)[2], *rows_of)
            value += len(value_rows) * _variance(arrays[name][0], value_rows)
            reference += len(value_rows) * _variance(arrays[name][1], reference_rows)
        errors[name] = abs(gamma / np.sqrt(reference / value) - 1)
    bad = {name: f"{e:.1e}" for name, e in errors.items() if e > TOLERANCE}
    assert not bad

"""Programs per batch shape: counted, shared, and few kept."""

import dataclasses

import jax
import numpy as np

from jaxatoms.graphs.batch import BatchBudget, collate, empty_structures
from jaxatoms.inference.compiled import CompiledShapes

BUDGET = BatchBudget(n_graph=2, n_node=8, n_main=64, n_a2ee2a=64, n_qint=64, n_a2a=64, n_per_graph=4, k_main=4,
                     k_a2ee2a=4, k_a2ee2a_out=4, k_qint=4, k_qint_out=4)  # fmt: skip


def test_few_programs_are_kept_and_all_are_counted():
    run, shapes = CompiledShapes(lambda batch: batch.positions.sum(), kept=2), []
    for n_main in (64, 128, 64, 192, 128, 64):  # 128 is the one used longest ago when 192 comes, then 64 and 192
        budget = dataclasses.replace(BUDGET, n_main=n_main)
        assert run(budget, collate(*empty_structures(), budget)) == 0
        shapes.append(run.n_compiled)
    assert shapes == [1, 2, 2, 3, 4, 5]


def test_another_precision_is_another_program():
    run, batch = CompiledShapes(lambda batch: batch.positions.sum()), collate(*empty_structures(), BUDGET)
    for dtype in (np.float32, np.float64, np.float32):
        with jax.enable_x64(True):
            run(BUDGET, batch._replace(positions=batch.positions.astype(dtype)))
    assert run.n_compiled == 2

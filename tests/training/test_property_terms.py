"""The loss of several properties: a mean for each over its labels, blind to what is not labelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.structures import BUDGET

from jaxatoms.models.common.output import ModelOutput
from jaxatoms.training.losses.properties import property_terms
from jaxatoms.training.losses.tasks import of_task
from jaxatoms.training.losses.terms import combined, label_counts

REDUCTIONS = ("sum", "dipole", "atom")
TERMS = property_terms(("gap", "dipole", "q"), REDUCTIONS, (1.0, 2.0, 3.0))


class _Batch:
    """Two structures of one and of two atoms, the first without a gap and the last atom without a charge."""

    properties = jnp.zeros((3, 4))
    properties_mask = jnp.array([[False, True, True, True], [True] * 4, [False] * 4])
    atom_properties = jnp.zeros((4, 1))
    atom_properties_mask = jnp.array([[True], [True], [False], [False]])


OUT = ModelOutput(None, None, properties=jnp.array([[9.0, 1, 2, 3], [4, 1, 1, 1], [7, 7, 7, 7]]),
                  atom_properties=jnp.array([[1.0], [3], [8], [8]]))  # fmt: skip


def test_each_term_is_the_mean_over_its_labels():
    loss, parts = combined(TERMS, OUT, _Batch)
    expected = {"gap_loss": 4.0, "dipole_loss": 2 * 9 / 6, "q_loss": 3 * 2.0}
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(expected)
    assert float(loss) == pytest.approx(sum(expected.values()))
    assert {name: int(n) for name, n in label_counts(TERMS, _Batch).items()} == {"gap": 1, "dipole": 6, "q": 2}


def test_what_has_no_label_has_no_gradient():
    gradient = jax.grad(lambda arrays: combined(TERMS, OUT._replace(properties=arrays[0], atom_properties=arrays[1]),
                                                _Batch)[0])((OUT.properties, OUT.atom_properties))  # fmt: skip
    for array, mask in zip(gradient, (_Batch.properties_mask, _Batch.atom_properties_mask), strict=True):
        np.testing.assert_array_equal(np.asarray(array) != 0, mask)


def test_labels_of_another_data_set_are_left_out():
    from jaxatoms.graphs.batch import collate, empty_structures

    batch = collate(*empty_structures(widths=(4, 1)), BUDGET)
    batch = batch._replace(task=batch.task * 0 + 1, properties_mask=batch.properties_mask | True,
                           atom_properties_mask=batch.atom_properties_mask | True)  # fmt: skip
    assert not of_task(batch, 0).properties_mask.any() and not of_task(batch, 0).atom_properties_mask.any()
    assert of_task(batch, 1).properties_mask.all() and of_task(batch, 1).atom_properties_mask.all()

"""The loss of energies, forces and stress together: the documented equations, and blind to what is not labelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.models.common.output import ModelOutput
from jaxatoms.training.losses.errors import error_sums
from jaxatoms.training.losses.potential import potential_terms
from jaxatoms.training.losses.terms import combined, label_counts

VOLUME = 24.0


class _Batch:
    """Two structures of one and of two atoms in cells of 24 A^3, the second without a stress, and padding."""

    atomic_numbers = jnp.array([1, 1, 1, 0])
    node_table = jnp.array([[0, 4], [1, 2], [4, 4]])
    node_graph = jnp.array([0, 1, 1, 2])
    task = jnp.zeros(3, int)
    volume = jnp.array([VOLUME, VOLUME, 0.0])
    energy, energy_mask = jnp.array([1.0, 5.0, 0.0]), jnp.array([True, True, False])
    forces, force_mask = jnp.zeros((4, 3)), jnp.array([True, True, True, False])
    free = force_mask
    stress = jnp.zeros((3, 3, 3)).at[1].set(jnp.nan)
    stress_mask = jnp.array([True, False, False])


def _output(scale=1.0):
    stress = jnp.zeros((3, 3, 3)).at[0].set(jnp.diag(jnp.array([3.0, 0.0, 4.0]))).at[1].set(7.0)
    return ModelOutput(jnp.array([2.0, 9.0, 3.0]) * scale, jnp.array([[3.0, 4, 0]] * 4) * scale, stress * scale)


def test_each_term_is_the_documented_mean():
    loss, parts = combined(potential_terms({"energy": 2.0, "forces": 3.0, "stress": 5.0}), _output(), _Batch)
    assert float(parts["energy_loss"]) == pytest.approx(2 * np.mean([1 / 1, 4 / 2]))
    assert float(parts["force_loss"]) == pytest.approx(3 * 5.0, rel=1e-5)
    assert float(parts["stress_loss"]) == pytest.approx(5 * 5.0 * VOLUME / 1, rel=1e-5)
    assert float(loss) == pytest.approx(sum(float(part) for part in parts.values()))


def test_what_has_no_label_has_no_gradient():
    terms = potential_terms({"energy": 1.0, "forces": 1.0, "stress": 1.0})
    gradient = jax.grad(lambda out: combined(terms, out, _Batch)[0])(_output())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (gradient.stress[1:] == 0).all() and (gradient.stress[0, 0, 0] != 0)
    assert gradient.energy[2] == 0 and (gradient.forces[3] == 0).all()
    counts = label_counts(terms, _Batch)
    assert {name: int(count) for name, count in counts.items()} == {"energy": 2, "force": 3, "stress": 1}


def test_a_perfect_prediction_has_a_finite_gradient():
    terms = potential_terms({"stress": 1.0})
    gradient = jax.grad(lambda out: combined(terms, out, _Batch)[0])(_output(0.0))
    assert np.isfinite(gradient.stress).all()


def test_errors_of_stress_count_six_components_of_labelled_structures():
    sums = error_sums(_output(), _Batch)
    assert float(sums["stress_error"]) == 7 and float(sums["stress_count"]) == 6
    assert sums["energy_by_atom_error"].tolist() == [1 + 2] and sums["energy_by_atom_count"].tolist() == [2]

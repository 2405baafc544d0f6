"""A model of which a part is trained: the parts make up the whole, and corrections begin at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.training.partial import DOWN, UP, Partition, parameter_names

PARAMS = {
    "backbone": {"dense": {"kernel": jnp.arange(24.0).reshape(2, 3, 4)}, "other": {"kernel": jnp.ones((4, 4))}},
    "out_energy": {"bias": jnp.arange(3.0)},
}
NAMES = ("backbone/dense/kernel", "backbone/other/kernel", "out_energy/bias")


def _partition(corrected=frozenset({"backbone/dense/kernel"})):
    return Partition(jax.tree.structure(PARAMS), NAMES, frozenset({"out_energy/bias"}), corrected, rank=2)


def test_parts_make_up_the_whole_and_corrections_begin_at_zero():
    assert parameter_names(PARAMS) == NAMES
    trained, frozen = _partition().split(PARAMS, seed=0)
    kernel = "backbone/dense/kernel"
    assert trained[kernel + DOWN].shape == (2, 3, 2) and trained[kernel + UP].shape == (2, 2, 4)
    assert set(frozen) == {"backbone/dense/kernel", "backbone/other/kernel"}
    whole = _partition().merged(trained, frozen)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, PARAMS))


def test_a_correction_is_the_product_of_its_factors():
    trained, frozen = _partition().split(PARAMS, seed=0)
    kernel = "backbone/dense/kernel"
    trained[kernel + UP] = jnp.ones((2, 2, 4))
    moved = _partition().merged(trained, frozen)["backbone"]["dense"]["kernel"]
    expected = PARAMS["backbone"]["dense"]["kernel"] + np.sum(trained[kernel + DOWN], axis=-1, keepdims=True)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_a_function_of_the_whole_is_differentiated_in_the_trained_part_alone():
    trained, frozen = _partition().split(PARAMS, seed=0)
    constants = {"model": jnp.float32(2.0), "frozen": frozen}

    def loss(params, constants):
        return constants * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    gradient = jax.grad(_partition().applied(loss))(trained, constants)
    assert set(gradient) == set(trained)
    assert float(jnp.abs(gradient["backbone/dense/kernel" + UP]).max()) > 0
    assert float(jnp.abs(gradient["backbone/dense/kernel" + DOWN]).max()) == 0  # the other factor is zero at first


@pytest.mark.parametrize("corrected", [frozenset(), frozenset({"backbone/dense/kernel"})])
def test_numbers_per_parameter_follow_the_trained_ones(corrected):
    numbers = {"backbone": {"dense": {"kernel": 2}, "other": {"kernel": 3}}, "out_energy": {"bias": 5}}
    found = _partition(corrected).of_trained(numbers)
    factors = {"backbone/dense/kernel" + end: 2 for end in (DOWN, UP)} if corrected else {}
    assert found == {"out_energy/bias": 5, **factors}

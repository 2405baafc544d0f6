"""The output blocks at once, as GPUs run them, against one after another."""

import jax
import numpy as np
import pytest
from fixtures import golden

from jaxatoms.models.registry import split_model
from jaxatoms.ops.target import compiling_for

DTYPE = np.float64


def _results(name: str, platform: str):
    """(outputs, gradients of a sum of squares) traced for a platform, computed here."""
    with jax.enable_x64(True), compiling_for(platform):
        gold = golden.read(name)
        batch, _ = golden.batch(gold, DTYPE, golden.tight_budget(*golden.graphs(gold)))
        model = split_model(golden.model(name, DTYPE))

        def loss(params, batch):
            out = model.apply(params, model.constants, batch)
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(out)), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params, batch)
        return jax.tree.map(np.asarray, (out, gradient))


@pytest.mark.parametrize("name", ["tiny", pytest.param("tiny_gradient", marks=pytest.mark.slow)])
def test_output_blocks_at_once_are_those_one_by_one(name):
    together, alone = _results(name, "gpu"), _results(name, "cpu")
    for ours, theirs in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())

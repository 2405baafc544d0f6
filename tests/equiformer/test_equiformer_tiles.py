"""Rows in tiles: as many loop passes as the platform's tiles need, and the same numbers as all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.models.equiformer_v2.edges import GPU_TILES, map_tiles
from jaxatoms.ops.target import compiling_for


def _rows(x):
    return {"sine": jnp.sin(x), "sum": x.sum(axis=-1)}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 50])
def test_tiles_give_what_all_rows_at_once_give(n):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    tiled, whole = (jax.jit(lambda x, tile=tile: map_tiles(_rows, tile, x))(x) for tile in (8, n))
    jax.tree.map(np.testing.assert_array_equal, tiled, whole)


@pytest.mark.parametrize(("platform", "passes"), [("cpu", 4 * GPU_TILES), ("gpu", 4)])
def test_a_gpu_takes_larger_tiles(platform, passes):
    x = jax.ShapeDtypeStruct((4 * 8 * GPU_TILES, 3), jnp.float32)
    with compiling_for(platform):
        program = str(jax.make_jaxpr(lambda x: map_tiles(_rows, 8, x))(x))
    assert f"length={passes}" in program


def test_rows_that_one_tile_of_a_gpu_holds_are_recomputed_in_the_backward_pass():
    """Else a layer would keep all of its sphere samples."""
    x = jax.ShapeDtypeStruct((100, 3), jnp.float32)
    with compiling_for("gpu"):
        programs = [str(jax.make_jaxpr(lambda x, tile=tile: map_tiles(_rows, tile, x))(x)) for tile in (8, 100)]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [True, False]

"""Moments against numpy.cov in float64, on one device, on eight, and merged from files."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxatoms.csi.moments import (
    covariance,
    empty_moments,
    load_moments,
    merge,
    merge_all,
    merge_parts,
    moments_of_rows,
    save_moments,
    to_host,
    update,
    update_part,
)
from jaxatoms.types import InputError


def cloud(n, d, mean=0.0, seed=0):
    """Correlated float32 rows with unequal scales about a common `mean`."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) / d**0.5 + np.eye(d)
    return (rng.standard_normal((n, d)) @ mixing * np.geomspace(0.1, 10, d) + mean).astype(np.float32)


def assert_equals_numpy(moments, rows, rtol=1e-10):
    """Covariances relative to the standard deviations of their two columns; means relative to the spread."""
    moments, expected = to_host(moments), np.cov(rows.astype(np.float64), rowvar=False)
    std = np.sqrt(np.diag(expected))
    assert moments.count == len(rows)
    assert np.max(np.abs(covariance(moments) - expected) / np.outer(std, std)) < rtol
    assert np.max(np.abs(moments.mean - rows.astype(np.float64).mean(0)) / std) < rtol


@pytest.mark.parametrize("matmul", ["float64", "slices"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_covariance_equals_numpy_in_float64(matmul, mean):
    rows = cloud(20_000, 48, mean)
    assert_equals_numpy(moments_of_rows(rows, batch_rows=3000, matmul=matmul), rows)


def test_drifting_data_equals_numpy():
    rows = cloud(6000, 16) + np.linspace(-500, 500, 6000, dtype=np.float32)[:, None]
    assert_equals_numpy(moments_of_rows(rows, batch_rows=512), rows)


@pytest.mark.parametrize("matmul", ["float64", "slices"])
def test_padding_may_hold_nan_and_changes_nothing(matmul):
    rows = cloud(500, 8)
    mask = np.random.default_rng(1).random(500) < 0.6
    padded = np.where(mask[:, None], rows, np.nan)
    assert_equals_numpy(update(empty_moments(8), padded, mask, matmul), rows[mask])


def test_batch_without_real_rows_changes_nothing():
    before = moments_of_rows(cloud(50, 4))
    after = update(before, np.full((16, 4), np.nan, np.float32), np.zeros(16, bool))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_float64_flag_of_the_caller_is_left_alone():
    update(empty_moments(4), cloud(10, 4))
    assert not jax.config.jax_enable_x64
    assert jnp.zeros(1).dtype == jnp.float32


def test_merge_of_any_split_equals_the_whole():
    rows = cloud(3000, 12, 50.0)
    parts = [moments_of_rows(piece) for piece in np.split(rows, [1, 700, 701, 2500])]
    assert_equals_numpy(merge_all(parts), rows)
    assert_equals_numpy(merge_all(parts[::-1]), rows)


def test_merge_with_nothing_is_identity():
    some = moments_of_rows(cloud(20, 3))
    for result in (merge(some, empty_moments(3)), merge(empty_moments(3), some)):
        np.testing.assert_allclose(result.scatter, some.scatter, rtol=1e-15)
        np.testing.assert_allclose(result.mean, some.mean, rtol=1e-15)


def test_saved_moments_of_processes_merge_to_the_whole(tmp_path):
    rows = cloud(1000, 6)
    for i, piece in enumerate(np.split(rows, 4)):
        save_moments(tmp_path / f"{i}.npz", moments_of_rows(piece))
    assert_equals_numpy(merge_all(load_moments(tmp_path / f"{i}.npz") for i in range(4)), rows)


def test_parts_are_separate_and_merge_to_the_whole():
    rows = cloud(900, 5)
    parts = empty_moments(5, 3)
    for i, piece in enumerate(np.split(rows, 9)):
        parts = update_part(parts, i % 3, piece)
    assert np.asarray(parts.count).tolist() == [300, 300, 300]
    assert_equals_numpy(merge_parts(parts), rows)


def test_messages_are_one_line(tmp_path):
    cases = [
        (lambda: update(empty_moments(4), np.zeros((3, 5))), "expected \\[rows, 4\\]"),
        (lambda: update(empty_moments(4), np.zeros((3, 4)), matmul="fast"), "unknown matmul 'fast'"),
        (lambda: merge(empty_moments(4), empty_moments(5)), "widths 4 and 5"),
        (lambda: covariance(moments_of_rows(cloud(1, 4))), "at least 2 feature rows, got 1"),
        (lambda: update_part(empty_moments(4, 2), 2, np.zeros((3, 4))), "part 2 does not exist"),
        (lambda: load_moments(tmp_path / "none.npz"), "not a readable moments file"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_moments_file_without_an_array_names_it(tmp_path):
    np.savez(tmp_path / "m.npz", count=1.0)
    with pytest.raises(InputError, match="lacks array"):
        load_moments(tmp_path / "m.npz")


EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh
from jaxatoms.csi.moments import covariance, make_sharded_update, merge_parts, sharded_moments
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()), ("data",))
rng = np.random.default_rng(0)
rows = (rng.standard_normal((3, 1024, 12)) * 3 + 100).astype(np.float32)
mask = rng.random((3, 1024)) < 0.8
mask[:, :128] = False  # the first device sees padding only
for matmul in ("float64", "slices"):
    step, parts = make_sharded_update(mesh, "data", matmul), sharded_moments(mesh, "data", 12)
    for x, m in zip(rows, mask):
        parts = step(parts, x, m)
    assert len(parts.scatter.sharding.device_set) == 8
    moments, real = merge_parts(parts), rows[mask].astype(np.float64)
    assert moments.count == len(real)
    np.testing.assert_allclose(moments.mean, real.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance(moments), np.cov(real, rowvar=False), rtol=0, atol=1e-9)
"""


def test_eight_devices_give_the_same_moments():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

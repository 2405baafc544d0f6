"""Checkpoints come back bit for bit, and damage never passes unnoticed."""

import os
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxatoms.training import checkpoint
from jaxatoms.training.checkpoint import CheckpointStore, nest, restore
from jaxatoms.training.checkpoint_files import find_damage, read_meta, resolve_checkpoint
from jaxatoms.types import InputError

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))


def training_state(seed: int) -> dict:
    """A state with every dtype a run holds; nothing in it is a round number."""
    rng = np.random.default_rng(seed)
    params = {
        "layer": {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)},
        "scale": jnp.float32(seed + 0.1),
    }
    params["half"] = jnp.asarray(rng.normal(size=7), jnp.bfloat16)
    _, opt_state = OPTIMIZER.update(params, OPTIMIZER.init(params), params)
    rest = {"keys": np.array([1, 2**32 - 1], np.uint32), "offset": np.float64(0.1) * seed, "step": 1000}
    rest |= {"seen": jnp.asarray(rng.integers(0, 9, 4), jnp.int32), "none": np.zeros((0, 3)), "flag": True}
    return {"params": params, "ema": params, "opt_state": opt_state, "rest": rest}


def assert_identical(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def truncate_largest_array_file(directory):
    largest = max((directory / "arrays").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.fixture
def store(tmp_path):
    notices = []
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, notify=notices.append)
    store.notices = notices
    return store


def test_everything_returns_bit_for_bit_with_an_abstract_tree(store):
    state = training_state(1)
    meta = {
        "loader": {"seed": 3, "position": 2**53 + 1},
        "references": {"6": -1029.123456789012345},
        "x": np.float32(2),
    }
    store.save(1000, state, meta)
    arrays, restored_meta = store.restore_latest(state)
    assert_identical(arrays, state)
    assert restored_meta == {"step": 1000, **meta}


def test_optimiser_continues_from_shapes_alone(store):
    state = training_state(2)
    store.save(1, state, {})
    tree = {"opt_state": jax.eval_shape(OPTIMIZER.init, state["params"])}
    arrays, _ = store.restore_latest(tree)
    assert_identical(arrays["opt_state"], state["opt_state"])


def test_numpy_arrays_by_path_need_no_tree(store, tmp_path):
    state = training_state(3)
    store.save(1, state, {})
    flat, _ = restore(tmp_path / "checkpoints/last", only=("ema",))
    assert set(flat) == {"ema/layer/w", "ema/scale", "ema/half"}
    assert all(type(array) is np.ndarray for array in flat.values())
    assert_identical(nest(flat)["ema"], jax.tree.map(np.asarray, state["ema"]))
    everything, _ = restore(tmp_path / "checkpoints/last")
    assert everything["rest/none"].shape == (0, 3)
    assert everything["opt_state/1/0/mu/layer/w"].shape == (5, 3)


@pytest.mark.parametrize(
    "array", [np.full((4,), -0.0, np.float32), np.array([0x7FC12345], np.uint32).view(np.float32)]
)
def test_signed_zeros_and_nan_payloads_survive(store, array):
    store.save(1, {"x": array, "odd name/[0].y": np.arange(6).reshape(2, 3).T}, {})
    arrays, _ = store.restore_latest()
    assert arrays["x"].tobytes() == array.tobytes()
    np.testing.assert_array_equal(arrays["odd name/[0].y"], np.arange(6).reshape(2, 3).T)


def test_sharding_of_the_abstract_tree_is_kept(store):
    store.save(1, {"x": np.arange(4.0, dtype=np.float32)}, {})
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec("data"))
    arrays, _ = store.restore_latest({"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)})
    assert arrays["x"].sharding == sharding


def test_truncated_newest_checkpoint_falls_back_and_is_named(store, tmp_path):
    for step in (500, 1000):
        store.save(step, training_state(step), {})
    newest = tmp_path / "checkpoints/step_00001000"
    truncate_largest_array_file(newest)
    arrays, meta = store.restore_latest(training_state(0))
    assert meta["step"] == 500
    assert_identical(arrays, training_state(500))
    (notice,) = store.notices
    assert (
        str(newest) in notice
        and "step_00000500" in notice
        and "bytes, expected" in notice
        and "\n" not in notice
    )
    with pytest.raises(InputError, match="step_00001000 is damaged") as error:
        restore(newest)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["meta.json", "complete.json", "arrays/manifest.ocdbt"])
@pytest.mark.parametrize("harm", ["remove", "empty", "halve", "flip"])
def test_every_kind_of_damage_is_found(store, name, harm):
    path = store.save(1, training_state(1), {"note": "x" * 200})
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if harm != "remove":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]
        file.write_bytes({"empty": b"", "halve": content[:middle], "flip": flipped}[harm])
    assert find_damage(path) is not None
    with pytest.raises(InputError, match="damaged"):
        restore(path)


def test_all_damaged_is_an_error_and_nothing_saved_is_none(store):
    assert store.restore_latest() is None
    for step in (1, 2):
        truncate_largest_array_file(store.save(step, training_state(step), {}))
    with pytest.raises(InputError, match=r"step_00000002.*step_00000001.*no complete checkpoint"):
        store.restore_latest()


@pytest.mark.parametrize("stage", ["_write_arrays", "sync", "file_digest", "_put_in_place"])
def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path, stage):
    """The process is really gone: os._exit runs no handlers, like SIGKILL."""
    program = f"""
        import os, numpy as np
        from jaxatoms.training import checkpoint
        store = checkpoint.CheckpointStore({str(tmp_path / "checkpoints")!r}, keep=1)
        store.save(1, {{"x": np.arange(3)}}, {{}})
        checkpoint.{stage} = lambda *args: os._exit(9)
        store.save(2, {{"x": np.arange(4)}}, {{}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=os.getcwd(), check=False)
    assert done.returncode == 9
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    arrays, meta = store.restore_latest()
    assert meta["step"] == 1 and arrays["x"].tolist() == [0, 1, 2]
    assert resolve_checkpoint(tmp_path).name == "step_00000001"
    store.save(2, {"x": np.arange(4)}, {})
    assert sorted(path.name for path in store.directory.iterdir()) == ["last", "step_00000002"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_replacing_a_step_keeps_it(store, monkeypatch, renames):
    target = store.save(1, {"x": np.arange(3)}, {})
    draft = checkpoint._build(target, {"x": np.arange(4)}, "{}")
    if renames:
        target.rename(target.with_name(f".{target.name}.old"))
    arrays, _ = store.restore_latest()
    assert draft.exists() and arrays["x"].tolist() == [0, 1, 2]


def test_newest_and_best_are_kept(store, tmp_path):
    for step in range(1, 7):
        store.save(step, {"x": np.array(step)}, {}, kind="best" if step == 2 else "last")
    assert store.steps() == [2, 5, 6]
    assert restore(tmp_path / "checkpoints/best")[1]["step"] == 2
    assert restore(tmp_path / "checkpoints/last")[1]["step"] == 6
    assert read_meta(tmp_path) == {"step": 2}  # a run directory means its best
    assert resolve_checkpoint(store.directory / "step_00000005").name == "step_00000005"
    for folder in (tmp_path, tmp_path / "checkpoints"):
        assert resolve_checkpoint(f"{folder}@last").name == "step_00000006"
        assert resolve_checkpoint(f"{folder}@best").name == "step_00000002"
    for name in (f"{tmp_path}@first", f"{tmp_path / 'no'}@last"):
        with pytest.raises(InputError, match="no checkpoint"):
            resolve_checkpoint(name)
    shutil.rmtree(store.directory / "step_00000002")
    with pytest.raises(InputError, match="step_00000002, which is not there"):
        restore(tmp_path / "checkpoints/best")


def test_going_back_to_an_earlier_step_sets_later_ones_aside(store):
    for step in (1, 2, 3):
        store.save(step, {"x": np.array(step)}, {}, kind="best" if step == 3 else "last")
    store.save(2, {"x": np.array(20)}, {})
    assert store.steps() == [2]
    assert store.restore_latest()[0]["x"] == 20
    assert restore(store.directory / "best")[0]["x"] == 3
    assert restore(store.directory / "superseded_step_00000003")[0]["x"] == 3


def test_saving_in_the_background_survives_donation(tmp_path):
    with CheckpointStore(tmp_path, asynchronous=True) as store:
        x = jnp.arange(1000.0)
        store.save(1, {"x": x}, {})
        x = jax.jit(lambda x: x * 0, donate_argnums=0)(x)
        store.save(2, {"x": x}, {})
    np.testing.assert_array_equal(restore(tmp_path / "step_00000001")[0]["x"], np.arange(1000.0))
    assert not restore(tmp_path)[0]["x"].any()


def test_a_failed_background_save_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    store = CheckpointStore(tmp_path / "file" / "checkpoints", asynchronous=True)
    store.save(1, {"x": np.arange(3)}, {})
    with pytest.raises(InputError, match="cannot write checkpoint"):
        store.close()


def test_a_different_model_is_refused(store):
    path = store.save(1, {"params": {"w": np.zeros((3, 4), np.float32)}, "rng": np.zeros(2, np.uint32)}, {})
    for params, words in [
        ({"w": np.zeros((3, 5), np.float32)}, r"float32\[3, 4\] there and float32\[3, 5\] here"),
        ({"w": np.zeros((3, 4), np.float16)}, "float32.*float16"),
        ({"w": np.zeros((3, 4), np.float32), "v": np.zeros(1)}, "lacks 'params/v'"),
        ({"v": np.zeros(1)}, "lacks 'params/v'"),
    ]:
        with pytest.raises(InputError, match=words):
            restore(path, {"params": params})


def test_saved_arrays_the_model_does_not_have_are_refused(store):
    path = store.save(1, {"params": {"w": np.zeros(3), "b": np.zeros(3)}, "rng": np.zeros(2)}, {})
    with pytest.raises(InputError, match="unexpected 'params/b'"):
        restore(path, {"params": {"w": np.zeros(3)}})


def test_what_cannot_be_saved_exactly_is_refused(store):
    with pytest.raises(TypeError, match="key 6"):
        store.save(1, {}, {"references": {6: -1.0}})
    with pytest.raises(ValueError, match="not an array"):
        store.save(1, {"name": "methane"}, {})
    with pytest.raises(ValueError, match="key_data"):
        store.save(1, {"key": jax.random.key(0)}, {})
    with pytest.raises(ValueError, match="keep must be"):
        CheckpointStore(store.directory, keep=0)
    assert store.steps() == []


def test_missing_checkpoint_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        restore(tmp_path / "nowhere")


@pytest.mark.parametrize("known", [True, False], ids=["before writing", "while writing"])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(store, full_disk, monkeypatch, capfd, known):
    """Known from the space reserved at once, or only from one of orbax's threads, which all have a lot to say."""
    state = {"params": {f"w{i}": np.random.default_rng(i).normal(size=(100, 300)) for i in range(20)}}
    store.save(1, state, {}, "best")
    before = sorted(path.name for path in store.directory.iterdir())
    if not known:
        monkeypatch.setattr(checkpoint, "_reserve", lambda *_: None)
    with full_disk(), pytest.raises(InputError) as caught:
        store.save(2, state, {}, "best")
    assert "step_00000002: File too large; earlier checkpoints are kept" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in store.directory.iterdir()) == before
    assert store.restore_latest()[1]["step"] == 1
    store.save(2, state, {})
    assert store.restore_latest()[1]["step"] == 2


def test_a_pointer_that_cannot_be_written_leaves_no_draft(store, monkeypatch):
    store.save(1, {"w": np.ones(3)}, {})

    def full(path, text):
        path.with_name(f".{path.name}.tmp").write_text(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", full)
    with pytest.raises(InputError, match="No space left on device; earlier"):
        store.save(2, {"w": np.ones(3)}, {})
    assert not list(store.directory.glob(".*"))

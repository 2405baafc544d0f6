"""Data parallelism over a mesh: every device holds the parameters and its own padded part of the batch.

Enter: functions of one device's batch. Leave: the same functions of a step's parts, stacked along a leading axis
`[n_device, ...]` that is spread over the mesh. Sums over devices run in float32 (the precision of the gradients).
Works over the devices of one process or of several; with `mesh=None` everything is the plain function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxatoms.graphs.batch import GraphBatch
from jaxatoms.types import InputError

AXIS = "data"


def make_mesh(n_device: int | None = None) -> Mesh | None:
    """A mesh of the first `n_device` (default: all) devices of all processes; None for a single one.

    Raises:
      InputError: there are not so many devices, or several processes would not all take part with all they have.
    """
    devices = jax.devices()
    n = len(devices) if n_device is None else n_device
    if not 1 <= n <= len(devices):
        raise InputError(f"--devices {n}: there are {len(devices)} devices")
    if jax.process_count() > 1 and n != len(devices):
        raise InputError(f"--devices {n}: several processes use all of their {len(devices)} devices")
    return None if n == 1 else jax.make_mesh((n,), (AXIS,), devices=devices[:n])


def n_parts(mesh: Mesh | None) -> int:
    """Parts of a step's batch."""
    return 1 if mesh is None else mesh.size


def own_parts(mesh: Mesh | None) -> list[int]:
    """The parts of this process, ascending."""
    if mesh is None:
        return [0]
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def total_over(mesh: Mesh | None) -> Callable:
    """Sums a value over the devices, inside `global_gradient` and `global_sums`."""
    return (lambda value: value) if mesh is None else lambda value: jax.lax.psum(value, AXIS)


def global_gradient(loss_fn: Callable, mesh: Mesh | None, count_fn: Callable | None = None, accumulate: int = 1):
    """(params, constants, batch, step) -> ((loss, parts), gradient) of the sum of `loss_fn` over a step's batches.

    They are on the devices of the mesh, and on each one after another where `accumulate` > 1. Sums are float32.

    Args:
      loss_fn, count_fn, accumulate: as for `make_update`.
    """
    gradient, total = jax.value_and_grad(loss_fn, has_aux=True), total_over(mesh)

    def local(params, constants, batch, step):
        batch = batch if mesh is None else _first(batch)
        if accumulate > 1:
            return total(_accumulated(gradient, count_fn, total, params, constants, batch, step))
        counts = () if count_fn is None else (total(count_fn(batch)),)
        return total(gradient(params, constants, batch, step, *counts))

    if mesh is None:
        return local

    # check_vma off: the gradient is that of the local share, and its sum is written out above.
    specs = (P(), P(), P(AXIS), P())
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)


def _accumulated(gradient, count_fn, total, params, constants, parts, step):
    """The sum of `gradient` over the batches of `parts` [accumulate, ...], computed one after another."""
    n = jax.tree.leaves(parts)[0].shape[0]
    # Counts first: they need labels alone, and every part's loss is divided by those of the whole step.
    counts = total(jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(count_fn)(parts)))

    def add(sums, numbered):
        i, part = numbered
        return jax.tree.map(jnp.add, sums, gradient(params, constants, part, step * n + i, counts)), None

    shapes = jax.eval_shape(gradient, params, constants, _first(parts), step, counts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(n), parts))[0]


def global_sums(sums_fn: Callable, mesh: Mesh | None) -> Callable:
    """`sums_fn(params, constants, batch)`, a tree of sums over a batch, summed over all devices."""
    if mesh is None:
        return sums_fn

    def local(params, constants, batch):
        return jax.lax.psum(sums_fn(params, constants, _first(batch)), AXIS)

    specs = (P(), P(), P(AXIS))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)


def _first(batch):
    return jax.tree.map(lambda x: x[0], batch)


def place_batch(parts: Sequence[GraphBatch], mesh: Mesh | None, axis: int = 0) -> GraphBatch:
    """This process's parts of one shape -> the global batch on the devices.

    Args:
      axis: where the new axis of the devices goes: `[n_device, ...]`, or 1 for `[n_step, n_device, ...]`.
    """
    if mesh is None:
        (batch,) = parts
        return jax.device_put(batch)
    sharding, devices = NamedSharding(mesh, P(*(None,) * axis, AXIS)), mesh.local_devices

    def spread(*leaves):
        own = [jax.device_put(np.expand_dims(x, axis), d) for x, d in zip(leaves, devices, strict=True)]
        shape = (*leaves[0].shape[:axis], mesh.size, *leaves[0].shape[axis:])
        return jax.make_array_from_single_device_arrays(shape, sharding, own)

    return jax.tree.map(spread, *parts)


def place_state(tree: Any, shardings: Any) -> Any:
    """Arrays onto the devices of their shardings; process 0's values count.

    Args:
      shardings: a prefix of the tree, such as `replicated(mesh)` or `state_shardings`.
    """
    if jax.process_count() > 1:
        tree = multihost_utils.broadcast_one_to_all(tree)
    leaves, structure = jax.tree.flatten(tree)
    own = jax.tree.leaves(jax.tree.broadcast(shardings, tree))
    return jax.tree.unflatten(structure, [_place(x, s) for x, s in zip(leaves, own, strict=True)])


def _place(array, sharding: NamedSharding) -> jax.Array:
    # Through the host: the step donates its state, so no buffer may be shared with the tree that came in.
    host = np.array(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def state_shardings(state, mesh: Mesh, shard_optimizer: bool):
    """Shardings of a `TrainState`: all replicated, or the optimiser's moments and the average spread (ZeRO-1).

    Source: Rajbhandari et al., arXiv 1910.02054, stage 1. The compiler turns the sum of gradients into a
    reduce-scatter where that is cheaper, and gathers the updated parameters.
    """
    whole = jax.tree.map(lambda _: replicated(mesh), state)
    if not shard_optimizer:
        return whole
    spread = lambda tree: jax.tree.map(lambda x: _spread(x.shape, mesh), tree)  # noqa: E731
    return whole._replace(ema=spread(state.ema), opt_state=spread(state.opt_state))


def _spread(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The first axis that all devices can share, or a copy for each."""
    axis = next((i for i, size in enumerate(shape) if size and size % mesh.size == 0), None)
    return NamedSharding(mesh, P() if axis is None else P(*(None,) * axis, AXIS))


def gather(tree: Any, mesh: Mesh | None) -> Any:
    """The same values, whole on every device, so that one process can write them."""
    return tree if mesh is None else _whole(tree, replicated(mesh))


def _whole(tree, sharding):
    same = lambda tree: jax.tree.map(jnp.asarray, tree)  # noqa: E731
    return jax.jit(same, out_shardings=sharding)(tree)

"""Runs Mosaic GPU kernels on a CPU, slowly: an interpreter of the program that Pallas traced.

Pallas' own interpret mode (jax 0.10.1, `jax._src.pallas.mosaic_gpu.interpret`) cannot run the kernels of this project:
it has no wgmma and no accumulators (memory space REGS), no copies from shared to main memory, and its copies from main
to shared memory know whole arrays only.

What this one checks:
- values, with float32 sums of bfloat16 products, rows past the end that read as zeros and are not written;
- waiting: groups of threads run in turn until a barrier stops them, and one that can never go on is an error; a barrier
  that completes twice before it is waited for is one, too;
- order: what runs in the background (TMA copies, wgmma) reads and writes either as early or as late (`late`) as the
  program allows, and shared memory begins as NaN, so that a wait that is missing gives wrong values in one of the two;
- visibility: TMA and wgmma must not read what a group wrote to shared memory and did not commit.
What it does not: races within a group of threads, alignment and layouts in memory, descriptors of TMA, registers, the
approximate exponential of the hardware, and time.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu import core as gpu_core
from jax._src.state import indexing
from jax._src.state import types as state_types


def run(function: Callable, *args, late: bool, backwards: bool = False) -> list[np.ndarray]:
    """What a function with kernels returns, as a flat list.

    Args:
      late: background operations happen when they are waited for, and otherwise at once.
      backwards: the last group of threads runs first.
    """
    jaxpr = jax.make_jaxpr(function)(*args)
    machine = Machine(late, backwards)
    return [np.asarray(x) for x in machine.outer(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args))]


class Memory:
    """An array, and which of its elements a group wrote and did not commit."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.unseen = np.zeros(values.size, bool)

    def places(self, transforms) -> np.ndarray:
        """Flat indices of what a reference with these transforms names; -1 where it lies outside."""
        places = np.arange(self.values.size).reshape(self.values.shape)
        for transform in transforms:
            places = _transformed(places, transform)
        return places

    def read(self, places: np.ndarray) -> np.ndarray:
        """Elements; zeros outside."""
        return np.where(places < 0, np.zeros((), self.values.dtype), self.values.reshape(-1)[places])

    def read_from_background(self, places: np.ndarray) -> np.ndarray:
        """As `read`, by TMA or wgmma."""
        if self.unseen[places].any():
            raise RuntimeError("TMA or wgmma reads what was not committed")
        return self.read(places)

    def write(self, places: np.ndarray, values: np.ndarray):
        """Change elements; nothing outside."""
        inside = places >= 0
        self.values.reshape(-1)[places[inside]] = values[inside]


def _transformed(places: np.ndarray, transform) -> np.ndarray:
    match transform:
        case gpu_core.UnswizzleRef():
            return places
        case gpu_core.UntilingTransform(tiling=(rows, columns)):
            *lead, n_row, n_column, _, _ = places.shape
            return places.swapaxes(-3, -2).reshape(*lead, n_row * rows, n_column * columns)
        case state_types.TransposeTransform(permutation):
            return places.transpose(permutation)
        case indexing.NDIndexer():
            return _indexed(places, transform)
    raise NotImplementedError(f"{transform}")


def _indexed(places: np.ndarray, indexer: indexing.NDIndexer) -> np.ndarray:
    for axis, index in reversed(list(enumerate(indexer.indices))):
        if isinstance(index, indexing.Slice):
            chosen = int(index.start) + np.arange(index.size) * index.stride
            taken = np.take(places, np.minimum(chosen, places.shape[axis] - 1), axis)
            outside = chosen >= places.shape[axis]
            places = np.where(np.expand_dims(outside, tuple(range(1, places.ndim - axis))), -1, taken)
        else:
            places = np.take(places, int(index), axis)
    return places


class Barrier:
    """A barrier of shared memory."""

    def __init__(self, n_arrival: int):
        self.n_arrival, self.arrived, self.completed = n_arrival, 0, 0
        self.waited: dict[int, int] = {}  # phases that each group has waited for
        self.pending: list[Callable[[], None]] = []  # copies that will arrive

    def arrive(self):
        """One arrival."""
        self.arrived += 1
        if self.arrived == self.n_arrival:
            self.arrived, self.completed = 0, self.completed + 1

    def wait(self, group: int) -> Iterator[None]:
        """Yield until the next phase that the group has not waited for is complete."""
        phase = self.waited.get(group, 0)
        self.waited[group] = phase + 1
        while self.completed <= phase:
            if self.pending:
                self.pending.pop(0)()
                self.arrive()
            else:
                yield
        if self.completed > phase + 1:
            raise RuntimeError("a barrier completed twice before it was waited for")


class Product(NamedTuple):
    """A wgmma under way."""

    sums: Memory
    left: tuple[Memory, np.ndarray]
    right: tuple[Memory, np.ndarray]

    def finish(self):
        """Add it to the sums."""
        left, right = (memory.read_from_background(places) for memory, places in (self.left, self.right))
        self.sums.values += left.astype(np.float32) @ right.astype(np.float32)


class Group:
    """What belongs to one group of threads."""

    def __init__(self, index: int, coordinates: dict, shared: list):
        self.index, self.coordinates, self.shared = index, coordinates, shared
        self.products: list[Product] = []
        self.stores: list[Callable[[], None]] = []
        self.written: list[tuple[Memory, np.ndarray]] = []


class Machine:
    """Interprets traced programs."""

    def __init__(self, late: bool, backwards: bool):
        self.late, self.backwards = late, backwards

    def outer(self, jaxpr, consts, args) -> list:
        """Outside of a kernel."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        for eqn in jaxpr.eqns:
            given = [_read(values, var) for var in eqn.invars]
            name, params = eqn.primitive.name, eqn.params
            inner = next((params[key] for key in ("jaxpr", "call", "call_jaxpr") if key in params), None)
            if name == "core_map":
                self.grid(params["jaxpr"], params["mesh"], given)
                out = []
            elif name == "run_state":
                memories = [Memory(np.array(x)) for x in given]
                self.outer(inner, [], memories)
                out = [memory.values for memory in memories]
            elif inner is not None and "core_map" in str(inner):
                out = self.outer(inner.jaxpr, inner.consts, given)
            else:
                out = _bound(eqn, given)
            values |= dict(zip(eqn.outvars, out, strict=True))
        return [_read(values, var) for var in jaxpr.outvars]

    def grid(self, jaxpr, mesh, memories):
        """All blocks of a kernel, one after another; its groups of threads in turn."""
        names = jaxpr.constvars or jaxpr.invars
        for block in itertools.product(*map(range, mesh.grid)):
            coordinates, shared = dict(zip(mesh.grid_names, block, strict=True)), []
            groups = [Group(i, coordinates | {mesh.thread_name: i}, shared) for i in range(mesh.num_threads)]
            running = [self.inner(jaxpr, dict(zip(names, memories, strict=True)), group) for group in groups]
            running = running[::-1] if self.backwards else running
            while running:
                before = len(running), [self.progress(group) for group in groups]
                running = [one for one in running if next(one, "ended") != "ended"]
                if before == (len(running), [self.progress(group) for group in groups]):
                    raise RuntimeError("every group of threads waits for another one")

    def progress(self, group: Group):
        """Something that changes whenever the group goes on."""
        return group.coordinates.get("steps")

    def inner(self, jaxpr, values: dict, group: Group):
        """A generator that runs a group through a kernel and yields where it has to wait; returns the results."""
        for eqn in jaxpr.eqns:
            group.coordinates["steps"] = group.coordinates.get("steps", 0) + 1
            given = [_read(values, var) for var in eqn.invars]
            special = getattr(self, f"_{eqn.primitive.name}", None)
            out = _bound(eqn, given) if special is None else (yield from special(eqn, given, group))
            values |= dict(zip(eqn.outvars, out or [], strict=True))
        return [_read(values, var) for var in jaxpr.outvars]

    def _axis_index(self, eqn, given, group):
        return [np.int32(group.coordinates[eqn.params["axis_name"]])]
        yield

    def _cond(self, eqn, given, group):
        branch = eqn.params["branches"][int(given[0])]
        return (yield from self.inner(branch.jaxpr, dict(zip(branch.jaxpr.invars, given[1:], strict=True)), group))

    def _scan(self, eqn, given, group):
        params, body = eqn.params, eqn.params["jaxpr"]
        assert len(given) == params["num_consts"] + params["num_carry"], "arrays that are scanned over"
        fixed, carried = given[: params["num_consts"]], given[params["num_consts"] :]
        for _ in range(params["length"]):
            values = dict(zip(body.jaxpr.invars, [*fixed, *carried], strict=True))
            carried = yield from self.inner(body.jaxpr, values, group)
        return carried

    def _run_scoped(self, eqn, given, group):
        inner = eqn.params["jaxpr"]
        if not eqn.params["collective_axes"]:
            made = [_allocated(var.aval) for var in inner.invars]
        else:  # the first group to come makes what all share
            if not group.shared:
                group.shared.extend(_allocated(var.aval) for var in inner.invars)
            made = group.shared
        values = dict(zip([*inner.constvars, *inner.invars], [*given, *made], strict=True))
        return (yield from self.inner(inner, values, group))

    def _get(self, eqn, given, group):
        memory, transforms = given[0], jax.tree.unflatten(eqn.params["tree"], given[1:])
        return [memory.read(memory.places(transforms))]
        yield

    def _swap(self, eqn, given, group):
        memory, value, transforms = given[0], given[1], jax.tree.unflatten(eqn.params["tree"], given[2:])
        places = memory.places(transforms)
        before = memory.read(places)
        memory.write(places, np.asarray(value))
        memory.unseen[places] = True
        group.written.append((memory, places))
        return [before]
        yield

    def _commit_smem(self, eqn, given, group):
        while group.written:
            memory, places = group.written.pop()
            memory.unseen[places] = False
        return []
        yield

    def _copy_gmem_to_smem(self, eqn, given, group):
        source, target, barriers = given[:3]
        named = [eqn.params[f"{one}_transforms_treedef"] for one in ("src", "dst", "barrier")]
        source_at, target_at, barrier_at = _trees(named, given[3:])
        source_places, target_places = source.places(source_at), target.places(target_at)
        barrier = barriers[_number(barrier_at)]

        def copy():
            target.write(target_places, source.read(source_places))

        if self.late:
            barrier.pending.append(copy)
        else:
            copy()
            barrier.arrive()
        return []
        yield

    def _copy_smem_to_gmem(self, eqn, given, group):
        source, target = given[:2]
        source_at, target_at = _trees([eqn.params[f"{one}_transforms_treedef"] for one in ("src", "dst")], given[2:])
        source_places, target_places = source.places(source_at), target.places(target_at)
        source.read_from_background(source_places)

        def copy():
            target.write(target_places, source.read_from_background(source_places))

        group.stores.append(copy)
        if not self.late:
            group.stores.pop()()
            group.stores.append(lambda: None)
        return []
        yield

    def _wait_smem_to_gmem(self, eqn, given, group):
        left = int(given[0]) if given else eqn.params["n"]
        while len(group.stores) > left:
            group.stores.pop(0)()
        return []
        yield

    def _wgmma_ref(self, eqn, given, group):
        sums, left, right = given[:3]
        trees = [eqn.params[f"{one}_transforms_tree"] for one in ("acc", "a", "b")]
        _, left_at, right_at = _trees(trees, given[3:])
        group.products.append(Product(sums, (left, left.places(left_at)), (right, right.places(right_at))))
        if not self.late:
            group.products.pop().finish()
        return []
        yield

    def _wgmma_wait(self, eqn, given, group):
        while len(group.products) > int(given[0]):
            group.products.pop(0).finish()
        return []
        yield

    def _wgmma_accumulator_deref_p(self, eqn, given, group):
        while len(group.products) > eqn.params["wait_n"]:
            group.products.pop(0).finish()
        return [given[0].values.copy()]
        yield

    def _barrier_arrive(self, eqn, given, group):
        given[0][_number(jax.tree.unflatten(eqn.params["transforms_treedef"], given[1:]))].arrive()
        return []
        yield

    def _barrier_wait(self, eqn, given, group):
        barrier = given[0][_number(jax.tree.unflatten(eqn.params["transforms_treedef"], given[1:]))]
        yield from barrier.wait(group.index)
        return []

    def _set_max_registers_p(self, eqn, given, group):
        return []
        yield


def _read(values: dict, var) -> Any:
    return var.val if isinstance(var, jax.extend.core.Literal) else values[var]


def _bound(eqn, given) -> list:
    with jax.default_matmul_precision("highest"):
        out = eqn.primitive.bind(*map(jnp.asarray, given), **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _trees(trees, leaves) -> list:
    """The transforms of several references, whose leaves stand one after another."""
    found, leaves = [], list(leaves)
    for tree in trees:
        count = 0 if tree is None else tree.num_leaves
        found.append(() if tree is None else jax.tree.unflatten(tree, leaves[:count]))
        leaves = leaves[count:]
    return found


def _number(transforms) -> int:
    return int(transforms[0].indices[0])


def _allocated(aval) -> Any:
    inner = aval.inner_aval
    if isinstance(inner.dtype, gpu_core.BarrierType):
        return [Barrier(inner.dtype.num_arrivals) for _ in range(inner.shape[0])]
    begin = 0 if isinstance(aval, gpu_core.WGMMAAbstractAccumulatorRef) else np.nan
    return Memory(np.full(inner.shape, begin, inner.dtype))

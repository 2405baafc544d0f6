"""The kernels for NVIDIA Hopper GPUs (H100, H200) in Pallas Mosaic GPU: TMA copies, bfloat16 wgmma, float32 sums.

A block of 128 rows belongs to one multiprocessor. Two groups of 128 threads multiply 64 rows each, and a third one
copies the weights into shared memory, tile by tile and three tiles ahead. The rows of the first factor stay in shared
memory, and so does what the first product leaves for the second one: main memory sees neither. Both passes have the
same shape, a product, a function of each element, another product, another function (`_chain`):

    forward    act(x w1) w2            x and the result are read and written once
    backward   (g2 w2^T * s1) w1^T     with g2 = g s2 / sqrt(2)

Where a gradient follows, the forward pass also writes a1 = act(x w1) and the slopes s1 and s2 of both activations, and
keeps x: the backward pass then needs 2 products and no exponential, and writes g1 and g2, of which cuBLAS makes the
gradients of the weights, x^T g1 and a1^T g2. In arrays [n, c] of bfloat16 this is

                                        forward    backward          products
    slopes and a1 kept (this)           1 + 4      3 + 3             2 + 2
    pre-activations y1 and y2 kept      1 + 3      3 + 4 (a1 too)    2 + 2
    x alone kept, the rest recomputed   1 + 1      2 + 4             2 + 4

read + written, without the gradients of the weights, which are the same. For c = 512 an array takes as long as 0.36 of
a product at 3.8 TB/s and 700 TFLOP/s. If copies and products overlap, the rows take as long as 4.2, 4.5 and 6.0
products. The first needs one array more of memory than the second until the backward pass, and less shared memory in
it. Not counted: the second product reads most of x, and all of g, once more, from the L2 cache if it is still there.

Rows of a block past the end are zeros when read and are not written (TMA does both). Mosaic copies tiles of 8 rows, so
an n that is not a multiple of 8 is padded first, at the price of a copy; budgets of edges are multiples.

Each block reads both weights from the L2 cache, 128 operations a byte, so 700 TFLOP/s would need 5.5 TB/s of it. If
that is what limits the kernels, blocks that share copies (clusters with multicast) are the next thing to try.

NOT MEASURED on hardware. What is known comes from the compiler and from `tests/fixtures/mosaic_gpu.py`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.residual_pair.arguments import GPU_WIDTHS
from kernels.residual_pair.reference import GAIN, HALF, product

GROUPS, ROWS = 2, 64  # groups of threads that multiply, and rows of each; wgmma has 64
COLUMNS = 64  # of a piece: 128 bytes, the widest row that TMA can lay out for wgmma
OUTPUTS = 128  # columns of a product at a time: 64 registers of float32 per thread
STAGES = 3  # tiles of weights in shared memory
SPARE = 3  # further pieces [64, 64] of each group
# Registers per thread, of those that multiply and of those that copy. A block begins with 168 for each of its 384
# threads, the most that a multiprocessor has for so many; groups that ask for more wait for those that give some back.
REGISTERS = (208, 88)
MULTIPLE = 8  # rows of a tile in shared memory: copies need whole tiles in main memory too
_LAYOUT = (plgpu.TilingTransform((8, COLUMNS)), plgpu.SwizzleTransform(128))  # as wgmma reads it
_BLOCK, _GROUP = "rows", "group"  # axes of the grid and of a block
_NAMES = inspect.signature(plgpu.kernel).parameters  # jax 0.11 has other names than 0.10 for these
_OUT, _SCRATCH = ("out_type", "scratch_types") if "out_type" in _NAMES else ("out_shape", "scratch_shapes")


class _Shared(NamedTuple):
    """Shared memory of a block."""

    rows: Any  # [GROUPS, c / COLUMNS, ROWS, COLUMNS]: the first factor
    spare: Any  # [GROUPS, SPARE, ROWS, COLUMNS]
    tiles: Any  # [STAGES, ...]: weights
    rows_here: Any  # barriers: a piece of `rows` has arrived
    spare_here: Any  # a piece of `spare` has arrived
    tile_here: Any  # a tile has arrived
    tile_read: Any  # all groups have multiplied by a tile


class _Pass(NamedTuple):
    """What the two passes differ in; pieces are numbered from left to right."""

    turned: bool  # products with transposed weights, the second one first
    load: Callable  # (group) -> None: makes the first factor, or starts its copies
    first: Callable  # (group, piece, y, place) -> what the second product multiplies, [ROWS, COLUMNS]
    between: Callable  # (group, pieces) -> None: called when pieces of the second factor are in shared memory
    second: Callable  # (group, piece, y, place) -> the result, [ROWS, COLUMNS]
    fetch_first: Callable  # (group, piece, place) -> None: starts copies that `first` needs
    addend: Any  # what `second` finds in its place of shared memory: an array in main memory
    addend_here: bool  # the first factor is the addend, and still on its way when `load` returns
    out: Any  # main memory of the result


class _Group:
    """One group of threads that multiplies: its rows, and its share of shared memory."""

    def __init__(self, shared: _Shared, width: int):
        self.shared = shared
        self.n_piece, self.n_output = width // COLUMNS, width // OUTPUTS
        self.multiplied = 0  # tiles so far
        self.locate()

    def locate(self):
        """Find out anew which group this is.

        The compiler cannot know that it is the same one as before, and so computes addresses again instead of keeping
        some hundred of them in registers from the first use to the last one.
        """
        self.index = jax.lax.axis_index(_GROUP)
        self.start = (jax.lax.axis_index(_BLOCK) * GROUPS + self.index) * ROWS

    def row(self, piece: int):
        """A piece of the first factor."""
        return self.shared.rows.at[self.index, piece]

    def row_here(self, piece: int):
        """A piece of the first factor, once it has arrived."""
        self.wait_row(piece)
        return self.row(piece)

    def spare(self, place: int):
        """A further piece."""
        return self.shared.spare.at[self.index, place]

    def main(self, array, piece: int):
        """A piece of the group's rows in main memory."""
        return array.at[pl.ds(self.start, ROWS), pl.ds(piece * COLUMNS, COLUMNS)]

    def fetch_row(self, array, piece: int, place: int):
        """Start the copy of a piece into `rows`."""
        barrier = self.shared.rows_here.at[self.index * self.n_piece + place]
        plgpu.copy_gmem_to_smem(self.main(array, piece), self.row(place), barrier)

    def wait_row(self, place: int):
        """Wait for the copy into this place."""
        plgpu.barrier_wait(self.shared.rows_here.at[self.index * self.n_piece + place])

    def fetch_spare(self, array, piece: int, place: int):
        """Start the copy of a piece into `spare`."""
        barrier = self.shared.spare_here.at[self.index * SPARE + place]
        plgpu.copy_gmem_to_smem(self.main(array, piece), self.spare(place), barrier)

    def wait_spare(self, place: int):
        """Wait for the copy into this place."""
        plgpu.barrier_wait(self.shared.spare_here.at[self.index * SPARE + place])

    def write(self, place, value, array=None, piece: int = 0):
        """Write a value into a piece of shared memory, and start its copy to main memory if an array is given."""
        place[...] = value.astype(jnp.bfloat16)
        plgpu.commit_smem()
        if array is not None:
            plgpu.copy_smem_to_gmem(place, self.main(array, piece))

    def stage(self, value, array, piece: int):
        """Write a value to main memory through the last spare piece, once the copies before have left theirs."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self.write(self.spare(SPARE - 1), value, array, piece)

    def product(self, factor: Callable, turned: bool) -> jax.Array:
        """[ROWS, OUTPUTS] float32: the next columns of a product; `factor(piece)` is a piece of its first factor.

        The loop is written out: carried through a loop, sums take twice their registers.
        """

        def multiply(sums):
            for piece in range(self.n_piece):
                stage = (self.multiplied + piece) % STAGES
                plgpu.barrier_wait(self.shared.tile_here.at[stage])
                tile = self.shared.tiles.at[stage]
                plgpu.wgmma(sums, factor(piece), plgpu.transpose_ref(tile, (1, 0)) if turned else tile)
                plgpu.wgmma_wait(1)  # the tile before is read, while this one is multiplied
                if piece:
                    plgpu.barrier_arrive(self.shared.tile_read.at[(stage - 1) % STAGES])
            found = sums[...]  # waits for the last one
            plgpu.barrier_arrive(self.shared.tile_read.at[stage])
            return found

        found = pl.run_scoped(multiply, plgpu.ACC((ROWS, OUTPUTS), jnp.float32))
        self.multiplied += self.n_piece
        return found


def _chain(group: _Group, do: _Pass):
    """Both products of a group's rows.

    The second factor is made while the first one is still needed, so it waits where there is room: its first two pieces
    in `spare`, others in registers until the last columns of the first product are there and `rows` are free, the last
    two nowhere.
    """
    halves, waiting = OUTPUTS // COLUMNS, {}
    for output in range(group.n_output):
        group.locate()
        last = output == group.n_output - 1
        pieces = [output * halves + half for half in range(halves)]
        for half, piece in enumerate(pieces[: halves if output == 0 else 1]):
            do.fetch_first(group, piece, half if output == 0 else SPARE - 1)
        y = group.product(group.row_here if do.addend_here and output == 0 else group.row, do.turned)
        group.locate()
        if last:  # the first factor has been multiplied; copies of it to main memory may still be under way
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for piece, value in waiting.items():
                group.write(group.row(piece), value)
            do.between(group, tuple(waiting))
        for half, piece in enumerate(pieces):
            if output and half:
                do.fetch_first(group, piece, SPARE - 1)
            columns = y[:, half * COLUMNS : (half + 1) * COLUMNS]
            value = do.first(group, piece, columns, half if output == 0 else SPARE - 1)
            if output == 0 or last:
                group.write(group.spare(half) if output == 0 else group.row(piece), value)
                do.between(group, (piece,))
            else:
                waiting[piece] = value.astype(jnp.bfloat16)
    for output in range(group.n_output):
        pieces = [output * halves + half for half in range(halves)]
        group.locate()
        fetched = output > 0 or not do.addend_here
        if fetched:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for half, piece in enumerate(pieces):
                group.fetch_row(do.addend, piece, half)
        y = group.product(partial(_second_factor, group), do.turned)
        group.locate()
        for half, piece in enumerate(pieces):
            if fetched:
                group.wait_row(half)
            columns = y[:, half * COLUMNS : (half + 1) * COLUMNS]
            group.write(group.row(half), do.second(group, piece, columns, group.row(half)), do.out, piece)
    plgpu.wait_smem_to_gmem(0)


def _second_factor(group: _Group, piece: int):
    return group.spare(piece) if piece < OUTPUTS // COLUMNS else group.row(piece)


def _stream(w1, w2, shared: _Shared, width: int, turned: bool):
    """Copy the tiles of both weights in the order in which they are multiplied; each waits until one is read."""
    n_piece, count = width // COLUMNS, width // COLUMNS * (width // OUTPUTS)

    def copy(weights, before: int, tile: jax.Array, _):
        stage = jax.lax.rem(before + tile, STAGES)

        @pl.when(before + tile >= STAGES)
        def _():
            plgpu.barrier_wait(shared.tile_read.at[stage])

        rows = pl.ds(jax.lax.rem(tile, n_piece) * COLUMNS, COLUMNS)
        columns = pl.ds(jax.lax.div(tile, n_piece) * OUTPUTS, OUTPUTS)
        source = weights.at[columns, rows] if turned else weights.at[rows, columns]
        plgpu.copy_gmem_to_smem(source, shared.tiles.at[stage], shared.tile_here.at[stage])

    for i, weights in enumerate((w2, w1) if turned else (w1, w2)):
        jax.lax.fori_loop(0, count, partial(copy, weights, i * count), None)


def _run(shared: _Shared, w1, w2, width: int, do: _Pass):
    """The whole block."""

    @pl.when(jax.lax.axis_index(_GROUP) < GROUPS)
    def multiply():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        group = _Group(shared, width)
        do.load(group)
        _chain(group, do)

    @pl.when(jax.lax.axis_index(_GROUP) == GROUPS)
    def copy():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        _stream(w1, w2, shared, width, do.turned)


def _activation(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scaled SiLU, its slope)"""
    s = jax.nn.sigmoid(y)
    return y * s * GAIN, s * (1 + y * (1 - s)) * GAIN


def _forward_body(x, w1, w2, out, *kept, **scratch):
    """kept: a1, s1, s2, or none of them."""
    a1, s1, s2 = kept or (None, None, None)

    def load(group):
        for piece in range(group.n_piece):
            group.fetch_row(x, piece, piece)

    def first(group, piece, y, place):
        value, slope = _activation(y)
        if kept:
            group.stage(slope, s1, piece)
        return value

    def between(group, pieces):
        for piece in pieces if kept else ():
            plgpu.copy_smem_to_gmem(_second_factor(group, piece), group.main(a1, piece))

    def second(group, piece, y, place):
        value, slope = _activation(y)
        if kept:
            group.stage(slope, s2, piece)
        return (place[...].astype(jnp.float32) + value) * HALF

    nothing = lambda group, piece, place: None  # noqa: E731
    do = _Pass(False, load, first, between, second, nothing, x, True, out)
    _run(_Shared(**scratch), w1, w2, x.shape[1], do)


def _backward_body(g, s1, s2, w1, w2, gx, g1, g2, **scratch):
    def load(group):
        for piece in range(group.n_piece):
            group.fetch_row(g, piece, piece)
        for piece in range(SPARE):
            group.fetch_spare(s2, piece, piece)
        for piece in range(group.n_piece):
            place = piece % SPARE
            group.wait_row(piece)
            group.wait_spare(place)
            through = group.row(piece)[...].astype(jnp.float32) * HALF
            value = through * group.spare(place)[...].astype(jnp.float32)
            group.write(group.row(piece), value, g2, piece)
            if piece + SPARE < group.n_piece:
                group.fetch_spare(s2, piece + SPARE, place)

    def fetch_first(group, piece, place):
        group.fetch_spare(s1, piece, place)

    def first(group, piece, y, place):
        group.wait_spare(place)
        return y * group.spare(place)[...].astype(jnp.float32)

    def between(group, pieces):
        for piece in pieces:
            plgpu.copy_smem_to_gmem(_second_factor(group, piece), group.main(g1, piece))

    def second(group, piece, y, place):
        return place[...].astype(jnp.float32) * HALF + y

    do = _Pass(True, load, first, between, second, fetch_first, g, False, gx)
    _run(_Shared(**scratch), w1, w2, g.shape[1], do)


def _call(body: Callable, n_out: int, like: jax.Array, turned: bool, name: str) -> Callable:
    """The kernel of a body over blocks of rows; its results are `n_out` arrays of this shape."""
    n, c = like.shape
    tile = (OUTPUTS, COLUMNS) if turned else (COLUMNS, OUTPUTS)
    shared = partial(plgpu.SMEM, dtype=jnp.bfloat16, transforms=_LAYOUT)
    return plgpu.kernel(
        body,
        **{_OUT: [jax.ShapeDtypeStruct(like.shape, jnp.bfloat16)] * n_out},
        **{_SCRATCH: _Shared(
            rows=shared((GROUPS, c // COLUMNS, ROWS, COLUMNS)),
            spare=shared((GROUPS, SPARE, ROWS, COLUMNS)),
            tiles=shared((STAGES, *tile)),
            rows_here=plgpu.Barrier(num_barriers=GROUPS * c // COLUMNS),
            spare_here=plgpu.Barrier(num_barriers=GROUPS * SPARE),
            tile_here=plgpu.Barrier(num_barriers=STAGES),
            tile_read=plgpu.Barrier(num_arrivals=GROUPS, num_barriers=STAGES),
        )._asdict()},
        grid=(pl.cdiv(n, GROUPS * ROWS),),
        grid_names=(_BLOCK,),
        num_threads=GROUPS + 1,
        thread_name=_GROUP,
        kernel_name=name,
        # The barriers that Pallas sets before copies are needed: without them (`unsafe_no_auto_barriers`) a piece of
        # `spare` could be overwritten while other warps of the group still read it.
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


# Called as functions of their own, the layers of a network are lowered and compiled once for all of one shape.
@partial(jax.jit, static_argnames="keep")
def forward(x: jax.Array, w1: jax.Array, w2: jax.Array, keep: bool) -> list[jax.Array]:
    """[the result], or with `keep` [the result, a1, s1, s2]: what the gradient needs; all [n, c] bfloat16."""
    return _call(_forward_body, 4 if keep else 1, x, False, "residual_pair_forward")(x, w1, w2)


@jax.jit
def backward(g: jax.Array, s1: jax.Array, s2: jax.Array, w1: jax.Array, w2: jax.Array) -> list[jax.Array]:
    """[gx, g1, g2], the gradients of x, x w1 and a1 w2; all [n, c] bfloat16."""
    return _call(_backward_body, 3, g, True, "residual_pair_backward")(g, s1, s2, w1, w2)


def residual_pair(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """(x + act(act(x w1) w2)) / sqrt(2) in bfloat16, for GPUs of compute capability 9.0; differentiates once.

    Under `jax.vmap` the kernels get one more axis of blocks.

    Args:
      x: [n, c] bfloat16, n > 0 of any value, c one of `GPU_WIDTHS`.
      w1, w2: [c, c] float32 or bfloat16, used in bfloat16.

    Raises:
      ValueError: shapes that do not belong together, another width (between the products a block of width 1024, that
        of variant L, fits neither into shared memory nor into registers), or another type of x.
    """
    n, c = x.shape
    if n == 0 or w1.shape != (c, c) or w2.shape != (c, c):
        raise ValueError(f"expected x [n, c], n > 0, and weights [c, c]; got {x.shape}, {w1.shape}, {w2.shape}")
    if c not in GPU_WIDTHS:
        raise ValueError(f"the kernel for GPUs has widths {', '.join(map(str, GPU_WIDTHS))}, got {c}; use XLA")
    if x.dtype != jnp.bfloat16:
        raise ValueError(f"the kernel for GPUs takes x in bfloat16, got {x.dtype}; use XLA")
    missing = -n % MULTIPLE
    return _pair(jnp.pad(x, ((0, missing), (0, 0))), w1, w2)[:n] if missing else _pair(x, w1, w2)


@jax.custom_vjp
def _pair(x, w1, w2):
    return forward(x, *_rounded(w1, w2), keep=False)[0]


def _save(x, w1, w2):
    out, a1, s1, s2 = forward(*_only_once((x, *_rounded(w1, w2))), keep=True)
    return out, (x, w1, w2, a1, s1, s2)


def _gradients(kept, g):
    x, w1, w2, a1, s1, s2 = kept
    gx, g1, g2 = backward(*_only_once((g, s1, s2, *_rounded(w1, w2))))
    return gx, product(x, g1, (0, 0)).astype(w1.dtype), product(a1, g2, (0, 0)).astype(w2.dtype)


_pair.defvjp(_save, _gradients)


def _rounded(w1, w2):
    return w1.astype(jnp.bfloat16), w2.astype(jnp.bfloat16)


@jax.custom_jvp
def _only_once(arrays):
    """The arrays; differentiating what is made of them is an error that says why."""
    return arrays


@_only_once.defjvp
def _refuse(primals, tangents):
    raise ValueError("the kernel for GPUs differentiates once; gradient forces need the implementation xla")

"""The parameters of a model in training as one vector.

Hundreds of arrays cost an optimiser hundreds of operations, which a GPU launches one by one and every compiler compiles
one by one. Here optimiser, average, norm and the sum over devices see a single vector, and a model its arrays, which
are slices of it. Checkpoints hold the arrays under their own names (`unpacked`, `packed_like`).
"""

import dataclasses
import functools
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxatoms.ops.target import platform

# The vector's length is a multiple of this, so that it can be spread evenly over up to 2,048 devices (ZeRO-1).
MULTIPLE = 2**11 * 3 * 5


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each array of a tree lies in the vector: in the tree's order, one after another, then zeros."""

    structure: Any  # PyTreeDef
    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Where each array ends."""
        return np.cumsum([prod(shape) for shape in self.shapes]).tolist()

    @property
    def size(self) -> int:
        """The vector's length."""
        return -(-self.ends[-1] // MULTIPLE) * MULTIPLE

    def split(self, vector) -> Any:
        """The tree whose arrays are slices of the vector."""
        pieces = zip([0, *self.ends], self.ends, self.shapes)
        return jax.tree.unflatten(self.structure, [vector[a:b].reshape(shape) for a, b, shape in pieces])

    def join(self, tree, xp=jnp):
        """The vector of a tree; `xp`: the module of its arrays."""
        leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
        return xp.concatenate([*leaves, xp.zeros(self.size - self.ends[-1], leaves[0].dtype)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatParams:
    """A tree of arrays of one dtype as a vector; itself a tree with one leaf."""

    vector: Any
    layout: Layout = dataclasses.field(metadata={"static": True})

    def tree(self):
        """The arrays, inside a traced function."""
        return _split(self.layout, self.vector)


# The gradient is written out because that of a slice is a padded copy of the whole vector, for every array. On a GPU it
# is put together before anything reads it: else XLA puts 300 arrays together inside the optimiser's kernel, which then
# takes LLVM minutes to compile (175 instead of 24 s for a step of variant S, jax 0.10.1).
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _split(layout: Layout, vector):
    return layout.split(vector)


def _joined(layout: Layout, _, gradients):
    vector = layout.join(gradients)
    return (jax.lax.optimization_barrier(vector) if platform() == "gpu" else vector,)


_split.defvjp(lambda layout, vector: (layout.split(vector), None), _joined)


def packed(tree: Any) -> FlatParams:
    """A tree of arrays, or of shapes, as a vector. The arrays are given up: their memory is freed.

    Raises:
      ValueError: the arrays have several dtypes.
    """
    leaves, structure = jax.tree.flatten(tree)
    dtypes = {np.dtype(leaf.dtype) for leaf in leaves}
    if len(dtypes) != 1:
        raise ValueError(f"parameters of one model have the dtypes {sorted(map(str, dtypes))}; convert them to one")
    layout = Layout(structure, tuple(leaf.shape for leaf in leaves))
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return FlatParams(jax.ShapeDtypeStruct((layout.size,), *dtypes), layout)
    vector = jnp.array(layout.join(jax.tree.map(np.asarray, tree), np))  # a copy: steps donate what they are given
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return FlatParams(vector, layout)


def flattened(model: Any, shapes_only: bool = False) -> Any:
    """A `models.registry.PureModel` for training: of its parameters as a vector, which takes them over (`packed`).

    Args:
      shapes_only: for a step that is compiled and not run: the parameters become shapes and are not taken over.
    """
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    params = jax.tree.map(shape, model.params) if shapes_only else model.params

    def of_vector(function: Callable) -> Callable:
        return lambda params, *args, **options: function(params.tree(), *args, **options)

    return model._replace(
        params=packed(params), apply=of_vector(model.apply), node_features=of_vector(model.node_features)
    )


def per_parameter(function: Callable, values: Any, *numbers: Any) -> Any:
    """`function(value, number, ...)` for every parameter, elementwise in the value.

    Args:
      values: a tree of arrays, or `FlatParams`: then the function sees runs of parameters that have the same numbers.
      numbers: trees like the parameters, of Python numbers.
    """
    if not isinstance(values, FlatParams):
        return jax.tree.map(function, values, *numbers)
    rows = list(zip(*map(jax.tree.leaves, numbers), strict=True))
    ends = values.layout.ends
    last = [i for i in range(len(rows)) if i + 1 == len(rows) or rows[i] != rows[i + 1]]
    stops = [ends[i] for i in last[:-1]] + [values.layout.size]  # the zeros at the end go with the last run
    parts = [function(values.vector[a:b], *rows[i]) for a, b, i in zip([0, *stops], stops, last)]
    return FlatParams(jnp.concatenate(parts) if len(parts) > 1 else parts[0], values.layout)


def unpacked(tree: Any) -> Any:
    """The tree with every `FlatParams` in it as its arrays, in host memory."""
    return _replace(tree, lambda node: node.layout.split(np.asarray(node.vector)))


def placeholders(tree: Any) -> Any:
    """The tree with every `FlatParams` in it as host arrays of the right shapes that take no memory."""

    def stand_ins(node):
        arrays = [np.broadcast_to(np.zeros((), node.vector.dtype), shape) for shape in node.layout.shapes]
        return jax.tree.unflatten(node.layout.structure, arrays)

    return _replace(tree, stand_ins)


def packed_like(example: Any, tree: Any) -> Any:
    """The inverse of `unpacked`: `tree` with vectors, on the devices, wherever `example` has them."""

    def one(node, part):
        if not isinstance(node, FlatParams):
            return part
        committed = getattr(node.vector, "committed", True)  # an uncommitted array stays free to move, as it was
        sharding = getattr(node.vector, "sharding", None) if committed else None
        return FlatParams(jax.device_put(node.layout.join(part, np), sharding), node.layout)

    return jax.tree.map(one, example, tree, is_leaf=lambda node: isinstance(node, FlatParams))


def _replace(tree: Any, function: Callable[[FlatParams], Any]) -> Any:
    is_flat = lambda node: isinstance(node, FlatParams)  # noqa: E731
    return jax.tree.map(lambda node: function(node) if is_flat(node) else node, tree, is_leaf=is_flat)

"""Training a part of a model: the rest is constant, and dense layers may learn a correction of low rank (LoRA).

The optimiser sees the trained arrays alone, so its moments and the average exist for these alone. Checkpoints hold the
whole model with corrections added, under the usual names, so that whatever reads them needs to know nothing of this.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, Any]  # by the parameters' names, "backbone/int_blocks/0/dense_ca/kernel"
DOWN, UP = "#down", "#up"  # after a kernel's name: the two factors of its correction


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which parameters are trained.

    Attributes:
      structure: of the whole tree of parameters.
      names: of all parameters, in its order.
      trained: those that are trained whole.
      corrected: kernels that get a correction of rank `rank`: kernel + down @ up.
    """

    structure: Any
    names: tuple[str, ...]
    trained: frozenset[str]
    corrected: frozenset[str] = frozenset()
    rank: int = 0

    def split(self, params: Any, seed: int) -> tuple[Arrays, Arrays]:
        """(what is trained, what stays as it is) of a tree of parameters.

        Corrections begin at zero: `up` is zero, and `down` [..., n_in, rank] normal with a variance of 1 / n_in.
        """
        leaves = dict(zip(self.names, jax.tree.leaves(params), strict=True))
        trained = {name: leaf for name, leaf in leaves.items() if name in self.trained}
        keys = jax.random.split(jax.random.key(seed), len(self.names))
        for name, key in zip(self.names, keys, strict=True):
            if name in self.corrected:
                trained |= _factors(name, leaves[name], self.rank, key)
        return trained, {name: leaf for name, leaf in leaves.items() if name not in self.trained}

    def merged(self, trained: Arrays, frozen: Arrays) -> Any:
        """The whole tree of parameters, with corrections added."""
        return jax.tree.unflatten(self.structure, [self._leaf(name, trained, frozen) for name in self.names])

    def _leaf(self, name: str, trained: Arrays, frozen: Arrays) -> Any:
        if name in self.trained:
            return trained[name]
        if name not in self.corrected:
            return frozen[name]
        # Full precision: the same weights for training and for the checkpoint, whatever the policy of products.
        correction = jnp.matmul(trained[name + DOWN], trained[name + UP], precision="highest")
        return frozen[name] + correction

    def of_trained(self, tree: Any) -> Arrays:
        """Numbers of the trained arrays, of a tree with one number per parameter; a correction has its kernel's."""
        numbers = dict(zip(self.names, jax.tree.leaves(tree), strict=True))
        own = {name: numbers[name] for name in self.names if name in self.trained}
        return own | {name + end: numbers[name] for name in self.names if name in self.corrected for end in (DOWN, UP)}

    def applied(self, function: Callable) -> Callable:
        """A function of (whole parameters, constants, ...) as one of (trained, {"model": constants, "frozen"}, ...)."""

        def of_trained(trained, constants, *args, **options):
            whole = self.merged(trained, constants["frozen"])
            return function(whole, constants["model"], *args, **options)

        return of_trained


def _factors(name: str, kernel: Any, rank: int, key) -> Arrays:
    *lead, n_in, n_out = kernel.shape
    down = jax.random.normal(key, (*lead, n_in, rank), kernel.dtype) / np.sqrt(n_in)
    return {name + DOWN: down, name + UP: jnp.zeros((*lead, rank, n_out), kernel.dtype)}


def parameter_names(params: Any) -> tuple[str, ...]:
    """The name of every parameter, in the order of the tree's leaves."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path in paths)
